"""The recorder's side of ``ROOM/alive`` and ``ROOM/sock``: who is there, and what they bring."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from selectors import EVENT_READ, BaseSelector
from typing import Final

import msgspec
from msgspec import Struct, field

from stagewatch import safety
from stagewatch.exporters.recorder.start import (
    ALIVE_BYTE,
    DIRECTORY,
    ELECTION_BYTE,
    SYNC,
    SYNCED,
    listen,
    socket_path,
    try_lock,
    unlock,
)

_LONGEST_MESSAGE: Final = 1 << 16
_LEAVING_SECONDS: Final = 10.0
"""How long a predecessor may take to leave."""
_CONNECTING_SECONDS: Final = 0.05
"""How long a caller may be between finding the socket's name and standing in its queue."""


class Caller(Struct, frozen=True):
    """One message through the door."""

    key: str = ""
    """Of the journal of the process that calls; empty if it only asks."""
    pidfd: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """``OTEL_EXPORTER_OTLP_*HEADERS`` as that process has them."""
    asks: socket.socket | None = None
    """Waits until all journals are read."""

    def answer(self) -> None:
        """Tell a process that asks that all is read."""
        if self.asks is not None:
            with self.asks, suppress(OSError):
                self.asks.send(SYNCED)


class Door:
    """Lock and socket of a room; its descriptors are registered with *selector*. Raises OSError."""

    def __init__(self, room: Path, selector: BaseSelector) -> None:
        self._room = room
        self._selector = selector
        self._alive = os.open(room / "alive", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # More than one after a `reopen`: somebody may have found the old one just before.
        self._listening: dict[int, socket.socket] = {}
        self._visitors: dict[int, socket.socket] = {}

    def try_life(self) -> bool:
        """Be the one who may read the journals of this room; False if somebody else is."""
        return try_lock(self._alive, ALIVE_BYTE)

    def take_over(self, listening: int, place: int) -> list[Caller] | None:
        """Become the recorder of this room, at the socket *listening*, bound at the inode *place*.

        Whoever waits there is returned; None if another recorder is it and goes on: our callers
        are passed on to it.
        """
        self._listen(socket.socket(fileno=listening))
        until = time.monotonic() + _LEAVING_SECONDS
        before = self._place()
        while not self.try_life():
            # It is leaving, or reads for a report, unless it has put its own socket over ours.
            if time.monotonic() > until or self._place() != before:
                self._pass_on(self.callers())
                return None
            time.sleep(0.02)
        return self.callers() if self._place() == place else self.reopen()

    def reopen(self) -> list[Caller]:
        """Listen under the one name, whatever was there; returns who came until then."""
        temporary = str(os.getpid())  # short, as its path has to be
        until = time.monotonic() + 1.0
        while not try_lock(self._alive, ELECTION_BYTE) and time.monotonic() < until:
            time.sleep(0.001)
        directory = os.open(self._room, DIRECTORY | os.O_CLOEXEC)
        try:
            fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            (self._room / temporary).unlink(missing_ok=True)
            listen(fresh, socket_path(self._room, directory, temporary))
            os.rename(temporary, "sock", src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            os.close(directory)
            unlock(self._alive, ELECTION_BYTE)
        self._listen(fresh)
        return self.callers()

    def leave(self) -> list[Caller]:
        """Take the name away, so that nobody else comes; returns who came before that."""
        (self._room / "sock").unlink(missing_ok=True)
        time.sleep(_CONNECTING_SECONDS)
        return self.callers()

    def is_in_place(self) -> bool:
        """Whether the room is still the one whose life we hold: not deleted, nor made anew."""
        try:
            there = os.stat(self._room / "alive")
        except OSError:
            return False
        return os.path.samestat(there, os.fstat(self._alive))

    def close(self) -> None:
        """Leave the room to the next."""
        for connection in (*self._listening.values(), *self._visitors.values()):
            connection.close()
        os.close(self._alive)

    def is_ours(self, descriptor: int) -> bool:
        """Whether a descriptor that is ready is the door's."""
        return descriptor in self._listening or descriptor in self._visitors

    def callers(self) -> list[Caller]:
        """Everybody whose message is there."""
        for listening in self._listening.values():
            self._accept(listening)
        heard = (self._hear(descriptor) for descriptor in list(self._visitors))
        return [caller for caller in heard if caller is not None]

    def has_visitors(self) -> bool:
        """Whether anybody is connected who has said nothing yet."""
        return bool(self._visitors)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                visitor, _ = listening.accept()
            except BlockingIOError:  # nobody else
                return
            except OSError:  # no descriptor left: they wait, and so do we
                time.sleep(_CONNECTING_SECONDS)
                return
            visitor.setblocking(False)
            self._visitors[visitor.fileno()] = visitor
            self._selector.register(visitor.fileno(), EVENT_READ)

    def _hear(self, descriptor: int) -> Caller | None:
        visitor = self._visitors[descriptor]
        pidfds: list[int] = []
        message = b""
        try:
            message, pidfds, _, _ = socket.recv_fds(visitor, _LONGEST_MESSAGE, 1)
        except BlockingIOError:
            return None
        except OSError:
            pass
        self._selector.unregister(descriptor)
        del self._visitors[descriptor]
        if message == SYNC:
            return Caller(asks=visitor)
        visitor.close()
        return _understood(message, pidfds[0] if pidfds else None)

    def _pass_on(self, callers: list[Caller]) -> None:
        for caller in callers:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                directory = os.open(self._room, DIRECTORY | os.O_CLOEXEC)
                try:
                    connection.connect(socket_path(self._room, directory))
                    message = caller.key.encode() + b"\0" + msgspec.json.encode(caller.headers)
                    pidfds = [] if caller.pidfd is None else [caller.pidfd]
                    if caller.key:
                        socket.send_fds(connection, [message], pidfds)
                except OSError as error:
                    safety.report(error)
                finally:
                    os.close(directory)

    def _listen(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listening[listening.fileno()] = listening
        self._selector.register(listening.fileno(), EVENT_READ)

    def _place(self) -> int:
        try:
            return (self._room / "sock").stat().st_ino
        except OSError:
            return 0


def ready(selector: BaseSelector, seconds: float) -> list[int]:
    """Descriptors that can be read, after *seconds* at the latest."""
    return [key.fd for key, _ in selector.select(seconds)]


def is_key(text: str) -> bool:
    """Whether this is ``PID.TICKS.RANDOM``, and so no path to somewhere else."""
    pid, _, rest = text.partition(".")
    ticks, _, random = rest.partition(".")
    return pid.isdecimal() and ticks.isdecimal() and random.isalnum()


def _understood(message: bytes, pidfd: int | None) -> Caller | None:
    key, _, headers = message.partition(b"\0")
    try:
        text = key.decode("ascii")
        if is_key(text):
            return Caller(
                text, pidfd, msgspec.json.decode(headers, type=dict[str, str]) if headers else {}
            )
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        safety.report(error)
    if pidfd is not None:
        os.close(pidfd)
    return None
