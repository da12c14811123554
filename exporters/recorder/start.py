"""What a job does about its recorder: say that it exists, and start one where none listens.

Runs before the user's code, and so imports little. A job connects to ``ROOM/sock`` and sends its
key with a pidfd of itself, which keeps the exit status readable after the job's death, even while
it waits in the queue of a recorder that is still starting. Where nobody listens, the job that
holds the second byte of ``ROOM/alive`` (a POSIX lock) binds and listens itself and hands the
listening socket to a new recorder, so that nobody waits for Python to start. The recorder holds
the first byte for as long as it lives. POSIX locks, because no forked child inherits them.
"""

from __future__ import annotations

import _socket
import ctypes
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from stagewatch import safety
from stagewatch.exporters.journal import pid_namespace, start_ticks
from stagewatch.system import LINUX

ALIVE_BYTE: Final = 0
ELECTION_BYTE: Final = 1
QUEUE: Final = 4096
SYNC: Final = b"sync"
SYNCED: Final = b"ok"
PARENT_VARIABLE: Final = "STAGEWATCH_PARENT"
"""``PID.TICKS`` of a `stagewatch run` that lets the recorder send before all ends."""
_PATIENCE_SECONDS: Final = 1.0
_START_SECONDS: Final = 10.0
OUTLIVED_BY_NOTHING: Final = "nothing outlives this process"
_LONGEST_PATH: Final = (107 if LINUX else 103) - len("1234567") + len("sock")
"""Of the socket; that of a recorder which takes over is called as its pid is at first."""
_LITTLE_MEMORY: Final = 128 << 20
"""A recorder takes about 45 MB of it."""
_INITIAL_NAMESPACE: Final = 0xEFFFFFFC
_PR_GET_CHILD_SUBREAPER: Final = 37
DIRECTORY: Final = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)
"""For ``open``, of what is only a place; macOS has no ``O_PATH``."""
_FLOCK: Final = struct.Struct("@hhqqi")
_HEADERS: Final = (
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
)


class Alone(Exception):
    """No recorder can be started; the message says why."""


class Announced(Struct, frozen=True):
    """What came of it."""

    known: bool = False
    """The recorder, or the queue of one that starts, has this process's pidfd."""
    started: bool = False
    """This process started the recorder."""
    alone: str = ""
    """Why this process can have no recorder and has to ship by itself; empty where it can."""


def announce(room: Path, key: str, environ: Mapping[str, str], state: Path) -> Announced:
    """Make this process known to the recorder of *room*, starting one if need be.

    Only before the user's code or after it: a start makes a child for about a millisecond, which
    a user's ``os.wait()`` or SIGCHLD handler would see. Never raises.
    """
    try:
        if dies_with_us():
            return Announced(alone=OUTLIVED_BY_NOTHING)
        with _opened(room, DIRECTORY) as directory:
            return _announce(directory, room, key, environ, state)
    except BlockingIOError:
        return Announced()  # thousands wait already: the recorder's scan finds our journal
    except Alone as reason:
        return Announced(alone=str(reason))
    except Exception as error:
        safety.report(error)
        return Announced()


def introduce(room: Path, key: str, environ: Mapping[str, str]) -> Announced:
    """Like `announce`, but never starts a recorder: for a child that the user's code forked."""
    try:
        if dies_with_us():
            return Announced(alone=OUTLIVED_BY_NOTHING)
        with _opened(room, DIRECTORY) as directory:
            connection = _connect(room, directory)
            if connection is None:
                return Announced()
            with _closing(connection):
                return Announced(known=_hello(connection, key, environ))
    except (BlockingIOError, Alone):
        return Announced()
    except Exception as error:
        safety.report(error)
        return Announced()


def announce_if_none(room: Path, key: str, environ: Mapping[str, str], state: Path) -> Announced:
    """At exit: start a recorder if the one this process knew is dead. Never raises."""
    if has_living_recorder(room):
        return Announced(known=True)
    return announce(room, key, environ, state)


def has_living_recorder(room: Path) -> bool:
    """Whether a recorder of *room* is up (not: just starting).

    Not for the process that is the recorder: closing the file would free its own lock.
    """
    try:
        with _opened(room / "alive", os.O_RDONLY) as alive:
            return _is_locked(alive, ALIVE_BYTE)
    except OSError:
        return False


def ask_to_take_in(room: Path, timeout: float = 2.0) -> bool:
    """Let the recorder of *room* read all journals now; False if it did not within *timeout*."""
    until = time.monotonic() + timeout
    try:
        with _opened(room, DIRECTORY) as directory:
            connection = _connect(room, directory)
            if connection is None:
                return False
            with _closing(connection):
                connection.settimeout(max(until - time.monotonic(), 0.001))
                connection.send(SYNC)
                return connection.recv(len(SYNCED)) == SYNCED
    except (OSError, Alone):
        return False


def dies_with_us() -> bool:
    """Whether a recorder started here would be our child or die with us (decisions 5 and 27)."""
    if not LINUX or _is_seen_off():
        return False
    if ends_with((os.getpid(), os.getppid(), _opener())):
        return True
    flag = ctypes.c_int(0)
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(flag), 0, 0, 0)
    return bool(flag.value)


def ends_with(pids: tuple[int, ...]) -> bool:
    """Whether this PID namespace ends when one of *pids* does."""
    return LINUX and 1 in pids and pid_namespace() != _INITIAL_NAMESPACE


def _is_seen_off() -> bool:
    pid, _, ticks = os.environ.get(PARENT_VARIABLE, "").partition(".")
    try:
        return bool(pid) and start_ticks(int(pid)) == int(ticks)
    except (OSError, ValueError, IndexError):
        return False


def end_recorder(room: Path, timeout: float) -> None:
    """Let the recorder of *room* send what it can and end; waits for that, at most *timeout*."""
    with _opened(room / "alive", os.O_RDONLY) as alive:
        pid = _holder(alive, ALIVE_BYTE)
    if pid <= 0:
        return
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(timeout * 1000)
    finally:
        os.close(pidfd)


def no_room() -> str:
    """Why a recorder would take memory that the job needs; empty where there is enough."""
    from stagewatch.exporters.recorder.limits import memory_limit

    limit = memory_limit()
    if limit is None or limit > _LITTLE_MEMORY:
        return ""
    return f"a limit of {limit >> 20} MB of memory leaves no room for a recorder"


def _opener() -> int:
    """Pid of the process whose run this one joins: as PID 1 it would inherit our recorder."""
    pid = os.environ.get("STAGEWATCH_RUN", "").split(".", 2)[1:2]
    return int(pid[0]) if pid and pid[0].isdecimal() else 0


def socket_path(room: Path, directory: int, name: str = "sock") -> str:
    """For ``bind`` and ``connect``: of a file in *room*, which is open as *directory*.

    The detour through /proc, because a socket's path has at most 107 bytes.
    """
    if os.path.exists("/proc/self/fd"):
        return f"/proc/self/fd/{directory}/{name}"
    return str(room / name)


def listen(listening: _socket.socket, path: str) -> None:
    """Bind to *path*, for this user alone. Raises OSError."""
    listening.bind(path)
    os.chmod(path, 0o600)  # nobody comes in before `listen`; macOS has no fchmod of a socket
    listening.listen(QUEUE)


def try_lock(alive: int, byte: int) -> bool:
    """Lock one byte of the open file ``ROOM/alive``; False if another process holds it."""
    try:
        fcntl.lockf(alive, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    return True


def unlock(alive: int, byte: int) -> None:
    """Undo `try_lock`."""
    fcntl.lockf(alive, fcntl.LOCK_UN, 1, byte)


# --- hand-over ----------------------------------------------------------------------------------

_open: set[int] = set()


def _forget_in_child() -> None:
    # A child that kept the listening socket would keep callers waiting in a queue nobody reads.
    while _open:
        try:
            os.close(_open.pop())
        except OSError:
            continue


os.register_at_fork(after_in_child=_forget_in_child)


def _announce(
    directory: int, room: Path, key: str, environ: Mapping[str, str], state: Path
) -> Announced:
    until = time.monotonic() + _PATIENCE_SECONDS
    nap = 0.001
    started = False
    while started or time.monotonic() < until:
        connection = _connect(room, directory)
        if connection is not None:
            with _closing(connection):
                if started or not _is_void(room):
                    return Announced(_hello(connection, key, environ), started)
        if started:
            break  # and dead already
        started = _elect(directory, room, environ, state)
        if not started:
            time.sleep(nap)  # somebody is between lock and listen, or about to leave
            nap = min(2 * nap, 0.01)
    return Announced(started=started)


def _connect(room: Path, directory: int) -> _socket.socket | None:
    """None if nobody listens. Raises Alone where nobody can."""
    path = socket_path(room, directory)
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise Alone(f"this path is too long for a socket: {path}")
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def _hello(connection: _socket.socket, key: str, environ: Mapping[str, str]) -> bool:
    message = key.encode()
    headers = {name: environ[name] for name in _HEADERS if environ.get(name)}
    if headers:
        message += b"\0" + msgspec.json.encode(headers)
    try:
        pidfd = os.pidfd_open(os.getpid())
    except (
        OSError,
        AttributeError,
    ):  # an old kernel, or a sandbox: the recorder looks for the pid itself
        connection.send(message)
        return False
    try:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("@i", pidfd))
        connection.sendmsg([message], [rights])
    finally:
        os.close(pidfd)
    return True


def _is_void(room: Path) -> bool:
    """Whether whoever listens is no recorder.

    A child forked in C during a hand-over keeps the listening socket open. A recorder takes its
    lock within moments after the time that starter and keeper leave on one of two files.
    """
    return not has_living_recorder(room) and _has_had_its_time(room)


def _has_had_its_time(room: Path) -> bool:
    begun = 0.0
    for name in ("sock", "start"):
        try:
            begun = max(begun, (room / name).stat().st_mtime)
        except OSError:
            continue
    return abs(time.time() - begun) > _START_SECONDS


def _elect(directory: int, room: Path, environ: Mapping[str, str], state: Path) -> bool:
    """Bind, listen and start a recorder, unless somebody else does or did.

    Raises Alone where none can be started, and OSError.
    """
    with _opened(room / "alive", os.O_RDWR | os.O_CREAT) as alive:
        # The life of a recorder that is about to leave does not matter: ours waits for its end.
        if not try_lock(alive, ELECTION_BYTE):
            return False
        # Between our look and our lock somebody else may have been elected.
        connection = _connect(room, directory)
        if connection is not None:
            connection.close()
            if _is_locked(alive, ALIVE_BYTE) or not _has_had_its_time(room):
                return False
        from stagewatch.exporters.recorder.spawn import spawn  # most processes need none

        if reason := no_room():
            raise Alone(reason)
        path = socket_path(room, directory)
        with suppress(FileNotFoundError):
            os.unlink(path)
        listening = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        with _closing(listening):
            listen(listening, path)
            try:
                spawn(room, state, listening.fileno(), environ)
            except OSError as error:
                raise Alone(f"no recorder can be started ({error.strerror or error})") from error
        return True


def _is_locked(alive: int, byte: int) -> bool:
    if LINUX:
        return _holder(alive, byte) != 0
    # What answers is laid out otherwise elsewhere; to try a lock is the same everywhere.
    try:
        fcntl.lockf(alive, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return True
    unlock(alive, byte)
    return False


def _holder(alive: int, byte: int) -> int:
    """Pid of who has locked a byte; 0 if nobody has, -1 if it is in another PID namespace."""
    question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(alive, fcntl.F_GETLK, question))
    return 0 if kind == fcntl.F_UNLCK else int(pid) or -1


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    _open.add(descriptor)
    try:
        yield descriptor
    finally:
        _close_if_ours(descriptor)


@contextmanager
def _closing(connection: _socket.socket) -> Iterator[None]:
    descriptor = connection.fileno()
    _open.add(descriptor)
    try:
        yield
    finally:
        connection.detach()
        _close_if_ours(descriptor)


def _close_if_ours(descriptor: int) -> None:
    # In a child forked meanwhile it is closed already, and its number may be another file's.
    if descriptor in _open:
        _open.discard(descriptor)
        os.close(descriptor)
