"""What the kernel tells about other processes: whether one lives, and how one ended."""

from __future__ import annotations

import fcntl
import os
import select
import struct
from typing import Final

from stagewatch.exporters.journal import start_ticks
from stagewatch.exporters.recorder.watching import proc
from stagewatch.exporters.recorder.watching.proc import Reader
from stagewatch.system import LINUX

_PIDFD_GET_INFO: Final = 0xC040FF0B
"""``_IOWR(0xFF, 11, 64 bytes)``, since Linux 6.13."""
_EXIT: Final = 1 << 3
"""Asks for the exit status, and says in the answer that it is there (since 6.15)."""
_INFO_SIZE: Final = 64
_EXIT_CODE_AT: Final = 60
_REAPING_MILLISECONDS: Final = 20


def reader() -> Reader | None:
    """What there is to look at processes with: /proc, psutil on macOS."""
    if os.path.exists("/proc/self/stat"):
        return proc
    if LINUX:  # psutil reads /proc, too
        return None
    try:
        from stagewatch.exporters.recorder.watching import with_psutil
    except ImportError:
        return None
    return with_psutil


def tells() -> bool:
    """Whether it can be known which process a pid names."""
    return reader() is not None


def is_running(pid: int, ticks: int) -> bool:
    """Whether the process that *pid* named when it started at *ticks* still is; zombies are not."""
    eyes = reader()
    return eyes is not None and eyes.is_running(pid, ticks)


def open_pidfd(pid: int, ticks: int) -> int | None:
    """A pidfd of just this process, a zombie included; None if it is gone or cannot be had."""
    pidfd = open_any_pidfd(pid)
    if pidfd is None:
        return None
    try:
        # Asked after the opening: a pid that was given anew by then has other ticks.
        if start_ticks(pid) == ticks:
            return pidfd
    except (OSError, IndexError, ValueError):
        pass
    os.close(pidfd)
    return None


def open_any_pidfd(pid: int) -> int | None:
    """A pidfd of whichever process has this pid now; None if it cannot be had."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # Python may be older than the kernel, or built on one
        return None


def wait_status(pidfd: int, pid: int, ticks: int) -> int | None:
    """How a process ended whose pidfd is readable, as ``wait(2)`` gives it; None if unknowable.

    A zombie's status stands in /proc, a reaped one's in its pidfd, and it may be reaped between
    two questions: so both are asked again.
    """
    for _ in range(3):
        status = _of_reaped(pidfd)
        if status is None:
            status = zombie_status(pid, ticks)
        if status is not None:
            return status
        if tells() and proc.read(pid) is None:  # reaped in between
            return _of_reaped(pidfd)
        _wait_for_reaping(pidfd)
    return None


def _of_reaped(pidfd: int) -> int | None:
    info = bytearray(_INFO_SIZE)
    struct.pack_into("=Q", info, 0, _EXIT)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    if not struct.unpack_from("=Q", info)[0] & _EXIT:
        return None
    status: int = struct.unpack_from("=i", info, _EXIT_CODE_AT)[0]
    return status


def zombie_status(pid: int, ticks: int) -> int | None:
    """How a process ended that nobody has waited for yet; None if it is not one, or unknowable."""
    found = proc.read(pid)
    # Not reaped yet, so that its pid is still its own: where its ticks are not known that will do.
    if found is None or (ticks and found.ticks != ticks) or not found.is_dead:
        return None
    if found.wait_status:
        return found.wait_status
    # To who may not know (another user or group) the kernel shows a 0, which looks like a success;
    # this link it hides from the same.
    try:
        os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None
    return 0


def _wait_for_reaping(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, 0)
    # Without /proc a zombie's status is nowhere until its parent asks for it.
    poll.poll(_REAPING_MILLISECONDS if tells() else 10 * _REAPING_MILLISECONDS)
