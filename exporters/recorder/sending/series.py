"""Series of metrics as the outbox sends them: totals as of now, deltas as they were."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from struct import unpack
from typing import Any, Final

from msgspec import Struct, msgpack

from stagewatch import semconv
from stagewatch.exporters.otlp import CUMULATIVE, DELTA, Point

_STALE_SECONDS: Final = 30.0
"""After so long without a sample the total is sent once more as it was, before it grows."""

_POINT: Final = (
    "t.n, t.resource, i.scope, i.scope_version, i.name, i.kind, i.unit, i.description, "
    "t.attributes, t.value, t.buckets, i.bounds, t.start"
)
_ACTIVE: Final = (
    "select a.pipeline from total a join instrument b on b.id = a.instrument "
    f"where a.destination = ?1 and b.name = '{semconv.RUN_ACTIVE.name}' "
    f"and b.scope = '{semconv.SCOPE}' and a.value > 0"
)
_HEALTH: Final = f"(i.scope = '{semconv.SCOPE}' and i.name like 'stagewatch.%')"


class Series(Struct, frozen=True):
    """One row of the table of totals."""

    n: int
    resource: int
    scope: str
    scope_version: str
    name: str
    kind: str
    unit: str
    description: str
    attributes: bytes
    value: float | int
    buckets: bytes | None
    bounds: bytes
    start: int
    version: int
    sent_version: int
    sent_value: float | int | None
    sent_buckets: bytes | None
    sent_at: int | None

    def is_new(self, now: int) -> bool:
        """Whether its next sample needs one before it to be an increase."""
        grows = self.kind in ("sum", "histogram") and self.version != self.sent_version
        return grows and (self.sent_at is None or now - self.sent_at > _STALE_SECONDS * 1e9)

    def before(self, now: int) -> Point:
        """As it was sent last; 0 if it never was."""
        value = type(self.value)(0) if self.sent_value is None else self.sent_value
        return self._point(value, self.sent_buckets, self.start, now, CUMULATIVE)

    def point(self, now: int, *, delta: bool) -> Point:
        """As of *now*; with *delta* a counter shows what was added since it was sent last."""
        if not delta or self.kind != "sum":
            return self._point(self.value, self.buckets, self.start, now, CUMULATIVE)
        since = self.start if self.sent_at is None else self.sent_at
        return self._point(self.value - (self.sent_value or 0), None, since, now, DELTA)

    def _point(
        self, value: float | int, buckets: bytes | None, start: int, now: int, temporality: int
    ) -> Point:
        return Point(
            self.resource,
            self.scope,
            self.scope_version,
            self.name,
            self.kind,
            self.unit,
            self.description,
            msgpack.decode(self.attributes),
            value,
            _counts(buckets),
            msgpack.decode(self.bounds),
            start,
            now,
            temporality,
        )


def is_active(link: sqlite3.Connection, destination: int) -> bool:
    """Whether any pipeline has a run under way."""
    return bool(link.execute(f"select exists({_ACTIVE})", (destination,)).fetchone()[0])


def has_news(link: sqlite3.Connection, destination: int) -> bool:
    """Whether totals are to be sent at all: something changed, or a run is under way."""
    changed = "select 1 from total where destination = ?1 and version != sent_version and not quiet"
    statement = f"select exists({changed}) or exists({_ACTIVE})"
    return bool(link.execute(statement, (destination,)).fetchone()[0])


def totals(link: sqlite3.Connection, destination: int, *, delta: bool) -> list[Series]:
    """What has changed, and all of the pipelines that have a run under way.

    With *delta* without counters and histograms, which go by themselves (`deltas`); but those of
    telemetry's own health are sent from their totals, or sending would never end.
    """
    kinds = f"and (i.kind in ('gauge', 'updown') or {_HEALTH})" if delta else ""
    found = link.execute(
        f"select {_POINT}, t.version, t.sent_version, t.sent_value, t.sent_buckets, t.sent_at "
        "from total t join instrument i on i.id = t.instrument where t.destination = ?1 "
        f"and (t.version != t.sent_version or t.pipeline in ({_ACTIVE})) {kinds} order by t.n",
        (destination,),
    )
    return [Series(*row) for row in found]


def mark_sent(link: sqlite3.Connection, sent: Iterable[Series], now: int) -> None:
    """Remember what the backend has; what changed meanwhile stays to be sent."""
    link.executemany(
        "update total set sent_version = ?, sent_value = ?, sent_buckets = ?, sent_at = ? "
        "where n = ?",
        [(one.version, one.value, one.buckets, now, one.n) for one in sent],
    )


def deltas(link: sqlite3.Connection, destination: int, limit: int) -> dict[int, Point]:
    """The oldest increments that wait, by row id."""
    found = link.execute(
        f"select {_POINT}, t.end from delta t join instrument i on i.id = t.instrument "
        "where t.destination = ? order by t.n limit ?",
        (destination, limit),
    )
    return {row[0]: _delta_point(*row) for row in found}


def _delta_point(
    n: int, resource: int, scope: str, scope_version: str, name: str, kind: str, unit: str,
    description: str, attributes: bytes, value: Any, buckets: bytes | None, bounds: bytes,
    start: int, end: int,
) -> Point:  # fmt: skip
    return Point(
        resource, scope, scope_version, name, kind, unit, description,
        msgpack.decode(attributes), value, _counts(buckets), msgpack.decode(bounds), start, end,
        DELTA,
    )  # fmt: skip


def _counts(buckets: bytes | None) -> tuple[int, ...] | None:
    return None if buckets is None else unpack(f"={len(buckets) // 8}Q", buckets)
