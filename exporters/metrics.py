"""Other libraries' metrics: read as deltas and written to the journal.

The SDK is imported when somebody asks for a meter, not before. There is no reader thread: a
process with one more thread is warned when it forks (Python 3.12). What was counted is collected
when a stage ends, at most once per ``OTEL_METRIC_EXPORT_INTERVAL``, and at exit.
"""

from __future__ import annotations

import os
import time
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter, NoOpMeterProvider

from stagewatch.exporters.journal import JournalWriter
from stagewatch.exporters.spans import plain
from stagewatch.records import ForeignMetric, ForeignPoint, MetricsCollected
from stagewatch.safety import guarded

_INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"


class LazyMeterProvider(MeterProvider):
    """Becomes the SDK's at the first meter."""

    def __init__(self, journal: JournalWriter, resource: Any) -> None:
        self._journal = journal
        self._resource = resource
        self._pid = os.getpid()
        self._real: MeterProvider | None = None
        self._reader: Any = None
        self._collected = time.time_ns()
        self._due = time.monotonic() + _interval()

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> Meter:
        """A meter of the SDK's."""
        if self._real is None:
            self._real = self._make()
        return _SynchronousMeter(self._real.get_meter(name, version, schema_url, attributes))

    @guarded
    def collect_if_due(self) -> None:
        """`collect`, if the last time was an interval ago."""
        if self._reader is not None and time.monotonic() >= self._due:
            self.collect()

    @guarded
    def collect(self) -> None:
        """Journal what was counted since the last time.

        Not in a forked child: what it inherited is the parent's, and a lock may be held for ever.
        """
        if self._reader is None or self._pid != os.getpid():
            return
        self._due = time.monotonic() + _interval()
        start, self._collected = self._collected, time.time_ns()
        found = _foreign(self._reader.get_metrics_data())
        if found:
            self._journal.append(MetricsCollected(start, self._collected, found))

    def _make(self) -> MeterProvider:
        try:
            from opentelemetry.sdk import metrics as sdk
            from opentelemetry.sdk.metrics import export

            deltas: dict[type, Any] = {
                kind: export.AggregationTemporality.DELTA
                for kind in (
                    sdk.Counter,
                    sdk.UpDownCounter,
                    sdk.Histogram,
                    sdk.ObservableCounter,
                    sdk.ObservableUpDownCounter,
                    sdk.ObservableGauge,
                )
            }
            self._reader = export.InMemoryMetricReader(preferred_temporality=deltas)
            return sdk.MeterProvider([self._reader], self._resource, shutdown_on_exit=False)
        except Exception:  # a broken SDK must not break who asked for a meter
            return NoOpMeterProvider()


class _SynchronousMeter(NoOpMeter):
    """The SDK's meter without observable instruments: their callbacks are the user's code, and may
    take any time; without a thread they would run in the middle of the job."""

    def __init__(self, real: Meter) -> None:
        super().__init__(real.name, real.version, real.schema_url)
        self.create_counter = real.create_counter  # type: ignore[method-assign]
        self.create_up_down_counter = real.create_up_down_counter  # type: ignore[method-assign]
        self.create_histogram = real.create_histogram  # type: ignore[method-assign]
        self.create_gauge = real.create_gauge  # type: ignore[method-assign]


installed: LazyMeterProvider | None = None


def install(journal: JournalWriter, resource: Any) -> None:
    """Make ours the meter provider, unless ``OTEL_METRICS_EXPORTER`` is ``none``."""
    global installed
    if os.environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none":
        return
    installed = LazyMeterProvider(journal, resource)
    api.set_meter_provider(installed)


def _interval() -> float:
    try:
        return float(os.environ.get(_INTERVAL_VARIABLE, "60000")) / 1000
    except ValueError:
        return 60.0


def _foreign(data: Any) -> list[ForeignMetric]:
    return [
        ForeignMetric(
            scope.scope.name,
            scope.scope.version,
            metric.name,
            metric.unit or "",
            metric.description or "",
            _kind(metric.data),
            [_point(point) for point in metric.data.data_points],
        )
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if type(metric.data).__name__ in ("Sum", "Gauge", "Histogram") and metric.data.data_points
    ]


def _kind(data: Any) -> str:
    if type(data).__name__ == "Sum":
        return "sum" if data.is_monotonic else "updown"
    return type(data).__name__.lower()


def _point(point: Any) -> ForeignPoint:
    attributes = plain(dict(point.attributes or {}))
    if hasattr(point, "bucket_counts"):
        return ForeignPoint(
            attributes,
            plain(point.sum),
            point.count,
            list(point.bucket_counts),
            [float(bound) for bound in point.explicit_bounds],
            plain(point.min) if point.count else None,
            plain(point.max) if point.count else None,
        )
    return ForeignPoint(attributes, plain(point.value))
