"""The rooms of other PID namespaces with the same destination: who closes what they left?

A container that is killed takes its recorder along. Its journals stay in the state directory that
it shared, and nobody may ever come back to that room. So each recorder looks into the rooms whose
recorder is dead, and takes in what dead processes left there. A room's life is locked while it is
looked after, so that no two do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewatch.exporters.journal import page_path
from stagewatch.exporters.life import is_held
from stagewatch.exporters.page import PageReader, Words
from stagewatch.exporters.recorder.indoors import bury, take_in
from stagewatch.exporters.recorder.start import has_living_recorder
from stagewatch.exporters.recorder.watching.watch import journals
from stagewatch.safety import report

_AGAIN_SECONDS: Final = 60.0
_EMPTY_SECONDS: Final = 3600.0
_SHARE: Final = 500.0
"""To look takes no more than one part in so many of the time, however many rooms there are."""


class Neighbours:
    """Those of *room*, for its recorder."""

    def __init__(self, state: Path, room: Path, environ: Mapping[str, str]) -> None:
        self._state = state
        self._room = room
        self._environ = environ
        self._due = 0.0
        self._tried: dict[str, float] = {}
        """Dead by their pages, but not closed: another host's, or the history was busy."""

    def look_after(self) -> bool:
        """Close the processes that died with their recorder; whether there were any."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._tried = {k: at for k, at in self._tried.items() if now - at < _AGAIN_SECONDS}
        found = False
        for room in self._room.parent.glob(f"{self._room.name.rpartition('-')[0]}-*"):
            try:
                if room != self._room and not has_living_recorder(room):
                    found |= self._visit(room, now)
            except Exception as error:
                report(error)
        took = time.monotonic() - now
        self._due = now + min(_SHARE * took, _AGAIN_SECONDS)
        return found

    def _visit(self, room: Path, now: float) -> bool:
        found = journals(room)
        if not found:
            _clear(room)
        dead = [key for key in found if key not in self._tried and _is_dead(room, key)]
        if not dead:
            return False
        self._tried |= dict.fromkeys(dead, now)
        return take_in(self._state, room, self._environ, bury)


def _clear(room: Path) -> None:
    """Delete a room that nobody has come to for long: containers make new ones all the time."""
    if time.time() - room.stat().st_mtime < _EMPTY_SECONDS or any(room.glob("*.page")):
        return
    for name in ("sock", "start", "seen", "settings", "alive"):
        (room / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody has just come
        room.rmdir()


def _is_dead(room: Path, key: str) -> bool:
    """Whether a process held its page and no longer does; after an exec it holds another's."""
    try:
        with open(page_path(room, key), "rb", buffering=0) as file:
            if not PageReader(file.read()).word(Words.HELD):
                return False
        process = key.rpartition(".")[0]
        return not any(is_held(path) for path in room.glob(f"{process}.*.page"))
    except (OSError, ValueError):
        return False
