"""A sign of life that other PID namespaces of the host see: a lock on a file, held by memory.

A pid means nothing in another namespace, and a POSIX lock would end when the process reads the
file elsewhere. So the lock is one of an open file description (OFD), which here has no descriptor
that a user's ``closerange`` could hit: a mapping keeps it open. No forked child has that mapping;
exec and death end it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from struct import Struct
from typing import Final

from stagewatch.exporters import memory
from stagewatch.system import LINUX

_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_PROT_NONE: Final = 0
_MADV_DONTFORK: Final = 10
_FLOCK: Final = Struct("@hhqqi4x")  # type, whence, start, length, pid


def hold(path: Path) -> int:
    """Lock the file *path* for as long as this process lives, or until `let_go` of what is
    returned; 0 where that cannot be done."""
    if not LINUX:  # no such locks, and no PID namespaces either
        return 0
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0
    try:
        fcntl.fcntl(descriptor, _F_OFD_SETLK, _question(fcntl.F_WRLCK))
        return _keep_open(descriptor)
    except OSError:  # no such locks on this file system
        return 0
    finally:
        os.close(descriptor)


def let_go(held: int) -> None:
    """Undo `hold`, in the same process: no forked child has the mapping."""
    memory.unmap(held, 1)


def is_held(path: Path) -> bool:
    """Whether a living process of this host holds the file *path*.

    Raises FileNotFoundError, or another OSError where it cannot be known.
    """
    if not LINUX:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        answer = fcntl.fcntl(descriptor, _F_OFD_GETLK, _question(fcntl.F_WRLCK))
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    finally:
        os.close(descriptor)


def _question(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 1, 0)


def _keep_open(descriptor: int) -> int:
    address = memory.map_file(descriptor, 1, _PROT_NONE)
    if memory.advise(address, 1, _MADV_DONTFORK) == 0:
        return address
    memory.unmap(address, 1)  # forked children would keep us alive
    return 0
