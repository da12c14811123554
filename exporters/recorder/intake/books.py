"""What the intake keeps: the state of each journal, and the writing of what records add up to."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct, field

from stagewatch import semconv
from stagewatch.exporters.recorder.intake import details, increments, rows
from stagewatch.exporters.recorder.intake.increments import Increment
from stagewatch.exporters.recorder.intake.rows import Interned, OperationSum
from stagewatch.exporters.recorder.intake.totals import Totals
from stagewatch.measures import SECOND
from stagewatch.records import (
    Noted,
    ProcessStarted,
    RunExiting,
    RunStarted,
    SeriesDefined,
    SpanLeft,
    SpanStarted,
    StageEnded,
    StageStarted,
    TallyDefined,
    TraceSettled,
)
from stagewatch.records import encode as encode_record

RUN, STAGE, USER, DETAIL = range(4)
"""Indexes into `stagewatch.database.ROLES`."""


class OpenStage(Struct, array_like=True):
    """A stage until both its end and, if it is sampled, its span have come."""

    started: StageStarted
    ended: StageEnded | None = None
    spanned: bool = False


class Journal(Struct):
    """What has to be known of a journal to go on with it; stored with its position."""

    segment: int = 0
    offset: int = 0
    run: int = 0
    """Row id, as the next three."""
    resource: int = 0
    metric_resource: int = 0
    run_resource: int = 0
    """The same with the run's id, for points of delta temporality."""
    seen: int = 0
    """Newest time in its records, ns."""
    since: int = 0
    """Up to when its increments have been taken, ns."""
    process: ProcessStarted | None = None
    opened: RunStarted | None = None
    exiting: RunExiting | None = None
    stages: dict[bytes, OpenStage] = field(default_factory=dict)
    tallies: dict[int, TallyDefined] = field(default_factory=dict)
    scopes: dict[int, tuple[int, str]] = field(default_factory=dict)
    """By number: row id and name."""
    series: dict[int, SeriesDefined] = field(default_factory=dict)
    """By the offset of their cell."""
    collected: tuple[int, int] = (0, 0)
    """Number and end (ns) of the last batch of metrics."""
    names: dict[int, str] = field(default_factory=dict)
    """Of operations, by the number that the status page shows."""
    begun: dict[bytes, SpanStarted] = field(default_factory=dict)
    """Spans with children that have not ended, but for stages and the run."""
    left: dict[bytes, SpanLeft] = field(default_factory=dict)
    """Operations and stages that are over, but whose figures have not come."""

    def is_open(self, span_id: bytes) -> bool:
        """Whether a stage is under way, as far as its records tell."""
        stage = self.stages.get(span_id)
        return stage is not None and stage.ended is None and span_id not in self.left


class Batch:
    """What one transaction adds, collected so that each row is written once."""

    def __init__(self) -> None:
        self.spans: list[tuple[Any, ...]] = []
        self.has_details = False
        self.found: list[Increment] = []
        self.operations: dict[tuple[str, str], OperationSum] = {}
        self.failures: Counter[tuple[str, str, str]] = Counter()
        """Calls by stage, operation and ``error.type``."""
        self.stages: set[str] = set()
        """Names of those whose sums change; empty for the run itself."""
        self.recorded = {"traces": 0, "metrics": 0, "logs": 0}
        self.dropped: list[Increment] = []
        self.settled: list[TraceSettled] = []
        """Traces on whose details is decided at once."""
        self.noted: list[Noted] = []
        """What is to be said of the run."""

    def operation(self, stage: str, name: str) -> OperationSum:
        """The sum to which calls of an operation are added."""
        key = (stage, name)
        found = self.operations.get(key)
        if found is None:
            found = self.operations[key] = OperationSum()
        return found

    def drop(self, reason: str, count: int = 1) -> None:
        """Count records that are lost."""
        self.dropped.append(increments.dropped("traces", reason, count))


class Books(Struct, frozen=True):
    """Where one recorder writes; every method runs in the caller's transaction."""

    link: sqlite3.Connection
    destination: int
    signals: frozenset[str]
    """Those that are sent."""
    interned: Interned
    totals: Totals
    details: details.Settings

    def write(
        self, journal: Journal, batch: Batch, *, process_is_over: bool = False, now: int = 0
    ) -> None:
        """Write *batch*; its increments end at *now*, or where the journal's newest record does."""
        self._write(journal, batch, process_is_over=process_is_over, now=now)
        self._count((batch,), journal.since)

    def write_all(self, found: Sequence[tuple[Journal, Batch]]) -> None:
        """Write what different journals add; of *found* there is at least one."""
        for journal, batch in found:
            self._write(journal, batch)
        self._count([batch for _, batch in found], max(journal.since for journal, _ in found))

    def _write(
        self, journal: Journal, batch: Batch, *, process_is_over: bool = False, now: int = 0
    ) -> None:
        now = max(now, journal.seen, journal.since + 1)
        if batch.spans:
            rows.add_spans(self.link, journal.run, batch.spans, details=batch.has_details)
        for trace in batch.settled:
            details.settle(self.link, journal.run, trace)
        if batch.operations:
            rows.add_operations(self.link, journal.run, batch.operations)
            rows.add_failures(self.link, journal.run, batch.failures)
            for (stage, name), one in batch.operations.items():
                batch.found += increments.of_operation(stage, name, one.calls, one.nanoseconds)
        if batch.stages:
            rows.sum_records(self.link, journal.run)
            batch.found += self._stages_so_far(journal.run, batch.stages - {""})
        if batch.has_details or process_is_over:
            self._decide_late(journal, batch, process_is_over)
        if journal.process is not None and batch.found:
            self.totals.add(
                batch.found,
                journal.process.pipeline,
                journal.metric_resource,
                now,
                run_resource=journal.run_resource,
                since=journal.since,
            )
        journal.since = now

    def _count(self, batches: Sequence[Batch], now: int) -> None:
        """Telemetry's own health."""
        health = [
            Increment(semconv.TELEMETRY_RECORDED, ((semconv.SIGNAL, signal),), count)
            for batch in batches
            for signal, count in batch.recorded.items()
            if count
        ]
        for batch in batches:
            health += batch.dropped
        if health:
            self.totals.add(health, None, self.interned.own_resource(), now)

    def decide(self, journal: Journal, batch: Batch, *, everything: bool, seconds: float) -> int:
        """Settle the run's details (`details.decide`); the cut is counted and returned."""
        cut = details.decide(
            self.link, journal.run, self.details, everything=everything, seconds=seconds
        )
        if cut:
            batch.drop("cap", cut)
        return cut

    def _decide_late(self, journal: Journal, batch: Batch, process_is_over: bool) -> None:
        # What comes after the run's end follows what was decided then.
        start, end, outcome, late = self.link.execute(
            "select start, end, outcome, late from run where id = ?", (journal.run,)
        ).fetchone()
        if end is not None:
            everything = bool(late) or outcome in increments.FAILED
            self.decide(journal, batch, everything=everything, seconds=(end - start) / SECOND)
        elif process_is_over:
            seconds = (journal.seen - start) / SECOND
            self.decide(journal, batch, everything=False, seconds=seconds)

    def _stages_so_far(self, run: int, names: set[str]) -> list[Increment]:
        found: list[Increment] = []
        for name in names:
            row = self.link.execute(
                "select name, active_seconds, records_in, records_out, records_rejected, "
                "failed, memory_peak from stage where run = ? and name = ?",
                (run, name),
            ).fetchone()
            found += increments.of_stage_so_far(*row)
        return found


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Journal).decode
_unpack_exiting = msgspec.msgpack.Decoder(RunExiting).decode


def load_journal(link: sqlite3.Connection, key: str) -> Journal:
    """As it was saved last; a new one if it never was."""
    row = link.execute("select state from journal where key = ? and not closed", (key,)).fetchone()
    return Journal() if row is None else _unpack(row[0])


def open_journals(link: sqlite3.Connection, destination: int) -> list[str]:
    """Keys of those whose process is not known to be dead."""
    rows = link.execute(
        "select key from journal where destination = ? and not closed", (destination,)
    )
    return [key for (key,) in rows]


def save_journal(books: Books, key: str, journal: Journal, *, closed: bool = False) -> None:
    """Position and state; of a closed one only what its predecessor by exec may still need."""
    exiting = journal.exiting
    books.link.execute(
        "insert into journal values(?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict(key) do update set "
        "run_id = excluded.run_id, segment = excluded.segment, offset = excluded.offset, "
        "closed = excluded.closed, at = excluded.at, exiting = excluded.exiting, "
        "state = excluded.state, destination = excluded.destination",
        (
            key,
            journal.process.run_id if journal.process else "",
            journal.segment,
            journal.offset,
            closed,
            journal.seen,
            None if exiting is None else encode_record(exiting),
            None if closed else _pack(journal),
            books.destination,
        ),
    )


def has_sibling(link: sqlite3.Connection, key: str, run_id: str) -> bool:
    """Whether the same process writes another open journal: it went on by exec."""
    process = key.rsplit(".", 1)[0] + "."
    row = link.execute(
        "select exists(select 1 from journal where run_id = ? and key != ? and not closed "
        "and substr(key, 1, ?) = ?)",
        (run_id, key, len(process), process),
    ).fetchone()
    return bool(row[0])


def exiting_of_successor(link: sqlite3.Connection, key: str, run_id: str) -> RunExiting | None:
    """After an exec the same process writes another journal, and that one knows its end."""
    process = key.rsplit(".", 1)[0] + "."
    row = link.execute(
        "select exiting from journal where run_id = ? and key != ? and exiting is not null "
        "and substr(key, 1, ?) = ? order by at desc limit 1",
        (run_id, key, len(process), process),
    ).fetchone()
    return None if row is None else _unpack_exiting(row[0])
