"""Takes from an interpreter what macOS does not have; `tests.test_macos` lets it execute this.

What the system itself has too much (/proc, /dev/fd) is taken by a mount namespace.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import fcntl
import os
import select
import signal
import stat
import sys
import time
from typing import Any

for module, names in {
    os: "pidfd_open posix_fallocate O_PATH O_TMPFILE waitid memfd_create eventfd pipe2 P_PIDFD",
    signal: "pidfd_send_signal sigtimedwait sigwaitinfo",
    select: "epoll",
    _socket: "SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED",
    time: "CLOCK_BOOTTIME",
    fcntl: "F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

_genuine_getattr = ctypes.CDLL.__getattr__
_genuine_fchmod, _genuine_spawn, _genuine_fcntl = os.fchmod, os.posix_spawn, fcntl.fcntl
_genuine_pair = _socket.socketpair


def _getattr(library: ctypes.CDLL, name: str) -> Any:
    if name in ("prctl", "statfs"):  # this one is there, with another structure
        raise AttributeError(name)
    return _genuine_getattr(library, name)


def _fchmod(descriptor: int, mode: int) -> None:
    if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "fchmod of a socket")
    _genuine_fchmod(descriptor, mode)


def _spawn(path: Any, command: Any, environ: Any, **how: Any) -> int:
    for action in how.get("file_actions", ()):
        if action[0] == os.POSIX_SPAWN_DUP2 and action[1] == action[2]:
            raise OSError(errno.EBADF, "close-on-exec stays where a number stays")
        if action[0] == os.POSIX_SPAWN_CLOSE:
            os.fstat(action[1])  # else there is nothing to be closed
    return _genuine_spawn(path, command, environ, **how)


def _fcntl(descriptor: Any, command: int, argument: Any = 0) -> Any:
    if command in (fcntl.F_GETLK, 36, 37):  # another structure; open file description locks
        raise OSError(errno.EINVAL, "fcntl")
    return _genuine_fcntl(descriptor, command, argument)


def _pair(family: int = _socket.AF_UNIX, type: int = _socket.SOCK_STREAM, proto: int = 0) -> Any:
    if type == _socket.SOCK_SEQPACKET:
        raise OSError(errno.EPROTONOSUPPORT, "socketpair")
    return _genuine_pair(family, type, proto)


ctypes.CDLL.__getattr__ = _getattr  # type: ignore[method-assign]
os.fchmod, os.posix_spawn, fcntl.fcntl = _fchmod, _spawn, _fcntl  # type: ignore[assignment]
_socket.socketpair = _pair  # type: ignore[assignment]

import psutil  # noqa: E402

psutil.PROCFS_PATH = os.environ["ELSEWHERE"]

_platform = sys.platform
sys.platform = "darwin"
import stagewatch.system  # noqa: E402

sys.platform = _platform
assert not stagewatch.system.LINUX and not os.path.exists("/proc/self")
