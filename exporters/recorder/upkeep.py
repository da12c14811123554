"""What a recorder does besides watching: sign of life, gaps, neighbours, retention."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.neighbours import Neighbours
from stagewatch.exporters.recorder.presence import SHORTEST_GAP, Presence
from stagewatch.exporters.recorder.watching.watch import Watch
from stagewatch.safety import guarded

_PRUNE_SECONDS: Final = 3600.0


class Upkeep:
    """Of the recorder of *room*. OSError where its sign of life cannot be left."""

    def __init__(
        self, state: Path, room: Path, environ: Mapping[str, str], intake: Intake, watch: Watch
    ) -> None:
        self._intake = intake
        self._watch = watch
        self._presence = Presence(room)
        self._absence = self._presence.absence()
        self._pruned = float("-inf")
        self._neighbours = Neighbours(state, room, environ)

    def do(self) -> None:
        """The first time when all processes of the room have been found."""
        self._presence.show()
        with guarded:
            self._own_up()
        with guarded:
            self._prune(time.monotonic())
        if self._neighbours.look_after():
            self._intake.wake()

    def _prune(self, now: float) -> None:
        if now - self._pruned > _PRUNE_SECONDS:
            self._pruned = now
            self._intake.prune(time.time_ns())

    def _own_up(self) -> None:
        """Say how long nobody watched what lives; once."""
        absence, self._absence = self._absence, 0.0
        if absence < SHORTEST_GAP:
            return
        for key, age in self._watch.ages().items():
            if min(absence, age) >= SHORTEST_GAP:
                self._intake.unwatched(key, min(absence, age), time.time_ns())
