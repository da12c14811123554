"""Other libraries' metrics: their instruments are the SDK's, what they count is ours to keep.

The SDK is imported when somebody asks for a meter, not before. There is no reader thread: a
process with one more thread is warned when it forks (Python 3.12).
"""

from __future__ import annotations

import os
import threading
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter, NoOpMeterProvider

from stagewatch.exporters.journal import JournalWriter
from stagewatch.exporters.measurements import Measurements
from stagewatch.safety import guarded

_INTERVAL_VARIABLE = "OTEL_METRIC_EXPORT_INTERVAL"


class LazyMeterProvider(MeterProvider):
    """Becomes the SDK's at the first meter."""

    def __init__(self, journal: JournalWriter, resource: Any) -> None:
        self._measurements = Measurements(journal, _interval())
        self._resource = resource
        self._real: Any = None

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
        """See `Measurements.collect_if_due`; called when a stage ends."""
        self._measurements.collect_if_due()

    @guarded
    def attach(self, journal: JournalWriter | None) -> None:
        """In a forked child: count from zero into its own *journal*, once it has one, and wait for
        no lock that a thread of the parent's held."""
        self._measurements.attach(journal)
        # The SDK renews its other locks itself.
        for meter in tuple(getattr(self._real, "_meters", {}).values()):
            meter._instrument_registration_lock = threading.Lock()

    def _make(self) -> Any:
        try:
            from opentelemetry.sdk import metrics as sdk
            from opentelemetry.sdk.resources import Resource

            sdk._internal._get_process_dependent_resource = Resource.get_empty  # type: ignore[attr-defined]
            provider = sdk.MeterProvider([], self._resource, shutdown_on_exit=False)
            provider._measurement_consumer = self._measurements  # type: ignore[assignment]
            return provider
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
