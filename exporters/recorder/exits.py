"""``ROOM/PID.TICKS.exit``: what `stagewatch run` knows of the end of the process it waits for.

Where the kernel does not tell how a process ended (Linux before 6.15, or nobody had its pidfd),
its parent knows. One line of words: ``awaited PID TICKS`` names that parent while the process runs;
``ended STATUS AT`` is written before it is reaped, with `` CPU PEAK`` (seconds, bytes) right after.
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
    room: str, pid: int, ticks: int, status: int, at: int,
    cpu_seconds: float | None = None, memory_peak: int = 0,
) -> None:  # fmt: skip
    """Leave word of how *pid* ended, and when; if it wrote a journal. Never raises an OSError.

    *status* as wait(2) gives it, *memory_peak* in bytes, 0 if unknown.
    """
    words = f"ended {status} {at}"
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


def read(
    room: str | os.PathLike[str], pid: int, ticks: int, is_running: Callable[[int, int], bool]
) -> tuple[int, int, float | None, int] | None:
    """Status, time, CPU seconds and memory of a process that is dead; None if there is no word.

    Waits a moment for a parent that promised it and is still there.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            with open(_path(room, pid, ticks)) as file:
                words = file.read().split()
        except (OSError, ValueError):
            return None
        is_whole = words[:1] == ["ended"] and len(words) == 5
        if is_whole or time.monotonic() > until or not _is_awaited(words, is_running):
            break
        time.sleep(0.002)
    try:
        if words[0] == "ended":
            used = float(words[3]) if is_whole else None
            return int(words[1]), int(words[2]), used, int(words[4]) if is_whole else 0
    except (IndexError, ValueError):
        pass
    return None


def process(name: str) -> tuple[int, int] | None:
    """Pid and ticks of the process that a file in a room tells of; None if it is another file."""
    pid, _, rest = name.removesuffix(".exit").partition(".")
    ticks = rest.removesuffix(".new")
    if not name.endswith(".exit") or not (pid.isdecimal() and ticks.isdecimal()):
        return None
    return int(pid), int(ticks)


def _is_awaited(words: list[str], is_running: Callable[[int, int], bool]) -> bool:
    if words[:1] != ["awaited"]:
        return words[:1] == ["ended"]  # and the rest follows at once
    try:
        return is_running(int(words[1]), int(words[2]))
    except (IndexError, ValueError):
        return False


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
