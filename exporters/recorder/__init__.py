"""The process beside the jobs: journals to history, history to OTLP.

A job knows `start`; what `spawn` starts is `__main__`, a `loop` over `watching` (processes, seen
from outside), `intake` (their journals into the history), `judging` (runs under way, and deaths)
and `sending`. `resident` and `indoors` do the same inside a job or a command, where no such process
can be had.
"""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, whose import costs a short command more than all of this
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def run_in_process(
    state: Path, room: Path, environ: Mapping[str, str], deadline_seconds: float
) -> None:
    """What a recorder would do, where none can outlive this process: see `indoors.run_in_process`.

    For the last moments of a process; never raises an Exception.
    """
    from stagewatch.exporters.recorder import resident

    if not resident.has_memory():
        return
    from stagewatch.exporters.recorder import indoors

    indoors.run_in_process(state, room, environ, deadline_seconds)


def take_in_all(state: Path, room: Path) -> bool:
    """Bring the history up to date for who is about to read it: see `indoors.take_in_all`."""
    from stagewatch.exporters.recorder import indoors

    return indoors.take_in_all(state, room)
