"""The recorder's loop: sleeps on pidfds and the socket, polls memory, and leaves when idle."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from selectors import BaseSelector
from typing import Final

from stagewatch.config import Settings
from stagewatch.exporters.recorder.door import Caller, Door, ready
from stagewatch.exporters.recorder.watching.watch import Intake, Watch, journals
from stagewatch.safety import guarded

_logger = logging.getLogger(__name__)

_NAP: Final = 1.0
"""What is new waits so long for company, for most of what it costs is to look, and to write at all.
Deaths, callers and who asks wake us."""
_SHORT_NAP: Final = 0.1
_MUCH: Final = 1 << 20
"""Bytes of journals after which more of them are likely to come at once."""
_SCAN_SECONDS: Final = 2.0 if hasattr(os, "pidfd_open") else 1.0
"""Without pidfds a scan is what finds the dead."""
_PENDING_SECONDS: Final = 24 * 3600.0
"""How long data that cannot be sent keeps an idle recorder alive."""


class Recorder:
    """A watch with a door and a clock. Only for who holds the room's life."""

    def __init__(
        self,
        room: Path,
        intake: Intake,
        door: Door,
        watch: Watch,
        selector: BaseSelector,
        upkeep: Callable[[], object] = lambda: None,
    ) -> None:
        """*upkeep*: what else is to be done when all have been found, and now and then."""
        self.is_stopped = False
        self._room = room
        self._intake = intake
        self._door = door
        self._watch = watch
        self._selector = selector
        self._upkeep = upkeep
        self._asking: list[Caller] = []

    def run(self, callers: Sequence[Caller], settings: Settings) -> None:
        """Until `is_stopped`, or until there was nothing to do for its ``recorder_idle``."""
        self._serve(callers)
        self._go_round()
        interval = max(settings.watch_interval, _SHORT_NAP)
        scanned = ticked = busy = time.monotonic()
        nap = _SHORT_NAP
        while not self.is_stopped:
            due = max(ticked + interval - time.monotonic(), 0.0)
            most = min(nap, due) if self._watch.followers else nap
            self._attend(ready(self._selector, most))
            now = time.monotonic()
            if now - scanned >= _SCAN_SECONDS:
                if self._is_out_of_place():
                    break
                scanned = now
                self._go_round()
            nap = _SHORT_NAP if self._watch.read() > _MUCH else _NAP
            self._answer()
            if self._watch.followers:
                busy = now
                if now - ticked >= interval:
                    ticked = now
                    self._tick()
            elif self._may_leave(now - busy, settings.recorder_idle):
                return
        self._watch.read(everything=True)

    def _is_out_of_place(self) -> bool:
        """Whether it is for another to go on: of the next version, or in the room made anew."""
        with guarded:
            if self._intake.is_outdated():
                _logger.warning("stagewatch: a newer stagewatch uses this history; leaving to it")
                return True
        return not self._door.is_in_place()

    def _go_round(self) -> None:
        with guarded:
            self._scan()
            self._watch.read()
            self._upkeep()

    def _attend(self, descriptors: Sequence[int]) -> None:
        # Sorted out first: a caller's pidfd may get the number of a connection that is over.
        dead = [descriptor for descriptor in descriptors if self._watch.is_pidfd(descriptor)]
        if any(self._door.is_ours(descriptor) for descriptor in descriptors):
            self._serve(self._door.callers())
        if dead:
            self._watch.died(*dead)

    def _serve(self, callers: Sequence[Caller]) -> None:
        for caller in callers:
            if caller.asks is not None:
                self._asking.append(caller)
            else:
                self._watch.greet(caller)

    def _scan(self) -> None:
        """Find who never called. Callers go first, and again: the dead may have left a pidfd."""
        found = journals(self._room)
        self._serve(self._door.callers())
        self._watch.find(found)
        self._serve(self._door.callers())
        self._watch.bury()

    def _answer(self) -> None:
        if not self._asking:
            return
        with guarded:
            self._scan()
        # A death that is known to the kernel by now belongs into the answer.
        while dead := [fd for fd in ready(self._selector, 0) if self._watch.is_pidfd(fd)]:
            self._watch.died(*dead)
        self._watch.read(everything=True)
        self._tick()
        with guarded:
            self._intake.note(time.time_ns())
        asking, self._asking = self._asking, []
        for caller in asking:
            caller.answer()

    def _tick(self) -> None:
        with guarded:
            self._intake.tick(self._watch.sightings(), time.time_ns())

    def _may_leave(self, idle: float, idle_seconds: float) -> bool:
        if idle < idle_seconds or self._door.has_visitors():
            return False
        if idle < _PENDING_SECONDS and self._is_busy():
            return False
        self._serve(self._door.leave())
        self._scan()
        if not (self._watch.followers or self._asking or self._door.has_visitors()):
            return True
        self._serve(self._door.reopen())
        return False

    def _is_busy(self) -> bool:
        with guarded:
            return self._intake.is_busy()
        return False
