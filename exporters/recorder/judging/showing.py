"""What is written down of runs under way: records so far, how they look, what the metrics show."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence

from stagewatch import semconv
from stagewatch.exporters.page import OpenThread
from stagewatch.exporters.recorder.intake import rows
from stagewatch.exporters.recorder.intake.books import Journal
from stagewatch.exporters.recorder.intake.closing import known_records
from stagewatch.exporters.recorder.intake.increments import Increment
from stagewatch.exporters.recorder.judging.live import Counts, UnderWay, total
from stagewatch.exporters.recorder.judging.whereabouts import cells, open_operation, thread_in
from stagewatch.measures import SECOND
from stagewatch.model import Doing, Live, LiveStage

_Sides = tuple[int | None, int | None]
"""Records in and out."""


def note_records(link: sqlite3.Connection, run: UnderWay) -> None:
    """Set the run's records to what is taken in and what the pages show beyond it."""
    rows.sum_records(link, run.number)
    sides: list[int | None] = [None, None]
    rejected = 0
    by_stage = rows.stage_records(link, run.number) if run.expected else {}
    for member in run.members:
        for name, cell in cells(member.journal, member.sighting.page):
            known = known_records(cell)
            for index, count in enumerate(known):
                if count is not None:
                    sides[index] = (sides[index] or 0) + count
            rejected += cell["records_rejected"]
            if name in run.expected:
                by_stage[name] = _plus(by_stage.get(name, (None, None)), known)
    so_far = rows.add_records(link, run.number, sides[0], sides[1], rejected)
    done = {
        name: (records_in if out is None else out) or 0
        for name, (records_in, out) in by_stage.items()
    }
    run.count(Counts(*so_far, done))


def _plus(left: _Sides, right: _Sides) -> _Sides:
    came, went = (a if b is None else (a or 0) + b for a, b in zip(left, right, strict=True))
    return came, went


def picture(run: UnderWay) -> Live:
    """As it is now."""
    stages: list[LiveStage] = []
    operation: tuple[str | None, int | None] = (None, None)
    ago = run.now - time.monotonic_ns()
    for key, journal, sighting in run.members:
        threads = list(sighting.page.threads())
        stages += _stages_of(run, key, journal, threads, ago)
        for thread in threads:
            if thread.operation and not any(thread.stages):
                operation = open_operation(journal, thread, ago)
    processes = [process.vitals for process in run.by_pid()]
    vitals = [one for one in processes if one is not None]
    return Live(
        at=run.now,
        doing=run.doing,
        waits_for=run.reason if run.doing is Doing.WAITING else None,
        since=run.since,
        stages=tuple(sorted(stages, key=lambda stage: stage.start)),
        operation=operation[0],
        operation_start=operation[1],
        progress=run.progress(),
        estimated_end=run.estimated_end(),
        throughput=run.rate.speed(),
        cpu_seconds=total(one.cpu_seconds for one in vitals),
        cpu_share=run.share,
        memory=total(one.memory for one in vitals),
        memory_peak=run.memory_peak or None,
        processes=sum(1 if one is None else one.processes for one in processes),
        threads=total(one.threads for one in vitals),
        read_bytes=total(one.read_bytes for one in vitals),
        written_bytes=total(one.written_bytes for one in vitals),
    )


def gauges(run: UnderWay, picture: Live) -> list[Increment]:
    """What the metrics show of it."""
    found = [
        Increment(semconv.HEARTBEAT, (), run.now / SECOND),
        Increment(semconv.LAST_ACTIVITY, (), run.last_activity() / SECOND),
    ]
    if run.opened.deadline is not None:
        found.append(Increment(semconv.LATENESS, (), run.lateness()))
    if picture.progress is not None:
        found.append(Increment(semconv.PROGRESS, (), picture.progress))
    if picture.estimated_end is not None:
        found.append(Increment(semconv.ESTIMATED_END, (), picture.estimated_end / SECOND))
    peaks: dict[str, int] = {}
    for stage in picture.stages:
        if stage.memory_peak is not None:
            peaks[stage.name] = max(peaks.get(stage.name, 0), stage.memory_peak)
    for metric, values in (
        (semconv.THROUGHPUT, run.speeds()),
        (semconv.STAGE_MEMORY, peaks),
    ):
        for name, value in values.items():
            found.append(Increment(metric, ((semconv.STAGE_NAME, name),), value))
    return found


def _stages_of(
    run: UnderWay, key: str, journal: Journal, threads: Sequence[OpenThread], ago: int
) -> Iterator[LiveStage]:
    process = run.processes[key]
    for span_id, stage in process.stages.items():
        started = journal.stages[span_id].started
        thread = thread_in(threads, started.cell)
        operation = open_operation(journal, thread, ago) if thread else (None, None)
        records_in, records_out = known_records(stage.cell) if stage.cell else (None, None)
        declared = run.stages.get(stage.name)
        yield LiveStage(
            name=stage.name,
            span_id=span_id,
            parent_span_id=started.parent_span_id,
            start=started.start,
            pid=journal.process.pid if journal.process else 0,
            operation=operation[0],
            operation_start=operation[1],
            records_in=records_in,
            records_out=records_out,
            records_rejected=stage.cell["records_rejected"] if stage.cell else 0,
            throughput=stage.rate.speed(),
            cpu_seconds=process.stage_cpu(span_id, None),
            memory_peak=process.vitals.memory_peak if process.vitals else None,
            expected_records=declared.expected_records if declared else None,
        )
