"""What `watching.proc` reads, by psutil: for macOS, which has no /proc.

Imports psutil, which is not there everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from stagewatch.exporters.journal import start_ticks
from stagewatch.exporters.recorder.watching.proc import Reading, Traffic


def read(pid: int) -> Reading | None:
    """The process that is *pid* now; None if there is none, or it is not ours to know."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            times = process.cpu_times()
            return Reading(
                process.ppid(),
                times.user
                + times.system
                + getattr(times, "children_user", 0.0)
                + getattr(times, "children_system", 0.0),
                process.memory_info().rss,
                process.num_threads(),
                start_ticks(pid),
                process.status() == psutil.STATUS_ZOMBIE,
            )
    except (psutil.Error, OSError):
        return None


def is_running(pid: int, ticks: int) -> bool:
    """As in `proc`; asks for nothing that is hidden from other users."""
    try:
        return start_ticks(pid) == ticks and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def traffic(pid: int) -> Traffic | None:
    """None where the system does not tell: macOS."""
    try:
        counters = psutil.Process(pid).io_counters()
    except (psutil.Error, AttributeError):
        return None
    every = counters.read_bytes + counters.write_bytes
    every += getattr(counters, "read_chars", 0) + getattr(counters, "write_chars", 0)
    return Traffic(counters.read_bytes, counters.write_bytes, every)


def memory_peak(pid: int) -> int | None:
    """Nobody but the process itself can ask for it."""
    return None


def parents(known: Mapping[int, int]) -> dict[int, int]:
    """The parent of every process there is, by pid; *known* is not needed."""
    found = {}
    for process in psutil.process_iter():
        try:
            found[process.pid] = process.ppid()
        except psutil.Error:
            continue
    return found
