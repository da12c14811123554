"""Other libraries' measurements, added up where the death of the process does not reach them.

Each series (an instrument and its attributes) has a cell of the status page, which holds what was
counted since the last `MetricsCollected`, and the number of the next one. So the recorder takes
from a dead process's page what is in none of its batches, and nothing twice.
"""

from __future__ import annotations

import operator
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, Final

from msgspec import structs

from stagewatch import clock
from stagewatch.exporters.journal import JournalWriter
from stagewatch.exporters.page import MOST_BUCKETS
from stagewatch.exporters.spans import plain
from stagewatch.records import (
    ForeignMetric,
    ForeignPoint,
    MetricsCollected,
    SeriesDefined,
    encode,
)
from stagewatch.safety import report

SERIES: Final = 48
"""So many have a cell. Further ones are journaled at every measurement: they cost more, but are
not lost either."""
DEFAULT_BOUNDS: Final = (
    0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0,
    10000.0,
)  # fmt: skip
"""Of histograms, by the specification of the SDK."""

_WORD: Final = (1 << 64) - 1
_TOLD_APART: Final = frozenset({str, int, bool, bytes})
"""Types of attribute values that are the same value if they compare equal: not 0.0 and -0.0, nor
tuples, which may hold what is equal and of another type."""
_REMEMBERED: Final = 1000
_DOUBLE: Final = Struct("=d")
_UNSIGNED: Final = Struct("=Q")


class Measurements:
    """What an SDK's instruments report to. No lock but the journal's, which a forked child has
    anew; nothing waits for anybody else's."""

    def __init__(self, journal: JournalWriter, interval: float) -> None:
        self._interval = interval
        self.attach(journal)

    def attach(self, journal: JournalWriter | None) -> None:
        """Count from zero into *journal*, or nothing while there is none: what a forked child
        inherits is its parent's."""
        self._journal = journal
        self._series: dict[tuple[int, bytes], _Series] = {}
        self._found: dict[tuple[Any, ...], _Series] = {}
        """The same by the attributes as they came: in their order, with the types of the values."""
        self._instruments: dict[int, Any] = {}
        self._cells = 0
        self._number = 1
        self._collected = clock.now()
        self._due = time.monotonic() + self._interval

    def consume_measurement(self, measurement: Any) -> None:
        """The SDK's interface; never raises."""
        try:
            journal = self._journal
            if journal is None:
                return
            instrument, attributes = measurement.instrument, measurement.attributes or {}
            types = (*map(type, attributes.values()),)
            key = (id(instrument), types, *attributes.items()) if _are_plain(types) else None
            with journal.lock:
                series = self._found.get(key) if key is not None else None
                if series is None:
                    series = self._look_up(journal, instrument, plain(dict(attributes)))
                    if key is not None:
                        if len(self._found) >= _REMEMBERED:
                            self._found.clear()
                        self._found[key] = series
                series.add(measurement.value, self._number)
                if series.cell is None:
                    now = clock.now()
                    journal.append(MetricsCollected(now, now, [series.take()]))
            if time.monotonic() >= self._due:
                self.collect_if_due()
        except Exception as error:
            report(error)

    def register_asynchronous_instrument(self, instrument: Any) -> None:
        """Their callbacks are the user's code, and may take any time: they are not run."""

    def collect_if_due(self) -> None:
        """Journal what was counted since the last time, if that was an interval ago."""
        journal = self._journal
        if journal is None or time.monotonic() < self._due:
            return
        with journal.lock:
            self._due = time.monotonic() + self._interval
            start, self._collected = self._collected, clock.now()
            found = [series.take() for series in self._series.values() if series.is_pending]
            if found:
                self._number += 1
                journal.append(MetricsCollected(start, self._collected, found, self._number - 1))

    def _look_up(
        self, journal: JournalWriter, instrument: Any, attributes: dict[str, Any]
    ) -> _Series:
        key = id(instrument), encode(sorted(attributes.items()))
        series = self._series.get(key)
        if series is None:
            self._instruments[id(instrument)] = instrument  # so that the id stays its own
            series = self._series[key] = self._new_series(journal, instrument, attributes)
        return series

    def _new_series(
        self, journal: JournalWriter, instrument: Any, attributes: dict[str, Any]
    ) -> _Series:
        kind = _KINDS[type(instrument).__name__.lstrip("_")]
        scope = instrument.instrumentation_scope
        bounds: Sequence[float] | None = None
        if kind == "histogram":
            advisory = getattr(instrument, "_advisory", None)
            given = getattr(advisory, "explicit_bucket_boundaries", None)
            bounds = DEFAULT_BOUNDS if given is None else given
        counts = [] if bounds is None else [0] * (len(bounds) + 1)
        metric = ForeignMetric(
            scope.name,
            scope.version,
            instrument.name,
            instrument.unit or "",
            instrument.description or "",
            kind,
            [
                ForeignPoint(
                    attributes,
                    0,
                    0,
                    None if bounds is None else counts,
                    None if bounds is None else [float(bound) for bound in bounds],
                )
            ],
        )
        layout = "number" if bounds is None else "distribution"
        cell = None
        if self._cells < SERIES and len(counts) <= MOST_BUCKETS:
            cell = journal.cell(layout)
        if cell is not None:
            self._cells += 1
            journal.append(SeriesDefined(cell.offset, layout, metric))
        return _Series(metric, cell)


_are_plain = _TOLD_APART.issuperset
_KINDS: Final = {
    "Counter": "sum",
    "UpDownCounter": "updown",
    "Histogram": "histogram",
    "Gauge": "gauge",
}


class _Series:
    """What one series counted since it was last taken."""

    __slots__ = (
        "cell",
        "is_pending",
        "_bounds",
        "_buckets",
        "_count",
        "_is_gauge",
        "_least",
        "_metric",
        "_most",
        "_unused",
        "_value",
    )

    def __init__(self, metric: ForeignMetric, cell: Any) -> None:
        self.cell = cell
        self._metric = metric
        self._is_gauge = metric.kind == "gauge"
        self._bounds = metric.points[0].bounds or ()
        self._unused = (0,) * (MOST_BUCKETS - len(self._bounds) - 1)
        self._restart()

    def _restart(self) -> None:
        self.is_pending = False
        self._value: int | float = 0
        self._count = 0
        self._least = self._most = 0.0
        self._buckets = list(self._metric.points[0].bucket_counts or ())

    def add(self, value: int | float, number: int) -> None:
        if value.__class__ is not int and value.__class__ is not float:
            value = _plain_number(value)
        self.is_pending = True
        if self._buckets:
            self._buckets[bisect_left(self._bounds, value)] += 1
            if not self._count:
                self._least = self._most = value
            elif value < self._least:
                self._least = value
            elif value > self._most:
                self._most = value
            self._count += 1
            self._value += value
        elif self._is_gauge:
            self._value = value
        else:
            self._value += value
        if self.cell is not None:
            self.cell.store(number, *self._fields())

    def _fields(self) -> tuple[int, ...]:
        value = self._value
        if self._buckets:
            figures = (_bits(value), self._count, _bits(self._least), _bits(self._most))
            return (*figures, *self._buckets, *self._unused)
        if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            return 0, value & _WORD
        return 1, _bits(value)

    def take(self) -> ForeignMetric:
        """What is there, and begin anew."""
        (point,) = self._metric.points
        value = plain(self._value)
        if self._buckets:
            least, most = plain(self._least), plain(self._most)
            found = structs.replace(
                point, value=value, count=self._count, bucket_counts=self._buckets,
                minimum=least, maximum=most,
            )  # fmt: skip
        else:
            found = structs.replace(point, value=value if not isinstance(value, str) else 0)
        self._restart()
        return structs.replace(self._metric, points=[found])


def pending(defined: SeriesDefined, cell: Mapping[str, int], last: int) -> ForeignMetric | None:
    """What a cell holds that is in no batch up to number *last*; None if nothing."""
    if cell["number"] <= last:
        return None
    (point,) = defined.metric.points
    if defined.layout == "number":
        signed = cell["value"] - (1 << 64) if cell["value"] >> 63 else cell["value"]
        found = structs.replace(
            point, value=_double(cell["value"]) if cell["is_double"] else signed
        )
    else:
        found = structs.replace(
            point,
            value=_double(cell["sum"]),
            count=cell["count"],
            bucket_counts=[
                cell[f"bucket_{index}"] for index in range(len(point.bucket_counts or ()))
            ],
            minimum=_double(cell["least"]),
            maximum=_double(cell["most"]),
        )
    return structs.replace(defined.metric, points=[found])


def _plain_number(value: Any) -> int | float:
    # Of numpy, most often: msgpack does not know its numbers.
    try:
        return operator.index(value)
    except TypeError:
        return float(value)


def _bits(value: Any) -> int:
    return int(_UNSIGNED.unpack(_DOUBLE.pack(float(value)))[0])


def _double(bits: int) -> float:
    return float(_DOUBLE.unpack(_UNSIGNED.pack(bits))[0])
