"""The rows of the history that records become; every function runs in its caller's transaction."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

from msgspec.msgpack import encode

from stagewatch import semconv
from stagewatch.exporters.recorder.intake.closing import known_records
from stagewatch.exporters.state import Destination
from stagewatch.measures import SECOND
from stagewatch.model import Live, Run
from stagewatch.records import (
    DatasetTouched,
    LogEmitted,
    ProcessStarted,
    RunStarted,
    SpanEnded,
    SpanHead,
    StageEnded,
)
from stagewatch.records import encode as encode_record

ERROR: Final = 2
"""`opentelemetry.trace.StatusCode.ERROR`."""
_RUN_FIELDS: Final = tuple(Run.__struct_fields__)

_ADD_SPANS: Final = (
    "insert or ignore into span(trace_id, span_id, parent, run, role, start, seconds, failed, "
    "state, destination, resource, scope, record) values "
)
_SPAN_MARKS: Final = "(" + ", ".join("?" * 13) + ")"
_AT_ONCE: Final = (64, 8, 1)
"""Rows of one statement: each costs a release of the interpreter's lock. Few sizes, because each
is a statement of its own, and stays compiled."""

_ADD_STAGE: Final = """
insert into stage values(:run, :name, :calls, :failed, :start, :seconds, :active, :records_in,
    :records_out, :records_rejected, :retries, :cpu, :memory, :error_type,
    :by_frames, :bytes_in, :bytes_out)
on conflict(run, name) do update set calls = calls + excluded.calls,
    failed = failed + excluded.failed, seconds = seconds + excluded.seconds,
    start = case when start = 0 then excluded.start else min(start, excluded.start) end,
    active_seconds = active_seconds + excluded.active_seconds,
    records_in = ifnull(records_in + excluded.records_in,
        ifnull(records_in, excluded.records_in)),
    records_out = ifnull(records_out + excluded.records_out,
        ifnull(records_out, excluded.records_out)),
    records_rejected = records_rejected + excluded.records_rejected,
    retries = retries + excluded.retries,
    cpu_seconds = ifnull(cpu_seconds + excluded.cpu_seconds,
        ifnull(cpu_seconds, excluded.cpu_seconds)),
    memory_peak = max(ifnull(memory_peak, excluded.memory_peak),
        ifnull(excluded.memory_peak, memory_peak)),
    error_type = ifnull(excluded.error_type, error_type),
    by_frames = by_frames | excluded.by_frames,
    bytes_in = bytes_in + excluded.bytes_in,
    bytes_out = bytes_out + excluded.bytes_out
"""


class OperationSum:
    """Calls of one operation in one stage that are still to be written."""

    __slots__ = ("calls", "failed", "folded", "nanoseconds", "rows_in", "rows_out")

    def __init__(self) -> None:
        self.calls = self.folded = self.failed = 0
        self.nanoseconds = self.rows_in = self.rows_out = 0

    def add(
        self, calls: int, folded: int, failed: int, nanoseconds: int, rows_in: int, rows_out: int
    ) -> None:
        """Count some more."""
        self.calls += calls
        self.folded += folded
        self.failed += failed
        self.nanoseconds += nanoseconds
        self.rows_in += rows_in
        self.rows_out += rows_out


class Interned:
    """Resources and scopes, stored once; remembers their numbers."""

    def __init__(self, link: sqlite3.Connection) -> None:
        self._link = link
        self._numbers: dict[tuple[Any, ...], int] = {}
        (self.instance,) = link.execute("select value from meta where key = 'instance'").fetchone()

    def resource(self, attributes: Mapping[str, Any], *, messages: bool = False) -> int:
        """Number of a resource; *messages*: its exception messages may be exported."""
        blob = encode(dict(attributes))
        digest = hashlib.blake2b(blob + (b"m" if messages else b""), digest_size=16).digest()
        number = self._numbers.get((digest,))
        if number is None:
            self._link.execute(
                "insert or ignore into resource(digest, attributes, messages) values(?, ?, ?)",
                (digest, blob, messages),
            )
            (number,) = self._link.execute(
                "select id from resource where digest = ?", (digest,)
            ).fetchone()
            self._numbers[digest,] = number
        return int(number)

    def metric_resource(self, attributes: Mapping[str, Any], run_id: str | None = None) -> int:
        """Number of what stands on ``pipeline.*`` metrics of a process (decision 19)."""
        small = {name: attributes[name] for name in semconv.METRIC_RESOURCE if name in attributes}
        small[semconv.SERVICE_INSTANCE_ID] = self.instance
        if run_id is not None:
            small[semconv.RUN_ID] = run_id
        return self.resource(small)

    def own_resource(self) -> int:
        """Number of what stands on ``stagewatch.*`` metrics, which belong to no service."""
        return self.resource(
            {semconv.SERVICE_NAME: "stagewatch", semconv.SERVICE_INSTANCE_ID: self.instance}
        )

    def scope(self, name: str, version: str | None, schema_url: str | None) -> int:
        """Number of an instrumentation scope."""
        row = (name, version or "", schema_url or "")
        number = self._numbers.get(row)
        if number is None:
            self._link.execute(
                "insert or ignore into scope(name, version, schema_url) values(?, ?, ?)", row
            )
            (number,) = self._link.execute(
                "select id from scope where name = ? and version = ? and schema_url = ?", row
            ).fetchone()
            self._numbers[row] = number
        return int(number)

    def forget(self) -> None:
        """Drop what was remembered of a transaction that was rolled back."""
        self._numbers.clear()


def destination_row(link: sqlite3.Connection, goal: Destination) -> int:
    """Row id of a destination."""
    link.execute(
        "insert or ignore into destination(key, signals) values(?, ?)",
        (goal.key, " ".join(sorted(goal.protocols))),
    )
    (number,) = link.execute("select id from destination where key = ?", (goal.key,)).fetchone()
    return int(number)


def run_row(link: sqlite3.Connection, process: ProcessStarted) -> int:
    """Row id of the process's run; made if this history has not heard of it yet."""
    link.execute(
        "insert or ignore into run(run_id, pipeline, start) values(?, ?, ?)",
        (process.run_id, process.pipeline, process.start),
    )
    (number,) = link.execute("select id from run where run_id = ?", (process.run_id,)).fetchone()
    return int(number)


def start_run(
    link: sqlite3.Connection, number: int, record: RunStarted, process: ProcessStarted
) -> bool:
    """Fill in the row *number*; False if it is known already (a process that went on by exec)."""
    changed = link.execute(
        "update run set pipeline = ?, trace_id = ?, span_id = ?, start = ?, scheduled = ?, "
        "attempt = ?, deadline = ?, host = ?, pid = ?, ticks = ?, boot_id = ?, pid_namespace = ?, "
        "parent_run_id = ? "
        "where id = ? and span_id is null",
        (
            record.pipeline,
            record.trace_id,
            record.span_id,
            record.start,
            record.scheduled,
            record.attempt,
            record.deadline,
            str(process.resource.get("host.name") or process.host),
            process.pid,
            process.ticks,
            process.boot_id,
            process.pid_namespace,
            record.parent_run_id,
            number,
        ),
    )
    return changed.rowcount == 1


def read_run(link: sqlite3.Connection, number: int) -> Run:
    """A run as it stands; without a span id, if this history has not seen it open."""
    row = link.execute(
        f"select {', '.join(_RUN_FIELDS)} from run where id = ?", (number,)
    ).fetchone()
    return Run(**dict(zip(_RUN_FIELDS, row, strict=True)))


def sum_records(link: sqlite3.Connection, number: int) -> None:
    """Set the run's records: the sums over its stages, and over what belongs to none.

    Rows belong to the innermost stage, so what was read or written counts once. Rows of frames
    that one stage hands to the next would count in each, and so not at all.
    """
    link.execute(
        "update run set (records_in, records_out, records_rejected) = (select "
        "sum(iif(by_frames & 1, null, records_in)), sum(iif(by_frames & 2, null, records_out)), "
        "ifnull(sum(records_rejected), 0) from stage where run = ?1) where id = ?1",
        (number,),
    )


def add_records(
    link: sqlite3.Connection, number: int, came: int | None, went: int | None, rejected: int
) -> tuple[int | None, int | None, int]:
    """Add to what `sum_records` has set, of a run under way; returns in, out and rejected."""
    row = link.execute(
        "update run set records_in = ifnull(records_in + ?1, ifnull(records_in, ?1)), "
        "records_out = ifnull(records_out + ?2, ifnull(records_out, ?2)), "
        "records_rejected = records_rejected + ?3 where id = ?4 and end is null "
        "returning records_in, records_out, records_rejected",
        (came, went, rejected, number),
    ).fetchone()
    return row or (None, None, 0)


def stage_records(
    link: sqlite3.Connection, number: int
) -> dict[str, tuple[int | None, int | None]]:
    """Records in and out that are taken in, by stage."""
    found = link.execute("select name, records_in, records_out from stage where run = ?", (number,))
    return {name: (came, went) for name, came, went in found}


def set_live(link: sqlite3.Connection, number: int, picture: Live) -> None:
    """Show a run that is under way."""
    link.execute(
        "insert or replace into live select id, ?2 from run where id = ?1 and end is null",
        (number, encode(picture)),
    )


def add_log(
    link: sqlite3.Connection, destination: int, resource: int, scope: int, record: LogEmitted
) -> None:
    """A log record, to be sent."""
    link.execute(
        "insert into log(destination, resource, scope, record) values(?, ?, ?, ?)",
        (destination, resource, scope, encode_record(record)),
    )


def add_stage(link: sqlite3.Connection, run: int, ended: StageEnded, failed: bool) -> None:
    """One call of a stage."""
    link.execute(
        _ADD_STAGE,
        {
            "run": run,
            "name": ended.name,
            "calls": 1,
            "failed": failed,
            "start": ended.start,
            "seconds": max(ended.end - ended.start, 0) / SECOND,
            "active": ended.active_seconds,
            "records_in": ended.records_in,
            "records_out": ended.records_out,
            "records_rejected": ended.records_rejected,
            "retries": ended.retries,
            "cpu": ended.cpu_seconds or None,
            "memory": ended.memory_peak or None,
            "error_type": ended.error_type,
            "by_frames": ended.by_frames,
            "bytes_in": ended.bytes_in,
            "bytes_out": ended.bytes_out,
        },
    )


def add_cell(
    link: sqlite3.Connection, run: int, name: str, cell: Mapping[str, int], start: int
) -> None:
    """A cell of layout ``folded_stage``, or of layout ``run`` under the empty name."""
    records_in, records_out = known_records(cell)
    seconds = cell.get("nanoseconds", 0) / SECOND
    link.execute(
        _ADD_STAGE,
        {
            "run": run,
            "name": name,
            "calls": cell.get("calls", 0),
            "failed": cell.get("failed", 0),
            "start": start,
            "seconds": seconds,
            "active": cell.get("active_nanoseconds", 0) / SECOND,
            "records_in": records_in,
            "records_out": records_out,
            "records_rejected": cell["records_rejected"],
            "retries": cell["retries"],
            "cpu": cell.get("cpu_nanoseconds", 0) / SECOND or None,
            "memory": cell.get("memory_peak") or None,
            "error_type": None,
            "by_frames": cell["counted"] >> 2,
            "bytes_in": cell["bytes_in"],
            "bytes_out": cell["bytes_out"],
        },
    )


def add_operations(
    link: sqlite3.Connection, run: int, sums: Mapping[tuple[str, str], OperationSum]
) -> None:
    """Operations by stage and name."""
    link.executemany(
        "insert into operation values(?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict(run, stage, name) "
        "do update set calls = calls + excluded.calls, folded = folded + excluded.folded, "
        "failed = failed + excluded.failed, seconds = seconds + excluded.seconds, "
        "rows_in = rows_in + excluded.rows_in, rows_out = rows_out + excluded.rows_out",
        [
            (
                run, stage, name, one.calls, one.folded, one.failed, one.nanoseconds / SECOND,
                one.rows_in, one.rows_out,
            )
            for (stage, name), one in sums.items()
        ],
    )  # fmt: skip


def add_failures(
    link: sqlite3.Connection, run: int, counts: Mapping[tuple[str, str, str], int]
) -> None:
    """Failed calls by stage, operation and ``error.type``."""
    link.executemany(
        "insert into failure values(?, ?, ?, ?, ?) on conflict(run, stage, operation, error_type) "
        "do update set calls = calls + excluded.calls",
        [(run, *key, count) for key, count in counts.items()],
    )


def add_dataset(link: sqlite3.Connection, run: int, record: DatasetTouched) -> None:
    """One read or write of a dataset; several of one stage are added up."""
    link.execute(
        "insert into dataset values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "on conflict(run, stage, direction, uri) do update set "
        "rows = ifnull(rows + excluded.rows, ifnull(rows, excluded.rows)), "
        "bytes = ifnull(excluded.bytes, bytes), "
        "fingerprint = ifnull(excluded.fingerprint, fingerprint), "
        "newest_event = max(ifnull(newest_event, excluded.newest_event), "
        "ifnull(excluded.newest_event, newest_event))",
        (
            run, record.stage, record.direction, record.uri, record.rows, record.bytes,
            record.fingerprint, record.newest_event, record.declared, record.at,
        ),
    )  # fmt: skip


def span_values(
    span: SpanEnded | SpanHead,
    run: int,
    role: int,
    state: int,
    destination: int,
    resource: int,
    scope: int,
) -> tuple[Any, ...]:
    """A row for `add_spans`."""
    record = span.body if type(span) is SpanHead else encode_record(span)
    # `sqlite3` looks for adapters of every bytes and bool, which takes as long as to store it;
    # of a bytearray and an int it knows that there are none.
    return (
        bytearray(span.trace_id), bytearray(span.span_id), bytearray(span.parent_span_id), run,
        role, span.start, (span.end - span.start) / SECOND, 1 if span.status == ERROR else 0,
        state, destination, resource, scope, bytearray(record),
    )  # fmt: skip


def has_span(link: sqlite3.Connection, run: int, span_id: bytes) -> bool:
    """Whether the history has it."""
    row = link.execute(
        "select exists(select 1 from span where run = ? and span_id = ?)", (run, span_id)
    ).fetchone()
    return bool(row[0])


def add_spans(
    link: sqlite3.Connection, run: int, values: Sequence[tuple[Any, ...]], *, details: bool
) -> None:
    """Spans of one run, *details* among them; one that is known by its id is left as it is."""
    at = 0
    for size in _AT_ONCE:
        statement = _ADD_SPANS + ", ".join([_SPAN_MARKS] * size)
        while len(values) - at >= size:
            link.execute(statement, list(chain.from_iterable(values[at : at + size])))
            at += size
    link.execute(
        "update run set has_spans = 1, has_details = has_details or ?1 "
        "where id = ?2 and (not has_spans or not has_details and ?1)",
        (details, run),
    )
