"""``ROOM/PID.TICKS.exit``: what `stagewatch run` knows of the end of the process it waits for.

Where the kernel does not tell how a process ended (Linux before 6.15, or nobody had its pidfd),
its parent knows. One line of words: ``awaited PID TICKS`` names that parent while the process runs;
``ended STATUS AT UPTIME`` is written before it is reaped, with CPU seconds and peak bytes behind
that, right after. All words are numbers.
Written by a process that imports next to nothing: so no msgpack here.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PATIENCE_SECONDS = 0.1


def promise(room: str | os.PathLike[str], pid: int, ticks: int, by: int, by_ticks: int) -> None:
    """Say that process *by* will leave word of the end of *pid*. Raises OSError."""
    _write(room, pid, ticks, f"awaited {by} {by_ticks}")


def leave(
    room: str, pid: int, ticks: int, status: int, at: int, uptime: int,
    cpu_seconds: float | None = None, memory_peak: int = 0,
) -> None:  # fmt: skip
    """Leave word of how *pid* ended, and when; if it wrote a journal. Never raises an OSError.

    *status* as wait(2) gives it, *uptime* as `stagewatch.measures.uptime` does at the time *at*;
    *memory_peak* in bytes, 0 if unknown.
    """
    words = f"ended {status} {at} {uptime}"
    if cpu_seconds is not None:
        words += f" {cpu_seconds:.6f} {memory_peak}"
    begin = f"{pid}.{ticks}."
    with suppress(OSError):
        names = os.listdir(room)
        if any(name.startswith(begin) and name.endswith(".journal") for name in names):
            _write(room, pid, ticks, words)


def remove(room: str | os.PathLike[str], pid: int, ticks: int) -> None:
    """The process is dealt with."""
    with suppress(OSError):
        os.unlink(_path(room, pid, ticks))


class Exit:
    """What a parent left word of. *usage*: CPU seconds and peak bytes (0 if unknown)."""

    def __init__(self, words: list[str]) -> None:
        self.status, self.at, self.uptime = (int(word) for word in words[1:4])
        self.usage = (float(words[4]), int(words[5])) if len(words) > 5 else None


def read(
    room: str | os.PathLike[str], pid: int, ticks: int, is_running: Callable[[int, int], bool]
) -> Exit | None:
    """How *pid*, which is dead, ended; None if there is no word of it.

    Waits a moment for a parent that promised it and still *is_running*.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            with open(_path(room, pid, ticks)) as file:
                words = file.read().split()
            found = Exit(words) if words[0] == "ended" else None
            if found is None and not is_running(int(words[1]), int(words[2])):
                return None
        except (OSError, ValueError, IndexError):
            return None
        if (found is not None and found.usage) or time.monotonic() > until:
            return found
        time.sleep(0.002)


def process(name: str) -> tuple[int, int] | None:
    """Pid and ticks of the process that a file in a room tells of; None if it is another file."""
    pid, _, rest = name.removesuffix(".exit").partition(".")
    ticks = rest.removesuffix(".new")
    if not name.endswith(".exit") or not (pid.isdecimal() and ticks.isdecimal()):
        return None
    return int(pid), int(ticks)


def _path(room: str | os.PathLike[str], pid: int, ticks: int) -> str:
    return os.path.join(room, f"{pid}.{ticks}.exit")


def _write(room: str | os.PathLike[str], pid: int, ticks: int, words: str) -> None:
    temporary = os.path.join(room, f"{pid}.{ticks}.new.exit")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600)
    try:
        os.write(descriptor, words.encode())
    finally:
        os.close(descriptor)
    os.rename(temporary, _path(room, pid, ticks))
