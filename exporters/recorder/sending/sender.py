"""Sends what waits: a thread of the recorder's, or `ship` here and now.

One sender per state directory and destination, whatever PID namespaces its recorders are in:
totals under one identity must not come from two.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from stagewatch.database import connect
from stagewatch.exporters.state import destination
from stagewatch.history import History
from stagewatch.safety import report

if TYPE_CHECKING:
    from stagewatch.exporters.recorder.sending.outbox import Outbox

_REPEAT_SECONDS: Final = 10.0
_GATHER_SECONDS: Final = 1.5
"""What is not urgent waits so long for company: a request costs as much as 100 spans, and
the intake gathers for a second, too."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_LONGER: Final = 4.0
"""So many times the last pause: before the first, the exporter itself has tried for 10 s."""
_NEWS_SECONDS: Final = 5.0
"""After a refusal, new work may be tried with as soon as this."""
_TURN_SECONDS: Final = 1.0
_NEVER: Final = float("inf")


class Turn:
    """The right to send to one destination: a POSIX lock, which ends with its process."""

    def __init__(self, state: Path, key: str) -> None:
        self._path = state / "senders" / key
        self._descriptor = -1

    def take(self) -> bool:
        """Whether it is ours, now or already. OSError where the file cannot be made."""
        if self._descriptor >= 0:
            return True
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def give_back(self) -> None:
        """Let the next one have it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Sender:
    """A daemon thread with a connection of its own; outages never hold up the intake."""

    def __init__(self, state: Path, environ: Mapping[str, str]) -> None:
        self._state = state
        self._environ = dict(environ)
        self._goal = destination(environ)
        self._changed = threading.Condition()
        self._due = dict.fromkeys(self._goal.protocols, 0.0)
        self._not_before = dict.fromkeys(self._goal.protocols, 0.0)
        self._pauses = dict.fromkeys(self._goal.protocols, 0.0)
        self._tried = dict.fromkeys(self._goal.protocols, 0.0)
        self._stop_at = _NEVER
        self._newer: dict[str, str] | None = None
        self._outbox: Outbox | None = None
        self._turn = Turn(state, self._goal.key)
        self._thread = threading.Thread(target=self._run, name="stagewatch-sender", daemon=True)
        self.is_elsewhere = False
        """Another process has the turn."""

    def start(self) -> None:
        """Begin with what is left from earlier."""
        self._thread.start()

    def wake(self, *, totals: bool = False) -> None:
        """There are new spans or logs; *totals*: a run began or ended, so all at once."""
        now = time.monotonic()
        with self._changed:
            before = dict(self._due), dict(self._not_before)
            for signal, due in before[0].items():
                if totals:
                    self._due[signal] = now
                elif signal != "metrics":
                    self._due[signal] = min(due, now + _GATHER_SECONDS)
                else:
                    continue
                soon = self._tried[signal] + _NEWS_SECONDS
                self._not_before[signal] = min(self._not_before[signal], soon)
            if (self._due, self._not_before) != before:
                self._changed.notify()

    def use(self, environ: Mapping[str, str]) -> None:
        """Newer header values, which may end an outage."""
        with self._changed:
            self._newer = dict(environ)
            now = time.monotonic()
            for signal in self._due:
                self._due[signal], self._not_before[signal] = now, 0.0
            self._changed.notify()

    def stop(self, timeout: float) -> None:
        """Send the rest, but for at most *timeout* seconds and without waiting out a refusal."""
        if not self._thread.is_alive():
            return
        with self._changed:
            self._stop_at = time.monotonic() + timeout
            outbox = self._outbox
            self._changed.notify()
        if outbox is not None:
            outbox.hurry(self._stop_at)
        self._thread.join(timeout)
        if self._thread.is_alive() and outbox is not None:
            outbox.close()  # breaks a request that hangs
            self._thread.join(0.5)

    def _run(self) -> None:
        # Imported here: the exporters take longer than a process that must be watched has time.
        from stagewatch.exporters.recorder.sending.outbox import Outbox

        while True:
            try:
                with closing(connect(self._state)) as link:
                    self._outbox = Outbox(link, self._goal, self._environ)
                    self._serve(self._outbox)
                    self._outbox.close()
                    self._turn.give_back()
                    return
            except Exception as error:
                report(error)
                if self._wait(5.0):
                    return

    def _serve(self, outbox: Outbox) -> None:
        while True:
            is_last = self._stop_at != _NEVER
            if is_last:
                outbox.hurry(self._stop_at)
            self.is_elsewhere = not self._turn.take()
            if not self.is_elsewhere:
                self._round(outbox, is_last)
            if is_last:
                return
            with self._changed:
                now = time.monotonic()
                next_one = min(
                    max(due, self._not_before[signal]) for signal, due in self._due.items()
                )
                pause = _TURN_SECONDS if self.is_elsewhere else next_one - now
                if pause > 0 and self._stop_at == _NEVER and self._newer is None:
                    self._changed.wait(None if pause == _NEVER else pause)

    def _round(self, outbox: Outbox, is_last: bool) -> None:
        with self._changed:
            newer, self._newer = self._newer, None
            now = time.monotonic()
            due = [
                signal
                for signal in outbox.signals
                if is_last or max(self._due[signal], self._not_before[signal]) <= now
            ]
            for signal in due:
                self._due[signal] = _NEVER
        if newer is not None:
            self._environ.update(newer)
            outbox.use(self._environ)
        for signal in due:
            self._send(outbox, signal)

    def _send(self, outbox: Outbox, signal: str) -> None:
        is_taken = outbox.send(signal, lambda: time.monotonic() < self._stop_at)
        now = time.monotonic()
        with self._changed:
            self._tried[signal] = now
            if not is_taken:
                pause = min(max(_LONGER * self._pauses[signal], _FIRST_PAUSE), _LONGEST_PAUSE)
                self._pauses[signal] = pause
                self._not_before[signal] = now + pause
                self._due[signal] = now
                return
            if self._pauses[signal]:  # it is back, perhaps for the other signals too
                self._not_before = dict.fromkeys(self._not_before, 0.0)
            self._pauses[signal] = 0.0
            if signal == "metrics" and outbox.is_active():
                self._due[signal] = min(self._due[signal], now + _REPEAT_SECONDS)

    def _wait(self, seconds: float) -> bool:
        """Whether to stop."""
        with self._changed:
            if self._stop_at == _NEVER:
                self._changed.wait(seconds)
            return self._stop_at != _NEVER


class Shipped(Struct, frozen=True):
    """What `ship` did."""

    sent: int
    """Items that the backend took."""
    pending: dict[str, int]
    """Items that still wait for this environment's destination, by signal; only what is not 0."""
    reason: str
    """Why they wait, in a few words; empty where none does."""
    elsewhere: dict[str, dict[str, int]]
    """What waits for other destinations, by their keys."""


def ship(state: Path, environ: Mapping[str, str], timeout: float) -> Shipped:
    """Send all that waits for the destination of *environ*, until the first refusal.

    For at most *timeout* seconds, by the recorder if one is there to do it. Raises sqlite3.Error
    or OSError where the history cannot be opened.
    """
    from stagewatch.exporters.recorder.sending.outbox import Outbox

    until = time.monotonic() + timeout
    goal = destination(environ)
    sent, reason = 0, ""
    with closing(connect(state)) as link:
        if goal.protocols:
            outbox = Outbox(link, goal, {**environ})
            outbox.hurry(until)
            before = outbox.pending()
            _ship(outbox, Turn(state, goal.key), until)
            after = outbox.pending()
            reason = outbox.refusal or f"not done within {timeout:g} s"
            sent = sum(
                max(count - after.get(signal, 0), outbox.sent[signal])
                for signal, count in before.items()
            )
        waiting = History(link).pending()
    pending = waiting.pop(goal.key, {})
    return Shipped(sent, pending, reason if pending else "", waiting)


def _ship(outbox: Outbox, turn: Turn, until: float) -> None:
    try:
        while not turn.take():
            # A recorder sends already; but it may be pausing, and spans may come twice.
            if not outbox.pending() or time.monotonic() >= until:
                return
            if "traces" in outbox.signals and not outbox.send(
                "traces", lambda: time.monotonic() < until
            ):
                return
            time.sleep(min(0.05, max(until - time.monotonic(), 0.0)))
        for signal in outbox.signals:
            if not outbox.send(signal, lambda: time.monotonic() < until):
                return
    except sqlite3.OperationalError as error:
        outbox.refusal = "the history cannot be written"
        report(error)
    finally:
        turn.give_back()
        outbox.close()
