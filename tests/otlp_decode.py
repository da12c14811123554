"""OTLP requests as tests look at them: the protobuf messages with where they came from."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

Signal = Literal["traces", "metrics", "logs"]


@dataclass(frozen=True)
class Request:
    """One export request as it came in: body decompressed, header names in lower case."""

    signal: Signal
    headers: dict[str, str]
    body: bytes
    status: int
    """The HTTP status it was answered with (for gRPC the one it stands for); 0: no answer."""
    time: float
    """Seconds since the epoch at arrival."""


@dataclass(frozen=True)
class ReceivedSpan:
    """A span with where it came from; `span` is the protobuf message itself."""

    span: Any
    resource: dict[str, Any]
    scope: str
    time: float = 0.0
    """Seconds since the epoch at arrival."""

    @property
    def name(self) -> str:
        return str(self.span.name)

    @property
    def trace_id(self) -> str:
        """32 hex digits."""
        return str(self.span.trace_id.hex())

    @property
    def span_id(self) -> str:
        """16 hex digits."""
        return str(self.span.span_id.hex())

    @property
    def parent_span_id(self) -> str:
        """16 hex digits, empty for a root."""
        return str(self.span.parent_span_id.hex())

    @property
    def attributes(self) -> dict[str, Any]:
        return plain(self.span.attributes)

    @property
    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and attributes of each."""
        return [(event.name, plain(event.attributes)) for event in self.span.events]


@dataclass(frozen=True)
class MetricPoint:
    """One data point; `point` is the protobuf message itself."""

    name: str
    unit: str
    kind: str
    """gauge, sum, histogram, exponential_histogram or summary."""
    temporality: str
    """delta, cumulative, or empty where there is none (gauge, summary)."""
    monotonic: bool
    point: Any
    resource: dict[str, Any]
    scope: str

    @property
    def attributes(self) -> dict[str, Any]:
        return plain(self.point.attributes)

    @property
    def value(self) -> float:
        """Of a gauge or sum; the sum of a histogram or summary."""
        if self.kind in ("gauge", "sum"):
            return float(getattr(self.point, self.point.WhichOneof("value")))
        return float(self.point.sum)


@dataclass(frozen=True)
class LogRecord:
    """One log record; `record` is the protobuf message itself."""

    record: Any
    resource: dict[str, Any]
    scope: str

    @property
    def body(self) -> Any:
        return _value(self.record.body)

    @property
    def attributes(self) -> dict[str, Any]:
        return plain(self.record.attributes)


def plain(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    """Protobuf attributes as Python values."""
    return {item.key: _value(item.value) for item in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return plain(value.kvlist_value.values)
    return getattr(value, kind)


def spans_of(body: bytes, time: float = 0.0) -> Iterator[ReceivedSpan]:
    """Every span of an `ExportTraceServiceRequest` that came in at *time*."""
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = plain(group.resource.attributes)
        for scoped in group.scope_spans:
            for span in scoped.spans:
                yield ReceivedSpan(span, resource, scoped.scope.name, time)


def metric_points_of(body: bytes) -> Iterator[MetricPoint]:
    """Every point of an `ExportMetricsServiceRequest`."""
    temporalities = {0: "", 1: "delta", 2: "cumulative"}
    for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
        resource = plain(group.resource.attributes)
        for scoped in group.scope_metrics:
            for metric in scoped.metrics:
                kind = metric.WhichOneof("data")
                if kind is None:
                    continue
                data = getattr(metric, kind)
                temporality = temporalities[getattr(data, "aggregation_temporality", 0)]
                monotonic = bool(getattr(data, "is_monotonic", False))
                for point in data.data_points:
                    yield MetricPoint(
                        metric.name,
                        metric.unit,
                        kind,
                        temporality,
                        monotonic,
                        point,
                        resource,
                        scoped.scope.name,
                    )


def log_records_of(body: bytes) -> Iterator[LogRecord]:
    """Every record of an `ExportLogsServiceRequest`."""
    for group in ExportLogsServiceRequest.FromString(body).resource_logs:
        resource = plain(group.resource.attributes)
        for scoped in group.scope_logs:
            for record in scoped.log_records:
                yield LogRecord(record, resource, scoped.scope.name)


def read_requests(path: Path) -> list[Request]:
    """What a receiver process has written so far to its ``--out`` file."""
    requests = []
    for line in path.read_text().splitlines():
        fields = json.loads(line)
        requests.append(Request(**{**fields, "body": base64.b64decode(fields["body"])}))
    return requests
