"""What comes before reading the history: where it is, and that it knows all there is to know."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from stagewatch.config import Config, load_or_default
from stagewatch.exporters.recorder.start import ask_to_take_in, has_living_recorder
from stagewatch.exporters.state import state_directory
from stagewatch.safety import guarded

PATIENCE: Final = 2.0
"""Seconds that recorders get to take in their journals before the history is read as it is."""
_LAST_SECONDS: Final = 0.5
_NAP_SECONDS: Final = 0.02


class Place(Struct, frozen=True):
    """Where this environment's jobs leave their telemetry."""

    config: Config
    faults: tuple[str, ...]
    """Lines that say what is wrong with the configuration."""
    state: Path


def place(environ: Mapping[str, str], directory: Path) -> Place:
    """As a job does that is started in `directory`: makes the state directory if need be."""
    config, error = load_or_default(environ, directory)
    state = state_directory(
        config.settings.state_dir, is_default="STAGEWATCH_STATE_DIR" not in environ
    )
    return Place(config, error.faults if error else (), state)


def rooms(state: Path) -> list[Path]:
    """The rooms of all recorders that ever worked for this state directory."""
    try:
        return sorted(path for path in (state / "rooms").iterdir() if path.is_dir())
    except OSError:
        return []


def has_journals(room: Path) -> bool:
    """Whether anything in the room waits to be taken in, or belongs to a process that lives."""
    try:
        return any(path.suffix in (".journal", ".page") for path in room.iterdir())
    except OSError:
        return False


def take_in(state: Path) -> bool:
    """Let the history catch up with all journals: by their recorders, or here where none lives.

    False if a recorder lives that did not answer: waits `PATIENCE` seconds for them. Raises
    nothing: what cannot be taken in stays for later.
    """
    until = time.monotonic() + PATIENCE
    is_complete = True
    for room in rooms(state):
        with guarded:
            is_complete &= _take_in(state, room, until)
    return is_complete


def _take_in(state: Path, room: Path, until: float) -> bool:
    while True:
        left = until - time.monotonic()
        if has_living_recorder(room):
            if ask_to_take_in(room, max(left, _LAST_SECONDS)):
                return True
        elif not has_journals(room):
            return True
        else:
            from stagewatch.exporters.recorder import take_in_all

            # Where nobody can, nobody will answer later either.
            if take_in_all(state, room) or not has_living_recorder(room):
                return True
        if left <= 0:
            return False
        time.sleep(_NAP_SECONDS)  # one that is just coming or leaving does so in moments
