"""What /proc tells of a process: its parent, CPU, memory and I/O."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

_TICK: Final = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_LONGEST: Final = 1 << 14
_DEAD: Final = (b"Z", b"X")


class Reading(NamedTuple):
    """One process at one moment, a zombie included."""

    parent: int
    cpu_seconds: float
    """User and system, of children that were waited for, too."""
    memory: int
    """Resident bytes."""
    threads: int
    ticks: int | None = None
    """See `stagewatch.exporters.journal.start_ticks`; None where it cannot be known."""
    is_dead: bool = False
    """A zombie: nobody has waited for it yet."""
    wait_status: int = 0
    """Of a zombie, as ``wait(2)`` gives it; 0 for who may not know."""


class Traffic(NamedTuple):
    """Bytes of one process so far, of children that were waited for, too."""

    read_bytes: int
    """From storage."""
    written_bytes: int
    every: int
    """Storage, page cache, pipes and terminals together: whether it grew is what matters."""


class Reader(Protocol):
    """This module, or its equal."""

    def read(self, pid: int) -> Reading | None: ...

    def is_running(self, pid: int, ticks: int) -> bool: ...

    def traffic(self, pid: int) -> Traffic | None: ...

    def memory_peak(self, pid: int) -> int | None: ...

    def parents(self, known: Mapping[int, int]) -> dict[int, int]: ...


def read(pid: int) -> Reading | None:
    """The process that is *pid* now; None if there is none."""
    text = _text(pid, "stat")
    if not text:
        return None
    # The name before it, in parentheses, may hold anything.
    fields = text[text.rindex(b")") + 2 :].split()
    return Reading(
        int(fields[1]),
        sum(map(int, fields[11:15])) * _TICK,
        int(fields[21]) * _PAGE,
        int(fields[17]),
        int(fields[19]),
        fields[0] in _DEAD,
        int(fields[-1]),
    )


def is_running(pid: int, ticks: int) -> bool:
    """Whether the process that *pid* named when it started at *ticks* still is; zombies are not."""
    found = read(pid)
    return found is not None and found.ticks == ticks and not found.is_dead


def traffic(pid: int) -> Traffic | None:
    """None where it may not be read: another user's process."""
    text = _text(pid, "io")
    if not text:
        return None
    # rchar wchar syscr syscw read_bytes write_bytes cancelled_write_bytes, each behind its name
    numbers = text.split()[1::2]
    read_bytes, written_bytes = int(numbers[4]), int(numbers[5])
    return Traffic(
        read_bytes,
        written_bytes,
        int(numbers[0]) + int(numbers[1]) + read_bytes + written_bytes,
    )


def memory_peak(pid: int) -> int | None:
    """Resident bytes at their highest; None of a zombie, which has given its memory back."""
    text = _text(pid, "status")
    if text is None:
        return None
    _, found, rest = text.partition(b"VmHWM:")
    return int(rest.split(None, 1)[0]) * 1024 if found else None


def parents(known: Mapping[int, int]) -> dict[int, int]:
    """The parent of every process there is, by pid.

    *known*: the answer of some seconds ago, so that only who is new, or lost its parent, is read.
    """
    pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
    found = {}
    for pid in pids:
        parent = known.get(pid)
        if parent is None or (parent and parent not in pids):
            reading = read(pid)
            if reading is None:
                continue
            parent = reading.parent
        found[pid] = parent
    return found


def _text(pid: int, name: str) -> bytes | None:
    try:
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _LONGEST)
    except OSError:  # ESRCH: it went in between; EACCES: not ours to know
        return None
    finally:
        os.close(descriptor)
