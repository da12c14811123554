"""Whether a process shows no sign of life, and what one that is still may rightly wait for.

Decision 10: stuck = less than 0.1 % of a core, no I/O and no record, no operation open, and no
thread that waits for a socket, a pipe or a child.
"""

from __future__ import annotations

import os
import platform
import stat
from collections.abc import Iterable
from typing import Final

from stagewatch.exporters.page import PageReader

_CORE_SHARE: Final = 0.001

OPERATION: Final = "operation"
SOCKET: Final = "socket"
CHILD: Final = "child"
UNREADABLE: Final = "unreadable"


class Stillness:
    """What a process did not do, look after look; for how long only the looks themselves tell, so
    that a machine that slept makes nobody stuck."""

    def __init__(self, stuck_after: float) -> None:
        self._stuck_after = stuck_after
        self._seconds = 0.0
        self._signs: tuple[object, ...] = ()
        self._cpu = 0.0
        self._cpu_seconds = 0.0

    @property
    def is_still(self) -> bool:
        """Whether there was no sign of life for as long as makes it worth a word."""
        return self._seconds >= self._stuck_after

    def may_become_still(self, elapsed: float) -> bool:
        """Whether the look *elapsed* seconds after the last one might be the first to say so."""
        return not self.is_still and self._seconds + elapsed >= self._stuck_after

    def look(self, elapsed: float, cpu_seconds: float, *signs: object) -> None:
        """*elapsed* seconds after the last look. *signs*: of anything else it does: they change."""
        self._seconds += elapsed
        self._cpu_seconds += elapsed
        used = cpu_seconds - self._cpu
        if signs != self._signs or not 0.0 <= used <= _CORE_SHARE * self._stuck_after:
            self._seconds = 0.0
            self._begin(cpu_seconds)
        elif self._cpu_seconds >= self._stuck_after:
            self._begin(cpu_seconds)
        self._signs = signs

    def _begin(self, cpu_seconds: float) -> None:
        self._cpu, self._cpu_seconds = cpu_seconds, 0.0


def waits_for(pid: int, pages: Iterable[PageReader]) -> str | None:
    """Why a process that is still may be well: see `Sighting.waits_for`."""
    if any(thread.operation for page in pages for thread in page.threads()):
        return OPERATION
    try:
        threads = sorted(os.listdir(f"/proc/{pid}/task"), key=int)
    except OSError:
        return UNREADABLE
    found = [_thread_waits_for(f"/proc/{pid}/task/{thread}") for thread in threads]
    known = [what for what in found if what is not None]
    return next((what for what in known if what != UNREADABLE), known[0] if known else None)


# --- what a thread is blocked in ------------------------------------------------------------------

# Name and number, x86-64 and generic (64-bit ARM, RISC-V). A write that nobody takes is a wait
# for another process just as a read that nobody answers.
_STREAMS: Final = {
    "x86_64": {0, 1, 17, 18, 19, 20, 275, 295, 296},
    "aarch64": {63, 64, 65, 66, 67, 68, 69, 70, 76},
}
"""read, write, pread64, pwrite64, readv, writev, splice, preadv, pwritev: by their descriptor."""
_SOCKETS: Final = {
    # poll select connect accept sendto recvfrom sendmsg recvmsg epoll_wait pselect6 ppoll
    # epoll_pwait accept4 recvmmsg sendmmsg io_uring_enter epoll_pwait2
    "x86_64": {7, 23, 42, 43, 44, 45, 46, 47, 232, 270, 271, 281, 288, 299, 307, 426, 441},
    "aarch64": {22, 72, 73, 202, 203, 206, 207, 211, 212, 242, 243, 269, 426, 441},
}
_CHILDREN: Final = {"x86_64": {61, 247}, "aarch64": {260, 95}}
"""wait4 waitid"""
_MACHINE: Final = {"arm64": "aarch64", "riscv64": "aarch64"}.get(
    platform.machine(), platform.machine()
)

_SOCKET_CHANNELS: Final = (
    "poll_schedule", "ep_poll", "do_epoll", "do_select", "do_poll", "do_sys_poll", "pipe_",
    "anon_pipe_", "sk_wait", "__skb_wait", "skb_wait", "unix_", "inet_", "wait_woken", "sock_",
    "tcp_", "udp_", "vsock_", "io_cqring",
)  # fmt: skip
_CHILD_CHANNELS: Final = ("do_wait", "kernel_wait", "wait_consider")
_OTHER_CHANNELS: Final = (
    "futex", "hrtimer_nanosleep", "do_nanosleep", "common_nsleep", "__do_sys_pause", "sigsuspend",
    "do_sigtimedwait", "locks_lock", "do_semtimedop", "ptrace_stop", "do_signal_stop",
)  # fmt: skip
"""Of these nobody else is the cause: a lock, a sleep, a signal."""


def _thread_waits_for(task: str) -> str | None:
    call = _read(f"{task}/syscall")
    if call is None and not os.path.exists(task):
        return None  # this thread has just ended
    if call and _MACHINE in _SOCKETS:
        return _call_waits_for(task, call.split())
    return _channel_waits_for(_read(f"{task}/wchan"))


def _call_waits_for(task: str, call: list[str]) -> str | None:
    """*call*: ``running``, or the number of the system call and its arguments."""
    if not call[0].isdecimal():
        return None
    number = int(call[0])
    if number in _SOCKETS[_MACHINE]:
        return SOCKET
    if number in _CHILDREN[_MACHINE]:
        return CHILD
    if number in _STREAMS[_MACHINE]:
        return _descriptor_waits_for(f"{task}/fd/{int(call[1], 16)}")
    return None


def _descriptor_waits_for(path: str) -> str | None:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return UNREADABLE
    if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode):
        return SOCKET
    # Else a terminal, an event, a device: somebody will write there, but nobody knows who.
    return None if stat.S_ISREG(mode) else UNREADABLE


def _channel_waits_for(channel: str | None) -> str | None:
    """*channel*: the function of the kernel in which the thread is blocked."""
    if not channel or channel == "0":
        return UNREADABLE
    if channel.startswith(_CHILD_CHANNELS):
        return CHILD
    if channel.startswith(_SOCKET_CHANNELS):
        return SOCKET
    return None if channel.startswith(_OTHER_CHANNELS) else UNREADABLE


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip("\0\n ")
    except OSError:
        return None
