"""The recorder's work done by another process: one that nothing outlives, or one that reads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from selectors import DefaultSelector

from stagewatch.exporters.journal import start_ticks
from stagewatch.exporters.recorder import resident
from stagewatch.exporters.recorder.door import Door, ready
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.start import ask_to_take_in
from stagewatch.exporters.recorder.watching.watch import Watch, journals
from stagewatch.exporters.state import destination, remembered_settings
from stagewatch.safety import guarded


@guarded
def run_in_process(
    state: Path, room: Path, environ: Mapping[str, str], deadline_seconds: float
) -> None:
    """Take in all journals of *room*, this process's as its last word, and send what is pending.

    Sending ends at the first refusal, else after *deadline_seconds*.
    """
    from stagewatch.exporters.recorder.sending.sender import ship

    until = time.monotonic() + deadline_seconds
    thread = resident.installed
    if thread is not None and not thread.end(deadline_seconds):
        return
    if not take_in(state, room, environ, lambda watch, _: watch.end_ours(start_ticks())):
        ask_to_take_in(room, deadline_seconds)
        return
    if thread is not None and not thread.has_sent(max(until - time.monotonic(), 0.0)):
        return
    if destination(environ).protocols:
        ship(state, environ, max(until - time.monotonic(), 0.0))


def take_in_all(state: Path, room: Path) -> bool:
    """Bring the history up to date with all journals of *room*, for who is about to read it.

    By its recorder if it has one, which may be just starting; else here and now. False if neither
    could. Raises sqlite3.Error or OSError where the history cannot be written.
    """
    if ask_to_take_in(room):
        return True
    environ = remembered_settings(room, os.environ)
    if environ is None:
        return False
    return take_in(state, room, environ, bury)


def bury(watch: Watch, intake: Intake) -> None:
    """For `take_in`: close what the dead left."""
    watch.bury()


def take_in(
    state: Path,
    room: Path,
    environ: Mapping[str, str],
    finish: Callable[[Watch, Intake], None],
) -> bool:
    """Take in all journals of *room*, then *finish*; False if another process is at it.

    Nothing is sent. Raises sqlite3.Error or OSError where the history cannot be written.
    """
    with DefaultSelector() as selector, closing(Door(room, selector)) as door:
        if not door.try_life():
            return False
        intake = Intake(state, environ, sends=False)
        watch = Watch(room, intake, selector)
        try:
            watch.find(journals(room))
            watch.died(*ready(selector, 0))
            watch.read(everything=True)
            finish(watch, intake)
        finally:
            watch.close()
            intake.stop(0.0)
    return True
