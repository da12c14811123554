"""The death certificate: what a process left open is ended here, with the ids it was begun with."""

from __future__ import annotations

import os
import time
from typing import Final

from msgspec import Struct

from stagewatch import measures, semconv
from stagewatch.database import LOCAL, PENDING
from stagewatch.exporters.measurements import pending
from stagewatch.exporters.page import PageReader, Words
from stagewatch.exporters.recorder.intake import closing, increments, rows
from stagewatch.exporters.recorder.intake.books import (
    RUN,
    STAGE,
    Batch,
    Books,
    Journal,
    OpenStage,
    exiting_of_successor,
    has_sibling,
)
from stagewatch.exporters.recorder.intake.increments import Increment
from stagewatch.exporters.recorder.intake.taking import count_stage, take
from stagewatch.exporters.recorder.judging import notices, testimony
from stagewatch.exporters.recorder.judging.live import UnderWay
from stagewatch.exporters.recorder.judging.testimony import Testimony
from stagewatch.exporters.recorder.judging.tracking import ProcessSeen
from stagewatch.exporters.recorder.judging.whereabouts import Place, place, stage_cell
from stagewatch.exporters.recorder.watching.outcome import Death, Verdict, judge
from stagewatch.exporters.recorder.watching.vitals import Vitals
from stagewatch.measures import SECOND
from stagewatch.model import Live, Outcome
from stagewatch.records import (
    MetricsCollected,
    OperationEnded,
    ProcessStarted,
    RunExiting,
    RunStarted,
    SpanEnded,
    SpanLeft,
    StageEnded,
)

_DROP_REASONS: Final = {
    Words.DROPPED_DISK: "disk",
    Words.DROPPED_CAP: "journal_cap",
    Words.DROPPED_ERROR: "error",
}


_Usage = tuple[float | None, int | None]


class Witness(Struct, frozen=True):
    """What was seen of the run while it ran."""

    opener: Journal | None
    """Of the process that opened it, if that is watched here and lives."""
    run: UnderWay | None
    """None if it is over before the first look."""
    pause: float = 0.0
    """Seconds that may lie between two things a recorder writes of a run."""

    def process(self, key: str) -> ProcessSeen | None:
        """One of its processes."""
        return self.run.processes.get(key) if self.run is not None else None


def end_process(
    books: Books, key: str, journal: Journal, process: ProcessStarted, page: PageReader | None,
    death: Death, seen: Witness,
) -> None:  # fmt: skip
    """End the open stages and, if it opened one, the run. Runs in the caller's transaction.

    The run's end is the process's own where it ended by itself, else the time at which its death
    was seen, else the last sign of life that anybody knows of.
    """
    batch = Batch()
    watched = seen.process(key)
    known = testimony.read(books.link, journal.run, process.run_id)
    if death.vitals is not None:
        vitals = death.vitals.since(process.cpu_seconds)
    else:
        vitals = (watched.vitals if watched else None) or Vitals()
    exiting = journal.exiting or exiting_of_successor(books.link, key, process.run_id)
    is_final = process.final_exit or (exiting is not None and exiting.is_final)
    is_over = exiting is not None and exiting.outcome is not None
    if is_over:  # however its process ended meanwhile
        death = Death(vitals=death.vitals)
    verdict = judge(
        death.wait_status, exiting, is_final,
        lost_host=death.lost_host, oom_killed=death.oom_killed,
    )  # fmt: skip
    end = max(death.at or 0, journal.seen, page.last_activity() if page else 0)
    uptime = 0 if death.lost_host else death.uptime
    is_orderly = exiting is not None and (
        death.wait_status is None or os.WIFEXITED(death.wait_status)
    )
    if exiting is not None and is_orderly:
        end, uptime, last = exiting.end, exiting.uptime, Place()
    else:
        last = place(journal, page)
        if not uptime:
            end = max(end, known.last_sign(journal))
    stages_end = measures.moment(end, uptime, process.start, process.uptime)
    for stage in list(journal.stages.values()):
        _end_stage(
            books, journal, process, stage, page, verdict, stages_end, vitals, watched, known, batch
        )
    for begun in list(journal.begun.values()):
        left = journal.left.get(begun.span_id)
        how = (verdict, stages_end) if left is None else (_verdict(left), left.end)
        take(books, journal, closing.user_span(begun, *how), batch)
    for left in list(journal.left.values()):
        if isinstance(left.ended, OperationEnded):
            take(books, journal, left.ended, batch)
    if page is not None:
        _take_cells(books, journal, process, page, batch)
        _take_series(books, journal, process, page, stages_end, batch)
    run = rows.read_run(books.link, journal.run)
    if journal.opened is None or run.end is not None:
        # Where the opener is never seen here, this process's own end decides on its details.
        is_alone = run.span_id is None
        books.write(journal, batch, process_is_over=is_alone)
        if run.end is None and journal.opened is None:
            _note_death(books, key, process, death, verdict, last, seen)
        return
    books.write(journal, batch)
    end = measures.moment(end, uptime, journal.opened.start, journal.opened.uptime)
    end = max(end, run.start)
    if seen.run is None and known.watched:
        gap = (end - known.watched) / SECOND
        if gap > seen.pause:
            notices.say_gap(books, journal, journal.opened, gap, end)
    if not is_orderly:
        _say_late(books, journal, journal.opened, end, last)
    usage = _usage(None if is_over else exiting, vitals, known.live)
    _end_run(books, journal, journal.opened, exiting, verdict, end, death.wait_status, last, usage)


def _end_stage(
    books: Books, journal: Journal, process: ProcessStarted, stage: OpenStage,
    page: PageReader | None, verdict: Verdict, end: int, vitals: Vitals,
    watched: ProcessSeen | None, known: Testimony, batch: Batch,
) -> None:  # fmt: skip
    started, ended = stage.started, stage.ended
    left = journal.left.get(started.span_id)
    cell = stage_cell(journal, started.span_id, page) if page else None
    if ended is None and left is not None and isinstance(left.ended, StageEnded):
        ended = closing.complete_stage(left.ended, cell)
        count_stage(books, journal, ended, batch)
    if ended is None:
        cpu = watched.stage_cpu(started.span_id, vitals) if watched else None
        memory = vitals.memory_peak
        if before := known.stage(started.span_id):
            cpu = before.cpu_seconds if cpu is None else cpu
            memory = before.memory_peak if memory is None else memory
        ended = closing.end_stage(started, cell, verdict, end, cpu, memory)
        count_stage(books, journal, ended, batch)
    if not stage.spanned:
        span = closing.stage_span(started, ended, process.pipeline)
        _add_span(books, journal, span, STAGE, started.sampled, batch)


def _verdict(left: SpanLeft) -> Verdict:
    return Verdict(Outcome(left.outcome), left.error_type)


def _note_death(
    books: Books, key: str, process: ProcessStarted, death: Death, verdict: Verdict, last: Place,
    seen: Witness,
) -> None:  # fmt: skip
    """A process that joined the run is dead, and the run goes on."""
    opener = seen.opener
    if opener is None or opener.opened is None or not death.is_violent:
        return
    if verdict.outcome is Outcome.CANCELLATION and not any(last):
        return  # a pool ends its idle workers by SIGTERM
    if has_sibling(books.link, key, process.run_id):
        return  # it went on by exec: this is the run's own end
    due = notices.of_death(key, process.pid, opener.opened.pipeline, verdict)
    around = notices.circumstances(seen.run) if seen.run is not None else {}
    started = opener.opened
    at = measures.moment(death.at or time.time_ns(), death.uptime, started.start, started.uptime)
    notices.say(books, opener, started, due, {**around, **notices.of_place(last)}, at)


def _take_cells(
    books: Books, journal: Journal, process: ProcessStarted, page: PageReader, batch: Batch
) -> None:
    for tally in journal.tallies.values():
        cell = page.cell(tally.kind, tally.cell)
        if cell is None:
            continue
        if tally.kind == "operation":
            calls = cell["calls"]
            batch.operation(tally.stage, tally.name).add(
                calls, calls, 0, cell["nanoseconds"], cell["rows_in"], cell["rows_out"]
            )
            continue
        rows.add_cell(books.link, journal.run, tally.name, cell, process.start)
        batch.stages.add(tally.name)
        batch.found += increments.of_folded_stage(tally.name, cell)
    own = page.run()
    if own is not None:
        rows.add_cell(books.link, journal.run, "", own, 0)
        batch.stages.add("")
        batch.found += increments.of_records("", own)
    for word, reason in _DROP_REASONS.items():
        if count := page.word(word):
            batch.drop(reason, count)
    if nanoseconds := page.word(Words.OVERHEAD):
        batch.found.append(Increment(semconv.OVERHEAD, (), nanoseconds / SECOND))


def _take_series(
    books: Books, journal: Journal, process: ProcessStarted, page: PageReader, end: int,
    batch: Batch,
) -> None:  # fmt: skip
    """Metrics of other libraries that were counted after the last batch."""
    last, since = journal.collected
    found = []
    for defined in journal.series.values():
        cell = page.cell(defined.layout, defined.cell)
        metric = pending(defined, cell, last) if cell is not None else None
        if metric is not None:
            found.append(metric)
    if found and "metrics" in books.signals:
        collected = MetricsCollected(since or process.start, end, found)
        batch.recorded["metrics"] += books.totals.add_foreign(collected, journal.resource, end)


def _say_late(books: Books, journal: Journal, opened: RunStarted, end: int, last: Place) -> None:
    """Who died late may have become so since the last look."""
    said = notices.said(books.link, journal.run)
    for due in notices.of_lateness(opened, measures.lateness(opened.deadline, end), last, said):
        notices.say(books, journal, opened, due, notices.of_place(last), end)


def _usage(exiting: RunExiting | None, vitals: Vitals, live: Live | None) -> _Usage:
    """CPU seconds and peak bytes of the run: as it said itself, else as seen, else as last seen by
    a recorder that is dead."""
    if exiting is not None:
        return exiting.cpu_seconds, exiting.memory_peak
    cpu, memory = vitals.cpu_seconds, vitals.memory_peak
    if live is not None:
        cpu = live.cpu_seconds if cpu is None else cpu
        memory = live.memory_peak if memory is None else memory
    return cpu, memory


def _end_run(
    books: Books, journal: Journal, opened: RunStarted, exiting: RunExiting | None,
    verdict: Verdict, end: int, wait_status: int | None, last: Place, usage: _Usage,
) -> None:  # fmt: skip
    late = measures.lateness(opened.deadline, end) > 0
    least = rows.most_of_stages(books.link, journal.run)
    books.link.execute(
        "update run set end = ?, outcome = ?, error_type = ?, error_message = ?, "
        "error_place = ?, cpu_seconds = ?, memory_peak = ?, wait_status = ?, late = ?, "
        "last_stage = ?, last_operation = ? where id = ?",
        (
            end,
            str(verdict.outcome),
            verdict.error_type,
            exiting.error_message if exiting else None,
            exiting.error_place if exiting else None,
            max(usage[0] or 0.0, least[0]) or None,
            max(usage[1] or 0, least[1]) or None,
            wait_status,
            late,
            last.stage,
            last.operation,
            journal.run,
        ),
    )
    books.link.execute("delete from live where run = ?", (journal.run,))
    batch = Batch()
    cut = books.decide(
        journal,
        batch,
        everything=late or verdict.outcome in increments.FAILED,
        seconds=(end - opened.start) / SECOND,
    )
    _end_forecast(books, journal, opened, verdict.outcome)
    run = rows.read_run(books.link, journal.run)
    batch.found = increments.of_run_end(
        opened.start, end, verdict.outcome, verdict.error_type, opened.deadline
    )
    said = notices.events(books.link, journal.run)
    span = closing.run_span(opened, exiting, run, cut, said)
    _add_span(books, journal, span, RUN, opened.sampled, batch)
    books.write(journal, batch, now=end)


def _end_forecast(books: Books, journal: Journal, opened: RunStarted, outcome: Outcome) -> None:
    """Nobody waits for this run any more; a newer one of its pipeline goes on showing its own."""
    (has_newer,) = books.link.execute(
        "select exists(select 1 from run where pipeline = ? and start > ? and end is null "
        "and span_id is not null)",
        (opened.pipeline, opened.start),
    ).fetchone()
    if has_newer:
        return
    books.totals.withdraw(semconv.ESTIMATED_END, opened.pipeline, journal.metric_resource)
    if outcome is Outcome.SUCCESS:
        books.totals.complete(opened.pipeline, journal.metric_resource)
    else:
        books.totals.withdraw(semconv.PROGRESS, opened.pipeline, journal.metric_resource)


def _add_span(
    books: Books, journal: Journal, span: SpanEnded, role: int, sampled: bool, batch: Batch
) -> None:
    scope = books.interned.scope(semconv.SCOPE, None, semconv.SCHEMA_URL)
    state = PENDING if sampled and "traces" in books.signals else LOCAL
    batch.recorded["traces"] += 1
    batch.spans.append(
        rows.span_values(span, journal.run, role, state, books.destination, journal.resource, scope)
    )
