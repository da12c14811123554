"""What is said of a run while it runs: that it is late or stuck, that a stage is slow.

What is due is judged in memory, at every look. Each is said once: a row in the history, a short
span of its own id under the run's, a log record; and an event on the run's span when that is made.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Container, Iterator, Sequence
from typing import Any, Final

from msgspec import Struct, structs
from msgspec.msgpack import decode, encode

from stagewatch import measures, semconv
from stagewatch.database import PENDING
from stagewatch.exporters.recorder.intake import rows
from stagewatch.exporters.recorder.intake.books import RUN, Batch, Books, Journal
from stagewatch.exporters.recorder.intake.increments import Increment
from stagewatch.exporters.recorder.judging.live import UnderWay
from stagewatch.exporters.recorder.judging.tracking import WINDOW_SECONDS, StageSeen
from stagewatch.exporters.recorder.judging.whereabouts import Place
from stagewatch.exporters.recorder.watching.outcome import Verdict
from stagewatch.measures import SECOND
from stagewatch.model import Doing, Escalation, Sla
from stagewatch.processors import sla
from stagewatch.records import Attributes, LogEmitted, RunStarted, SpanEnded

INFO, WARN, ERROR = 9, 13, 17
"""`opentelemetry._logs.SeverityNumber`."""
_SEVERITIES: Final = {INFO: "INFO", WARN: "WARN", ERROR: "ERROR"}
_LOUD: Final = frozenset({"critical", "error", "fatal", "emergency", "alert", "page"})
"""Severities of escalation steps that are errors in the logs; others are warnings."""
_AT_ONCE: Final = Escalation(0.0, "")
"""The deadline itself, where no declared step says so."""


class Due(Struct, frozen=True):
    """Something to be said of a run."""

    name: str
    key: str
    """Of the name and this there is one in a run."""
    text: str
    """For the log."""
    attributes: Attributes
    severity: int = WARN


Event = tuple[str, int, Attributes]
"""Name, time, attributes."""


# --- judging ----------------------------------------------------------------------------------


def due(run: UnderWay) -> list[Due]:
    """What is to be said now; pure."""
    late = of_lateness(run.opened, run.lateness(), run.place(), run.said)
    return [*late, *_stuck(run), *_slow_stages(run)]


def of_lateness(
    opened: RunStarted, lateness: float, place: Place, said: Container[tuple[str, str]]
) -> Iterator[Due]:
    """The highest step that is reached, unless it or a higher one was said; *said* as `said` has
    it. Those below it are not said after it."""
    if opened.deadline is None or lateness <= 0:
        return
    promised = opened.declared.sla if opened.declared is not None else Sla()
    steps = _steps(promised)
    reached = [index for index, step in enumerate(steps) if lateness >= step.after]
    told = [i for i, step in enumerate(steps) if (semconv.RUN_LATE, _key(step)) in said]
    if not reached or (told and told[-1] >= reached[-1]):
        return
    step = steps[reached[-1]]
    where = f", in {place.stage}" if place.stage else ""
    loudness = f": {step.severity}" if step.severity else ""
    yield Due(
        semconv.RUN_LATE,
        _key(step),
        f"{opened.pipeline} is late by {measures.duration_text(lateness)}{where}{loudness}",
        {
            semconv.RUN_DEADLINE: sla.iso_time(opened.deadline),
            semconv.RUN_LATENESS: lateness,
            semconv.ESCALATION: step.severity or None,
        },
        ERROR if step.severity.lower() in _LOUD else WARN,
    )


def _steps(promised: Sla) -> Sequence[Escalation]:
    steps = sorted(promised.escalation, key=lambda step: step.after)
    return steps if steps and steps[0].after <= 0 else [_AT_ONCE, *steps]


def _key(step: Escalation) -> str:
    return f"{step.after:g} {step.severity}".rstrip()


def _stuck(run: UnderWay) -> Iterator[Due]:
    times = [at for (name, _), at in run.said.items() if name == semconv.RUN_STUCK]
    is_said = len(times) > sum(name == semconv.RUN_RESUMED for name, _ in run.said)
    pipeline = run.opened.pipeline
    if run.doing is Doing.STUCK and not is_said:
        stacks = [member.sighting.stack for member in run.members if member.sighting.stack]
        yield Due(
            semconv.RUN_STUCK,
            str(len(times) + 1),
            f"{pipeline} has shown no sign of life since {sla.iso_time(run.since)}",
            {semconv.STACKTRACE: "\n\n".join(stacks) or None},
            ERROR,
        )
    # A recorder that has just come knows of no movement yet: to be still for it is no sign of life.
    elif (
        is_said
        and run.doing is Doing.RUNNING
        and (run.was_stuck or run.since > max(times, default=0))
    ):
        yield Due(semconv.RUN_RESUMED, str(len(times)), f"{pipeline} goes on", {}, INFO)


def _slow_stages(run: UnderWay) -> Iterator[Due]:
    if not run.stages:
        return
    speeds = None
    for stage in run.open_stages():
        declared = run.stages.get(stage.name)
        if declared is None:
            continue
        seconds = (run.uptime - stage.begin) / SECOND
        longest, least = declared.max_duration, declared.min_throughput
        if longest is not None and seconds > longest and _is_new(run, semconv.STAGE_LATE, stage):
            yield Due(
                semconv.STAGE_LATE,
                stage.name,
                f"{run.opened.pipeline}: stage {stage.name} takes longer than "
                f"{measures.duration_text(longest)}",
                {semconv.STAGE_NAME: stage.name, semconv.STAGE_LATENESS: seconds - longest},
            )
        if least is not None and seconds >= WINDOW_SECONDS:
            speeds = run.speeds() if speeds is None else speeds
            speed = speeds.get(stage.name)
            if speed is not None and speed < least and _is_new(run, semconv.STAGE_SLOW, stage):
                yield Due(
                    semconv.STAGE_SLOW,
                    stage.name,
                    f"{run.opened.pipeline}: stage {stage.name} makes {speed:.1f} records/s, "
                    f"not {least:g}",
                    {semconv.STAGE_NAME: stage.name, semconv.STAGE_THROUGHPUT: speed},
                )


def _is_new(run: UnderWay, name: str, stage: StageSeen) -> bool:
    return (name, stage.name) not in run.said


def of_death(key: str, pid: int, pipeline: str, verdict: Verdict) -> Due:
    """A process of a run that goes on has died; *key* of its journal."""
    return Due(
        semconv.PROCESS_DIED,
        key,
        f"{pipeline}: process {pid} died: {verdict.error_type}",
        {semconv.PROCESS_PID: pid, semconv.ERROR_TYPE: verdict.error_type},
    )


def of_gap(pipeline: str, seconds: float, now: int) -> Due:
    """For so long nobody watched the run."""
    return Due(
        semconv.TELEMETRY_GAP,
        str(now),
        f"{pipeline} was not watched for {measures.duration_text(seconds)}",
        {semconv.RUN_UNWATCHED: seconds},
    )


# --- saying; all in the caller's transaction --------------------------------------------------


def circumstances(run: UnderWay) -> Attributes:
    """What stands on everything that is said of a run: where it is, and what it has done."""
    return {
        **of_place(run.place()),
        semconv.RUN_RECORDS_IN: run.counts.records_in,
        semconv.RUN_RECORDS_OUT: run.counts.records_out,
    }


def of_place(place: Place) -> Attributes:
    """As attributes."""
    return {semconv.RUN_STAGE: place.stage, semconv.RUN_OPERATION: place.operation}


def said(link: sqlite3.Connection, run: int) -> dict[tuple[str, str], int]:
    """When what was said of the run with the row id *run*, by name and key."""
    found = link.execute("select name, key, at from notice where run = ?", (run,))
    return {(name, key): at for name, key, at in found}


def events(link: sqlite3.Connection, run: int) -> list[Event]:
    """For the run's span."""
    found = link.execute(
        "select name, at, attributes from notice where run = ? order by at", (run,)
    )
    return [
        (semconv.EVENT_PREFIX + name.replace(" ", "."), at, decode(attributes))
        for name, at, attributes in found
    ]


def announce(books: Books, journal: Journal, opened: RunStarted) -> None:
    """The run is under way: a span, so that its trace can be opened; unless that was said."""
    if rows.has_span(books.link, journal.run, span_id(opened.run_id, semconv.RUN_STARTED, "")):
        return
    attributes = {
        semconv.RUN_ATTEMPT: opened.attempt,
        semconv.RUN_SCHEDULED_TIME: opened.scheduled and sla.iso_time(opened.scheduled),
        semconv.RUN_DEADLINE: opened.deadline and sla.iso_time(opened.deadline),
    }
    batch = Batch()
    _add_span(books, journal, opened, semconv.RUN_STARTED, "", opened.start, attributes, batch)
    books.write(journal, batch)


def say(
    books: Books, journal: Journal, opened: RunStarted, due: Due, common: Attributes, at: int
) -> None:
    """Say it, unless it has been said. *journal* is that of the process that opened the run."""
    attributes = _known({**common, **due.attributes})
    if not write_down(books.link, journal.run, structs.replace(due, attributes=attributes), at):
        return
    batch = Batch()
    _add_span(books, journal, opened, due.name, due.key, at, attributes, batch)
    if "logs" in books.signals:
        batch.recorded["logs"] += 1
        record = LogEmitted(
            at, at, due.severity, _SEVERITIES[due.severity], due.text, opened.trace_id,
            opened.span_id, 0, _named(opened, attributes),
            semconv.EVENT_PREFIX + due.name.replace(" ", "."),
        )  # fmt: skip
        rows.add_log(books.link, books.destination, journal.resource, _scope(books), record)
    books.write(journal, batch)


def write_down(link: sqlite3.Connection, run: int, due: Due, at: int) -> bool:
    """In the history alone, from where it becomes an event on the run's span, if that is still to
    come. False: it is there already."""
    row = (run, due.name, due.key, at, encode(_known(due.attributes)))
    return link.execute("insert or ignore into notice values(?, ?, ?, ?, ?)", row).rowcount == 1


def say_gap(books: Books, journal: Journal, opened: RunStarted, seconds: float, now: int) -> None:
    """That nobody watched the run for so long before *now*; it counts, too."""
    lost, since = [Increment(semconv.UNWATCHED, (), seconds)], now - round(seconds * SECOND)
    resource = books.interned.own_resource()
    books.totals.add(lost, None, resource, now, since=since)
    say(books, journal, opened, of_gap(opened.pipeline, seconds, now), {}, now)


def span_id(run_id: str, name: str, key: str) -> bytes:
    """Always the same for the same notice, and no other span's."""
    return hashlib.blake2b(f"{run_id} {name} {key}".encode(), digest_size=8).digest()


def _add_span(
    books: Books, journal: Journal, opened: RunStarted, name: str, key: str, at: int,
    attributes: Attributes, batch: Batch,
) -> None:  # fmt: skip
    if not opened.sampled or "traces" not in books.signals:
        return
    span = SpanEnded(
        name, opened.trace_id, span_id(opened.run_id, name, key), opened.span_id, at, at, 0, 0,
        None, 0, _named(opened, attributes), trace_state=opened.trace_state,
    )  # fmt: skip
    batch.recorded["traces"] += 1
    batch.spans.append(
        rows.span_values(
            span, journal.run, RUN, PENDING, books.destination, journal.resource, _scope(books)
        )
    )


def _scope(books: Books) -> int:
    return books.interned.scope(semconv.SCOPE, None, semconv.SCHEMA_URL)


def _named(opened: RunStarted, attributes: Attributes) -> dict[str, Any]:
    return _known(
        {
            semconv.PIPELINE_NAME: opened.pipeline,
            semconv.RUN_ID: opened.run_id,
            **attributes,
        }
    )


def _known(attributes: Attributes) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}
