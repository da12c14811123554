"""Runs, stages, operations, datasets over time, and what still has to be sent: one SQLite file.

Several recorders write to it at once; whoever reads never waits for them (WAL). The writing half
is `stagewatch.exporters.recorder`; here are the schema and what `report` and `show` ask.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from msgspec import Struct

from stagewatch import measures, semconv
from stagewatch.database import PENDING, ROLES, STATES, WAITING, connect, transaction
from stagewatch.model import Dataset, Live, Notice, Operation, Outcome, Role, Run, Stage
from stagewatch.records import Attributes, SpanEnded, decode

_NEVER: Final = (1 << 63) - 1
_RUN_COLUMNS: Final = tuple(Run.__struct_fields__)
_STAGE_COLUMNS: Final = tuple(Stage.__struct_fields__)
_OPERATION_COLUMNS: Final = tuple(name for name in Operation.__struct_fields__ if name != "errors")
_DATASET_COLUMNS: Final = tuple(Dataset.__struct_fields__)
_KNOWN: Final = "span_id is not null"  # else only children of the run have been seen here
_MAIN: Final = (  # or its opener's run is not known here
    "not exists (select 1 from run as opener where opener.run_id = run.parent_run_id "
    "and opener.span_id is not null)"
)
_OVER: Final = (  # nobody writes to it any more; whether it has ended is not always known here
    "(end is not null or not exists (select 1 from journal where journal.run_id = run.run_id "
    "and not closed))"
)


class SpanRow(Struct, frozen=True):
    """One span of a run as the history keeps it; `state` is one of `STATES`."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    start: int
    end: int
    role: Role
    failed: bool
    state: str
    scope: str
    kind: int
    attributes: Attributes
    events: list[tuple[str, int, Attributes | None]]
    status_description: str | None


class Pruned(NamedTuple):
    """What retention took away."""

    runs: int
    spans: int
    pending: int
    """Of the spans: those that had not been sent yet."""


class History:
    """The reading half, over one connection; also a context manager."""

    def __init__(self, link: sqlite3.Connection) -> None:
        self.link = link

    def runs(self, pipeline: str | None = None, limit: int = 20) -> list[Run]:
        """The last runs, newest first."""
        where, values = (
            (_KNOWN, []) if pipeline is None else (f"pipeline = ? and {_KNOWN}", [pipeline])
        )
        rows = self.link.execute(
            f"select {', '.join(_RUN_COLUMNS)} from run where {where} order by start desc limit ?",
            [*values, limit],
        )
        return [_run(row) for row in rows]

    def run(self, prefix: str) -> Run:
        """The one run whose id begins with *prefix*; ``last`` is the newest that is no child run.

        Raises LookupError with a line that says what is there instead.
        """
        if prefix == "last":
            newest = self.link.execute(
                f"select {', '.join(_RUN_COLUMNS)} from run where {_KNOWN} and {_MAIN} "
                "order by start desc limit 1"
            ).fetchone()
            if newest is None:
                raise LookupError("no run yet")
            return _run(newest)
        wanted = prefix.lower()
        rows = self.link.execute(
            f"select {', '.join(_RUN_COLUMNS)} from run where run_id >= ? and run_id < ? "
            f"and {_KNOWN} order by start desc limit 4",
            [wanted, wanted + "g"],
        ).fetchall()
        if len(rows) == 1:
            return _run(rows[0])
        if rows:
            some = ", ".join(row[0][: len(wanted) + 4] for row in rows[:3])
            raise LookupError(f'"{prefix}" is the beginning of several runs: {some} …')
        last = ", ".join(run.run_id[:8] for run in self.runs(limit=3))
        raise LookupError(f'no run "{prefix}"' + (f"; the last ones are {last}" if last else ""))

    def child_runs(self, run: Run) -> list[Run]:
        """Those that *run* has opened, such as its streaming queries, newest first."""
        rows = self.link.execute(
            f"select {', '.join(_RUN_COLUMNS)} from run where parent_run_id = ? "
            f"and start between ? and ? and {_KNOWN} order by start desc",
            [run.run_id, run.start, _NEVER if run.end is None else run.end],
        )
        return [_run(row) for row in rows]

    def active(self) -> list[Run]:
        """Runs under way, oldest first."""
        rows = self.link.execute(
            f"select {', '.join(_RUN_COLUMNS)} from run where end is null and {_KNOWN} "
            "order by start"
        )
        return [_run(row) for row in rows]

    def ended(self, since: int, limit: int = 20) -> list[Run]:
        """Runs that ended after *since* (ns), the last one first."""
        rows = self.link.execute(
            f"select {', '.join(_RUN_COLUMNS)} from run where end > ? and {_KNOWN} "
            "order by end desc limit ?",
            [since, limit],
        )
        return [_run(row) for row in rows]

    def live(self, run_id: str) -> Live | None:
        """What its recorder saw of a run under way; None of one that is over or very young."""
        from msgspec.msgpack import decode as unpack

        for row in self._of_run("live", ("state",), run_id, ""):
            return unpack(row["state"], type=Live)
        return None

    def notices(self, run_id: str) -> list[Notice]:
        """What was said of the run while it ran, in that order."""
        from msgspec.msgpack import decode as unpack

        rows = self._of_run("notice", ("at", "name", "attributes"), run_id, "order by at, key")
        return [
            Notice(at=row["at"], name=row["name"], attributes=unpack(row["attributes"]))
            for row in rows
        ]

    def advised(self) -> dict[str, int]:
        """How many pieces of advice each run has, by run id; those without are absent."""
        found = self.link.execute(
            "select run.run_id, count(*) from notice join run on run.id = notice.run "
            "where notice.name = ? group by notice.run",
            [semconv.ADVICE],
        )
        return dict(found.fetchall())

    def stages(self, run_id: str) -> list[Stage]:
        """In the order of their first calls; what belongs to no stage is not among them."""
        rows = self._of_run("stage", _STAGE_COLUMNS, run_id, "and name != '' order by start, name")
        return [Stage(**row) for row in rows]

    def operations(self, run_id: str) -> list[Operation]:
        """By stage (empty: the run itself), the longest first."""
        errors: dict[tuple[str, str], dict[str, int]] = {}
        columns = ("stage", "operation", "error_type", "calls")
        for row in self._of_run("failure", columns, run_id, "order by calls desc, error_type"):
            found = errors.setdefault((row["stage"], row["operation"]), {})
            found[row["error_type"]] = row["calls"]
        rows = self._of_run("operation", _OPERATION_COLUMNS, run_id, "order by stage, seconds desc")
        return [
            Operation(**row, errors=errors.get((row["stage"], row["name"]), {})) for row in rows
        ]

    def datasets(self, run_id: str) -> list[Dataset]:
        """In the order in which they were touched; one entry per stage, direction and URI."""
        rows = self._of_run("dataset", _DATASET_COLUMNS, run_id, "order by at, uri")
        return [Dataset(**row) for row in rows]

    def spans(self, run_id: str) -> Iterator[SpanRow]:
        """All spans kept of the run, by their start; the run's own among them once it is over.

        Not those that only say something of it while it runs: see `notices`.
        """
        rows = self.link.execute(
            "select span.role, span.state, span.failed, scope.name, span.record from span "
            "join run on run.id = span.run join scope on scope.id = span.scope "
            "where run.run_id = ? and (span.role != 0 or span.span_id = run.span_id) "
            "order by span.start, span.seconds desc",
            [run_id],
        )
        for role, state, failed, scope, blob in rows:
            span = decode(blob)
            assert isinstance(span, SpanEnded)
            yield SpanRow(
                span.name,
                span.trace_id,
                span.span_id,
                span.parent_span_id,
                span.start,
                span.end,
                ROLES[role],
                bool(failed),
                STATES[state],
                scope,
                span.kind,
                span.attributes or {},
                span.events or [],
                span.status_description,
            )

    def pipelines(self) -> list[str]:
        """Names of all that ever ran, in alphabetical order."""
        # Jumps from name to name along the index; `distinct` would read all of it.
        rows = self.link.execute(
            "with recursive name(p) as (select min(pipeline) from run union all "
            "select (select min(pipeline) from run where pipeline > p) from name "
            "where p is not null) select p from name where p is not null"
        )
        return [name for (name,) in rows]

    def durations(self, pipeline: str, limit: int = 50) -> list[float]:
        """Seconds of the last runs that ended well, newest first."""
        rows = self.link.execute(
            "select (end - start) / 1e9 from run where pipeline = ? and outcome = ? "
            "order by start desc limit ?",
            [pipeline, Outcome.SUCCESS, limit],
        )
        return [seconds for (seconds,) in rows]

    def usual_duration(self, pipeline: str) -> float | None:
        """See `measures.usual_duration`, of the last 50 runs that ended well."""
        return measures.usual_duration(self.durations(pipeline))

    def first_start(self, pipeline: str, default: int) -> int:
        """When the oldest run that is known of the pipeline began; *default* if it is none."""
        (found,) = self.link.execute(
            "select min(start) from run where pipeline = ?", [pipeline]
        ).fetchone()
        return default if found is None else min(found, default)

    def met_slots(self, pipeline: str, limit: int = 400) -> set[int]:
        """Scheduled times that a success or a skip has met, of the last *limit* runs."""
        rows = self.link.execute(
            "select scheduled from run where pipeline = ? and scheduled is not null "
            "and outcome in (?, ?) order by start desc limit ?",
            [pipeline, Outcome.SUCCESS, Outcome.SKIP, limit],
        )
        return {scheduled for (scheduled,) in rows}

    def pending(self) -> dict[str, dict[str, int]]:
        """Items that wait to be sent, by destination and signal; only what is not 0."""
        found: dict[str, dict[str, int]] = {}
        for number, key, signals in self.link.execute("select id, key, signals from destination"):
            counts = {
                signal: sum(
                    self.link.execute(f"select count(*) from {table}", [number]).fetchone()[0]
                    for table in WAITING[signal]
                )
                for signal in signals.split()
            }
            if any(counts.values()):
                found[key] = {signal: count for signal, count in counts.items() if count}
        return found

    def counters(self, metric: str) -> dict[tuple[tuple[str, str], ...], float]:
        """Totals of one of our own counters over all destinations, by point attributes."""
        from msgspec.msgpack import decode as unpack

        found: dict[tuple[tuple[str, str], ...], float] = {}
        rows = self.link.execute(
            "select attributes, value from total join instrument on instrument.id = instrument "
            "where instrument.name = ?",
            [metric],
        )
        for blob, value in rows:
            key = tuple((name, text) for name, text in unpack(blob))
            found[key] = found.get(key, 0) + value
        return found

    def prune(
        self,
        now: int,
        *,
        details: float = 30 * 86400.0,
        runs: float = 400 * 86400.0,
        max_bytes: int = 1_000_000_000,
    ) -> Pruned:
        """Forget what is too old (seconds before *now*, in ns) or too much. Writes.

        Spans of runs that started before *details* go, then whole runs before *runs*; while the
        file holds more than *max_bytes*, the spans of the oldest runs go too.
        """
        spans, pending = 0, 0
        stored = f"select id from run where has_spans and start < ? and {_OVER} "
        while batch := self._ids(stored + "order by start limit 20", now - round(details * 1e9)):
            spans, pending = _sum((spans, pending), self._forget_spans(batch))
        old = 0
        expired = f"select id from run where start < ? and {_OVER} limit 500"
        while batch := self._ids(expired, now - round(runs * 1e9)):
            spans, pending = _sum((spans, pending), self._forget_spans(batch))
            old += len(batch)
            self._forget_runs(batch)
        while self._bytes() > max_bytes and (
            batch := self._ids(stored + "order by start limit 20", now)
        ):
            spans, pending = _sum((spans, pending), self._forget_spans(batch))
        if spans:
            self.link.execute(
                "delete from resource where id not in (select resource from span union "
                "select resource from total union select resource from delta union "
                "select resource from log)"
            )
        # Keys of journals that are long gone: a file of that name cannot turn up again.
        self.link.execute(
            "delete from journal where closed and at < ?", [now - round(details * 1e9)]
        )
        self.link.execute("pragma incremental_vacuum(2000)").fetchall()
        return Pruned(old, spans, pending)

    def close(self) -> None:
        """Let go of the file."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _of_run(
        self, table: str, columns: tuple[str, ...], run_id: str, rest: str
    ) -> Iterator[dict[str, Any]]:
        rows = self.link.execute(
            f"select {', '.join(columns)} from {table} "
            f"where run = (select id from run where run_id = ?) {rest}",
            [run_id],
        )
        return (dict(zip(columns, row, strict=True)) for row in rows)

    def _ids(self, statement: str, before: int) -> list[int]:
        return [number for (number,) in self.link.execute(statement, [before])]

    def _forget_spans(self, runs: list[int]) -> tuple[int, int]:
        marks = ", ".join("?" * len(runs))
        with transaction(self.link):
            (pending,) = self.link.execute(
                f"select count(*) from span where run in ({marks}) and state = {PENDING}", runs
            ).fetchone()
            spans = self.link.execute(f"delete from span where run in ({marks})", runs).rowcount
            self.link.execute(f"update run set has_spans = 0 where id in ({marks})", runs)
        return spans, pending

    def _forget_runs(self, runs: list[int]) -> None:
        marks = ", ".join("?" * len(runs))
        with transaction(self.link):
            for table in ("stage", "operation", "failure", "dataset", "live", "notice"):
                self.link.execute(f"delete from {table} where run in ({marks})", runs)
            self.link.execute(f"delete from run where id in ({marks})", runs)

    def _bytes(self) -> int:
        pages, free, size = (
            self.link.execute(f"pragma {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)


def open_history(state: Path, *, readonly: bool = False) -> History:
    """The history in the directory *state*.

    Raises sqlite3.Error, also for a file of a newer version and, if `readonly`, for a missing one.
    """
    return History(connect(state, readonly=readonly))


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_RUN_COLUMNS, row, strict=True))
    values["outcome"] = None if values["outcome"] is None else Outcome(values["outcome"])
    return Run(**values)


def _sum(left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    return left[0] + right[0], left[1] + right[1]
