"""What comes before reading the history: where it is, and that it knows all there is to know."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from stagewatch.config import Config, load_or_default
from stagewatch.exporters.journal import boot_id, pid_namespace
from stagewatch.exporters.recorder.start import ask_to_take_in, has_living_recorder
from stagewatch.exporters.recorder.watching import kernel
from stagewatch.exporters.state import state_directory
from stagewatch.history import History
from stagewatch.model import Doing, Live, Run
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


def lives(history: History, runs: Collection[Run], now: int) -> dict[str, Live]:
    """How those of *runs* that are under way were last seen, by run id, as far as they were.

    A recorder that does not answer may not have said yet that a run's process is dead: here it is
    looked at once more.
    """
    found: dict[str, Live] = {}
    for run in runs:
        live = history.live(run.run_id) if run.end is None else None
        if run.end is None and _is_dead(run):
            found[run.run_id] = structs.replace(
                live or Live(at=now),
                doing=Doing.DEAD, since=0, waits_for=None, progress=None, estimated_end=None,
                throughput=None, cpu_share=None, memory=None, threads=None,
            )  # fmt: skip
        elif live is not None:
            found[run.run_id] = live
    return found


def _is_dead(run: Run) -> bool:
    """Only of a process whose pid means here what it meant there anything is known."""
    if not run.ticks or (run.boot_id, run.pid_namespace) != (boot_id(), pid_namespace()):
        return False
    return kernel.tells() and not kernel.is_running(run.pid, run.ticks)


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
