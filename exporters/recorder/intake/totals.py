"""The totals of each series, added up in the database.

Within the transaction of the caller, so that a total always agrees with the rows it was counted
from. With delta temporality each increment is kept by itself as well, until it has been sent.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from struct import pack, unpack
from typing import Final

from msgspec.msgpack import decode, encode

from stagewatch import semconv
from stagewatch.exporters.recorder.intake.increments import Increment
from stagewatch.exporters.state import Destination
from stagewatch.measures import DURATION_BUCKETS, SECOND
from stagewatch.records import MetricsCollected

OTHER: Final = "_OTHER"
LABEL_LIMITS: Final = {semconv.ERROR_TYPE: 50, semconv.STAGE_NAME: 200, semconv.OPERATION: 200}
"""Different values per pipeline that become labels; those beyond become `OTHER`. They come from
the user's code, which may make up new ones for ever."""

_ADDED: Final = frozenset({semconv.RUN_ACTIVE.name})  # gauges that count up and down
_NEWEST: Final = frozenset(
    metric.name
    for metric in (
        semconv.LAST_START,
        semconv.LAST_SUCCESS,
        semconv.LAST_END,
        semconv.NEWEST_EVENT,
    )
)
_QUIET: Final = frozenset(
    metric.name
    for metric in (
        semconv.HEARTBEAT,
        semconv.LAST_ACTIVITY,
        semconv.PROGRESS,
        semconv.ESTIMATED_END,
        semconv.TELEMETRY_RECORDED,
        semconv.TELEMETRY_SHIPPED,
        semconv.TELEMETRY_DROPPED,
        semconv.TELEMETRY_PENDING,
    )
)
"""Sent along with others; a change of these alone is no reason to send anything."""


def add_buckets(old: bytes | None, new: bytes | None) -> bytes | None:
    """Sum of two packed bucket counts; a function of the database."""
    if old is None or new is None:
        return new if old is None else old
    layout = f"={len(new) // 8}Q"
    return pack(layout, *map(sum, zip(unpack(layout, old), unpack(layout, new), strict=True)))


_UPSERT: Final = (
    "insert into total(destination, resource, instrument, attributes, pipeline, value, buckets, "
    "start, quiet, changed) values(?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "on conflict(destination, resource, instrument, attributes) do update set "
    "version = version + 1, changed = excluded.changed, "
)
_STATEMENTS: Final = {
    "add": _UPSERT + "value = value + excluded.value, "
    "buckets = add_buckets(buckets, excluded.buckets)",
    "set": _UPSERT + "value = excluded.value where value is not excluded.value",
    "max": _UPSERT + "value = excluded.value where value < excluded.value",
}

_ONE_GAUGE: Final = (
    "destination = ? and resource = ? and pipeline = ? and instrument in "
    f"(select id from instrument where scope = '{semconv.SCOPE}' and name = ?)"
)


def is_delta(goal: Destination) -> bool:
    """Whether counters and histograms are sent there, as deltas."""
    return "metrics" in goal.protocols and goal.temporality in ("delta", "lowmemory")


class Totals:
    """The series of one destination. Every method runs in the caller's transaction."""

    def __init__(self, link: sqlite3.Connection, destination: int, *, delta: bool) -> None:
        self._link = link
        self._destination = destination
        self.is_delta = delta
        self._instruments: dict[tuple[object, ...], int] = {}
        self._labels: dict[tuple[str, str], set[str]] = {}
        self._born = int(link.execute("select value from meta where key = 'born'").fetchone()[0])
        link.create_function("add_buckets", 2, add_buckets, deterministic=True)

    def add(
        self,
        found: Iterable[Increment],
        pipeline: str | None,
        resource: int,
        now: int,
        *,
        run_resource: int = 0,
        since: int = 0,
    ) -> None:
        """Add increments to the totals of *resource*.

        With delta temporality each also becomes a point of *run_resource*, from *since* to *now*
        (ns); increments of one series are added up first.
        """
        sums: dict[tuple[str, tuple[tuple[str, str], ...]], Increment] = {}
        for one in found:
            key = (one.metric.name, one.attributes)
            sums[key] = one if key not in sums else _merged(sums[key], one)
        for one in sums.values():
            metric = one.metric
            quiet = metric.name in _QUIET
            labels = [[semconv.SOURCE, "recorder"], *self._bounded(pipeline, one.attributes)]
            if pipeline and not metric.name.startswith("stagewatch."):
                labels.append([semconv.PIPELINE_NAME, pipeline])
            attributes = encode(sorted(labels))
            buckets = pack(f"={len(one.buckets)}Q", *one.buckets) if one.buckets else None
            kind = {"counter": "sum"}.get(metric.kind, metric.kind)
            bounds = DURATION_BUCKETS if kind == "histogram" else ()
            instrument = self._instrument(
                semconv.SCOPE, "", metric.name, kind, metric.unit, metric.description, bounds
            )
            as_delta = self.is_delta and kind != "gauge" and not quiet
            if as_delta:
                self._insert_delta(
                    run_resource or resource, instrument, attributes, one.value, buckets, since, now
                )
            how = (
                "add"
                if kind != "gauge" or metric.name in _ADDED
                else "max"
                if metric.name in _NEWEST
                else "set"
            )
            self._upsert(
                how, resource, instrument, attributes, pipeline, one.value, buckets,
                self._born, as_delta or quiet, now,
            )  # fmt: skip

    def complete(self, pipeline: str, resource: int) -> None:
        """A run has all of its way behind it, where it showed how far it was."""
        self._link.execute(
            f"update total set value = 1.0, version = version + 1 where {_ONE_GAUGE}",
            (self._destination, resource, pipeline, semconv.PROGRESS.name),
        )

    def withdraw(self, metric: semconv.Metric, pipeline: str, resource: int) -> None:
        """What this gauge showed is over: it is no longer sent."""
        self._link.execute(
            f"delete from total where {_ONE_GAUGE}",
            (self._destination, resource, pipeline, metric.name),
        )

    def add_foreign(self, batch: MetricsCollected, resource: int, now: int) -> int:
        """Other libraries' metrics, under the process's whole resource; returns their points."""
        count = 0
        for metric in batch.metrics:
            for point in metric.points:
                count += 1
                bounds = tuple(point.bounds or ())
                instrument = self._instrument(
                    metric.scope, metric.scope_version or "", metric.name, metric.kind,
                    metric.unit, metric.description, bounds,
                )  # fmt: skip
                attributes = encode(
                    sorted([name, value] for name, value in point.attributes.items())
                )
                counts = point.bucket_counts
                buckets = pack(f"={len(counts)}Q", *counts) if counts else None
                if self.is_delta and metric.kind in ("sum", "histogram"):
                    self._insert_delta(
                        resource,
                        instrument,
                        attributes,
                        point.value,
                        buckets,
                        batch.start,
                        batch.end,
                    )
                    continue
                how = "set" if metric.kind == "gauge" else "add"
                self._upsert(
                    how, resource, instrument, attributes, None, point.value, buckets,
                    batch.start, False, now,
                )  # fmt: skip
        return count

    def _insert_delta(self, *values: object) -> None:
        self._link.execute(
            "insert into delta(destination, resource, instrument, attributes, value, buckets, "
            "start, end) values(?, ?, ?, ?, ?, ?, ?, ?)",
            (self._destination, *values),
        )

    def _upsert(self, how: str, *values: object) -> None:
        self._link.execute(_STATEMENTS[how], (self._destination, *values))

    def _instrument(self, *values: object) -> int:
        number = self._instruments.get(values)
        if number is None:
            row = (*values[:-1], encode(values[-1]))
            self._link.execute(
                "insert or ignore into instrument(scope, scope_version, name, kind, unit, "
                "description, bounds) values(?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            (number,) = self._link.execute(
                "select id from instrument where scope = ? and scope_version = ? and name = ? "
                "and kind = ? and unit = ? and bounds = ?",
                (*row[:5], row[6]),
            ).fetchone()
            self._instruments[values] = number
        return int(number)

    def _bounded(
        self, pipeline: str | None, attributes: Iterable[tuple[str, str]]
    ) -> list[list[str]]:
        labels = []
        for name, value in attributes:
            limit = LABEL_LIMITS.get(name)
            if limit is not None and pipeline is not None:
                seen = self._labels.get((pipeline, name))
                if seen is None:
                    seen = self._labels[pipeline, name] = self._seen(pipeline, name)
                if value not in seen:
                    if len(seen) >= limit:
                        value = OTHER
                    else:
                        seen.add(value)
            labels.append([name, value])
        return labels

    def _seen(self, pipeline: str, name: str) -> set[str]:
        rows = self._link.execute(
            "select distinct attributes from total where destination = ? and pipeline = ?",
            (self._destination, pipeline),
        )
        return {value for (blob,) in rows for key, value in decode(blob) if key == name}

    def prune(self, now: int) -> None:
        """Forget series of other libraries that have been sent and have not grown for an hour.

        They carry their process's whole resource, and so are new ones with every process.
        """
        self._link.execute(
            "delete from total where pipeline is null and version = sent_version and changed < ? "
            "and instrument in (select id from instrument where scope != ?)",
            (now - 3600 * SECOND, semconv.SCOPE),
        )

    def forget(self) -> None:
        """Drop what was remembered of a transaction that was rolled back."""
        self._instruments.clear()
        self._labels.clear()


def _merged(left: Increment, right: Increment) -> Increment:
    if left.metric.kind == "gauge" and left.metric.name not in _ADDED:
        return right
    buckets = None
    if left.buckets and right.buckets:
        buckets = tuple(a + b for a, b in zip(left.buckets, right.buckets, strict=True))
    return Increment(left.metric, left.attributes, left.value + right.value, buckets)
