"""`stagewatch doctor`: is everything set up right, and if not, what is to be done?

Keys of ``stagewatch doctor --json``: ``healthy`` and ``checks``, each with ``level`` (``ok``,
``warning``, ``trouble``), ``topic`` and ``text``. Keys are only ever added.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.text import Text

from stagewatch import checks, config, reading, spark_checks, values
from stagewatch.checks import Check, Level
from stagewatch.database import FILE
from stagewatch.exporters import state
from stagewatch.exporters.journal import pid_namespace
from stagewatch.exporters.recorder.start import dies_with_us, has_living_recorder, no_room
from stagewatch.exporters.recorder.watching import kernel
from stagewatch.figures import items, size
from stagewatch.history import open_history
from stagewatch.model import DeclaredStage, Sla
from stagewatch.semconv import REASON, SIGNAL, TELEMETRY_DROPPED
from stagewatch.system import LINUX

SIGNS: Final = {
    Level.OK: ("✓", "green"),
    Level.WARNING: ("!", "yellow"),
    Level.TROUBLE: ("✗", "red"),
}
_LITTLE_SPACE: Final = 100_000_000
_RECENTLY: Final = 86400
_INTERNAL: Final = frozenset({"STAGEWATCH_RUN"})


def examine(environ: Mapping[str, str], directory: Path) -> list[Check]:
    """Everything that can be found out about jobs started with `environ` in `directory`.

    Takes at most about two seconds longer than the backend takes to answer.
    """
    here = reading.place(environ, directory)
    goal = state.destination(environ)
    looks: list[tuple[str, Callable[[], Iterable[Check]]]] = [
        ("versions", checks.versions),
        ("system", _system),
        ("configuration", lambda: _configuration(here)),
        ("configuration", lambda: _without_effect(here)),
        ("settings", lambda: _variables(environ)),
        ("settings", lambda: checks.settings(environ)),
        ("distro", lambda: checks.launcher(environ)),
        ("libraries", lambda: checks.instrumentors(environ)),
        ("spark", lambda: spark_checks.spark(environ)),
        ("state", lambda: _state(here)),
        ("recorder", lambda: _recorder(here, goal)),
        ("backend", lambda: checks.backend(goal, environ)),
        ("telemetry", lambda: _telemetry(here, goal)),
    ]
    found: list[Check] = []
    for topic, look in looks:
        try:
            found += look()
        except Exception as error:  # whatever is broken, the other checks still help
            text = f"could not be looked at ({type(error).__name__})"
            found.append(Check(Level.TROUBLE, topic, text))
    return found


def is_trouble(found: Sequence[Check]) -> bool:
    return any(check.level is Level.TROUBLE for check in found)


def checks_text(found: Sequence[Check]) -> Text:
    """A line each, not folded: a fault can be searched for as it stands."""
    width = max(len(check.topic) for check in found)
    lines = []
    for check in found:
        sign, style = SIGNS[check.level]
        parts: list[tuple[str, str]] = [(sign, style), (f" {check.topic:{width}}  ", "dim")]
        lines.append(Text.assemble(*parts, check.text))
    return Text("\n").join(lines)


def checks_json(found: Sequence[Check]) -> dict[str, Any]:
    return {
        "healthy": not is_trouble(found),
        "checks": [
            {"level": check.level.value, "topic": check.topic, "text": check.text}
            for check in found
        ],
    }


# --- what we look at --------------------------------------------------------------------------


def _system() -> Iterator[Check]:
    """What this system does not tell; nothing where it tells all."""
    if not LINUX:
        text = "macOS tells a parent alone how a process ended: start it with `stagewatch run`; "
        text += "else its own last word counts, and who is killed or calls sys.exit is unknown"
        yield Check(Level.OK, "system", text)
        text = "macOS shows no I/O and no peak memory of a process that runs: none is called stuck"
        yield Check(Level.OK, "system", text)
    if kernel.reader() is None:
        missing = "/proc" if LINUX else "psutil"
        text = f"{missing} is missing: CPU, memory and I/O of jobs that run are not seen"
        yield Check(Level.WARNING if LINUX else Level.TROUBLE, "system", text)


def _configuration(here: reading.Place) -> Iterator[Check]:
    for fault in here.faults:
        yield Check(Level.TROUBLE, "configuration", fault)
    if here.faults:
        return
    if here.config.file is None:
        text = "no stagewatch.yaml here or above: pipelines are named after their scripts"
    else:
        names = ", ".join(here.config.pipelines) or "none"
        text = f"{here.config.file}, pipelines declared: {names}"
    yield Check(Level.OK, "configuration", text)
    if sys.version_info < (3, 12):
        for pipeline in here.config.pipelines.values():
            late = [name for name, stage in pipeline.stages.items() if _is_in_script(name, stage)]
            if late:
                text = f"{pipeline.name}: the script's own functions ({', '.join(late)}) may miss "
                text += "their first calls on Python 3.11 under a debugger or coverage"
                yield Check(Level.OK, "configuration", text)


def _without_effect(here: reading.Place) -> Iterator[Check]:
    """What is declared and cannot come to anything; a remark, the rest holds all the same."""
    is_told = here.config.settings.scheduled_time is not None
    for pipeline in here.config.pipelines.values():
        promised, usual = pipeline.sla, Sla()
        has_time = pipeline.schedule is not None or is_told
        has_deadline = promised.deadline is not None and has_time
        remarks = []
        if promised.deadline is not None and not has_time:
            remarks.append(
                "sla.deadline counts from the scheduled time: it needs a schedule or "
                "STAGEWATCH_SCHEDULED_TIME (did you mean max_duration?)"
            )
        if promised.escalation and not has_deadline and promised.max_duration is None:
            remarks.append("sla.escalation needs a deadline that counts, or a max_duration")
        for name in ("start_grace", "max_age"):
            is_declared = getattr(promised, name) != getattr(usual, name)
            if is_declared and pipeline.schedule is None:
                remarks.append(f"sla.{name} needs a schedule")
        if judged := [n for n, s in pipeline.stages.items() if s.max_error_ratio is not None]:
            remarks.append(f"max_error_ratio ({', '.join(judged)}) is not judged yet")
        if fresh := [n for n, d in pipeline.datasets.items() if d.freshness is not None]:
            remarks.append(f"freshness ({', '.join(fresh)}) is not judged yet")
        for remark in remarks:
            text = f"{pipeline.name}: without effect: {remark}"
            yield Check(Level.WARNING, "configuration", text)


def _is_in_script(name: str, stage: DeclaredStage) -> bool:
    """A function, not a method: classes of the script are never too late."""
    function = stage.function or name
    return ":" not in function and "." not in function


def _variables(environ: Mapping[str, str]) -> Iterator[Check]:
    """``STAGEWATCH_*`` that are set; faults in their values stand under configuration."""
    known = {parameter.variable for parameter in config.parameters()}
    for variable in sorted(name for name in environ if name.startswith("STAGEWATCH_")):
        if variable in known:
            yield Check(Level.OK, "settings", f"{variable}={values.shown(environ[variable])}")
        elif variable not in _INTERNAL:
            close = values.nearest(variable, sorted(known))
            hint = f"; did you mean {close}?" if close else ""
            text = f"{variable} is not a setting we know{hint}"
            yield Check(Level.WARNING, "settings", text)


def _state(here: reading.Place) -> Iterator[Check]:
    wanted = here.config.settings.state_dir
    if here.state != wanted:
        text = f"{wanted} cannot be used; jobs write to {here.state}"
        yield Check(Level.TROUBLE, "state", text)
    elif not os.access(here.state, os.W_OK | os.X_OK):
        yield Check(Level.TROUBLE, "state", f"{here.state} cannot be written")
    else:
        kept = sum(path.stat().st_size for path in here.state.glob(f"{FILE}*"))
        yield Check(Level.OK, "state", f"{here.state} can be written; history: {size(kept)}")
    room = os.statvfs(here.state)
    if (free := room.f_bavail * room.f_frsize) < _LITTLE_SPACE:
        text = f"only {free // 1_000_000} MB are free there; what finds no room is dropped"
        yield Check(Level.WARNING, "state", text)
    if here.state.stat().st_mode & 0o077:
        text = f"{here.state} is open to other users; chmod 700 would close it"
        yield Check(Level.WARNING, "state", text)


def _recorder(here: reading.Place, goal: state.Destination) -> Iterator[Check]:
    ours = here.state / "rooms" / f"{goal.key}-{pid_namespace()}"
    if dies_with_us():
        text = "cannot outlive a job here (PID 1 of a container, or a subreaper): a thread of the "
        text += "job sends, and the rest goes at its end, waiting STAGEWATCH_EXIT_WAIT at most"
        yield Check(Level.OK, "recorder", text)
    elif has_living_recorder(ours):
        yield Check(Level.OK, "recorder", "is alive")
    elif reason := no_room():
        yield Check(Level.WARNING, "recorder", f"{reason}: a thread of each job sends")
    else:
        yield Check(Level.OK, "recorder", "none runs just now; the next job starts it")
    for room in reading.rooms(here.state):
        if reading.has_journals(room) and not has_living_recorder(room):
            text = f"journals wait in {room}, and no recorder lives; "
            text += "`stagewatch ship` or the next job with the same settings takes them in"
            yield Check(Level.WARNING, "recorder", text)
    log = here.state / "recorder.log"
    try:
        written = log.stat()
    except OSError:
        return
    if written.st_size and time.time() - written.st_mtime < _RECENTLY:
        text = f"reported errors of its own in the last day, see {log}"
        yield Check(Level.WARNING, "recorder", text)


def _telemetry(here: reading.Place, goal: state.Destination) -> Iterator[Check]:
    if not (here.state / FILE).exists():
        yield Check(Level.OK, "telemetry", "no history yet: nothing ran")
        return
    try:
        with open_history(here.state, readonly=True) as opened:
            runs = opened.runs(limit=1)
            pending = opened.pending()
            dropped = opened.counters(TELEMETRY_DROPPED.name)
    except sqlite3.Error as error:
        yield Check(Level.TROUBLE, "telemetry", f"the history cannot be read: {error}")
        return
    for key, signals in sorted(pending.items()):
        if key == goal.key:
            yield Check(Level.WARNING, "telemetry", f"pending: {items(signals)}")
        else:
            text = f"pending for another backend ({key}): {items(signals)}"
            yield Check(Level.WARNING, "telemetry", text)
    if goal.endpoints and goal.key not in pending:
        yield Check(Level.OK, "telemetry", "nothing is pending")
    for point, count in sorted(dropped.items()):
        if count:
            of = dict(point)
            text = f"dropped so far: {items({of.get(SIGNAL, 'items'): round(count)})}"
            text += f", because of {of[REASON]}" if REASON in of else ""
            yield Check(Level.WARNING, "telemetry", text)
    if not any(dropped.values()):
        yield Check(Level.OK, "telemetry", "nothing was ever dropped")
    if runs:
        yield Check(
            Level.OK, "telemetry", f"newest run: {runs[0].run_id[:8]} of {runs[0].pipeline}"
        )
