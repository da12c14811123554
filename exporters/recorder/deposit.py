"""Pidfds in safe keeping: a recorder that is killed leaves to the next what it was watching.

A pair of sockets that the keeper holds open, too. What is sent into one of them stays in flight
until the next recorder takes it out of the other; the kernel keeps the exit statuses of the dead as
long as somebody holds their pidfds. Where memory is short this decides: the recorder is killed
first, a job moments later.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from stagewatch.exporters.recorder.door import Caller

_LONGEST_KEY: Final = 256
_SPACE: Final = 1 << 20
"""Of which the kernel grants what it grants anybody: some hundreds of pidfds."""
_TIDY_AFTER: Final = 32
"""So many that are of no use any longer lie about."""


class Deposit:
    """*entrance* and *exit*: the descriptors of the pair."""

    def __init__(self, entrance: int, exit: int) -> None:
        self._entrance = socket.socket(fileno=entrance)
        self._exit = socket.socket(fileno=exit)
        for end in (self._entrance, self._exit):
            end.setblocking(False)
        self._entrance.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SPACE)
        self._useless = 0
        self._keys: set[str] = set()

    def put(self, key: str, pidfd: int) -> None:
        """Leave the pidfd of the process with the journal *key*; not where there is no space."""
        if key in self._keys:
            return
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))
        with suppress(OSError):
            self._entrance.sendmsg([key.encode()], [rights])
            self._keys.add(key)

    def left(self) -> list[Caller]:
        """All that a predecessor has left, as if their processes called again; it stays here."""
        found = self._take()
        for caller in found:
            if caller.pidfd is not None:
                self.put(caller.key, caller.pidfd)
        return found

    def tidy(self, is_needed: Callable[[str], bool]) -> None:
        """One pidfd more is of no use: now and then, keep only those of keys that are needed."""
        self._useless += 1
        if self._useless < _TIDY_AFTER:
            return
        self._useless = 0
        for caller in self._take():
            if caller.pidfd is not None:
                if is_needed(caller.key):
                    self.put(caller.key, caller.pidfd)
                os.close(caller.pidfd)

    def close(self) -> None:
        """Let go of it; it stays with the keeper."""
        self._entrance.close()
        self._exit.close()

    def _take(self) -> list[Caller]:
        found = []
        while (caller := self._next()) is not None:
            found.append(caller)
        self._keys.clear()
        return found

    def _next(self) -> Caller | None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._exit, _LONGEST_KEY, 1)
        except OSError:
            return None
        return Caller(message.decode(), descriptors[0]) if descriptors else None
