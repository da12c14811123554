"""Rows of the history as OTLP requests, encoded.

Nothing of an exception's message leaves here unless its resource says that the user opted in
(decision 21); what may carry a secret by its name is cleaned once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from stagewatch.exporters import wire
from stagewatch.records import Attributes, LogEmitted, SpanEnded

CUMULATIVE, DELTA = 2, 1
"""`AggregationTemporality` of OTLP."""
_MAX_INT = 1 << 63


class Resource(NamedTuple):
    """Where telemetry comes from."""

    attributes: Attributes
    messages: bool
    """Exception messages may be exported."""


class Scope(NamedTuple):
    """What recorded it; empty strings for what is unknown."""

    name: str
    version: str
    schema_url: str


class SpanItem(NamedTuple):
    """One span to send."""

    resource: int
    scope: int
    threshold: str | None
    """``th`` value of the sample it stands for."""
    span: SpanEnded


class LogItem(NamedTuple):
    """One log record to send."""

    resource: int
    scope: int
    log: LogEmitted


class Point(NamedTuple):
    """One data point to send; `kind` as in `records.ForeignMetric`."""

    resource: int
    scope: str
    scope_version: str
    name: str
    kind: str
    unit: str
    description: str
    attributes: Iterable[tuple[str, Any]]
    value: float | int
    """Histogram: the sum."""
    buckets: Sequence[int] | None
    bounds: Sequence[float]
    start: int
    time: int
    temporality: int


def spans(
    items: Iterable[tuple[int, int, str | None, SpanEnded]],
    resources: Mapping[int, Resource],
    scopes: Mapping[int, Scope],
) -> bytes:
    """An `ExportTraceServiceRequest` with all *items* (each like a `SpanItem`).

    They are grouped by resource and scope.
    """
    parts: dict[tuple[int, int], list[bytes]] = {}
    for resource, scope, threshold, span in items:
        target = parts.get((resource, scope))
        if target is None:
            target = parts[resource, scope] = []
        encoded = wire.span(span, threshold, resources[resource].messages)
        target += (b"\x12", wire.varint(len(encoded)), encoded)
    groups: dict[int, dict[int, list[bytes]]] = {}
    for (resource, scope), target in parts.items():
        groups.setdefault(resource, {})[scope] = target
    return b"".join(
        wire.block(b"\x0a", _resource_spans(resources[resource], inner, scopes))
        for resource, inner in groups.items()
    )


def _resource_spans(
    resource: Resource, inner: Mapping[int, list[bytes]], scopes: Mapping[int, Scope]
) -> bytes:
    parts = [wire.block(b"\x0a", wire.attributes(resource.attributes, b"\x0a"))]
    for number, encoded in inner.items():
        head = ScopeSpans()
        _set_scope(head, scopes[number])
        parts.append(wire.block(b"\x12", head.SerializeToString() + b"".join(encoded)))
    return b"".join(parts)


def logs(
    items: Iterable[LogItem], resources: Mapping[int, Resource], scopes: Mapping[int, Scope]
) -> bytes:
    """An `ExportLogsServiceRequest` with all *items*, grouped by resource and scope."""
    request = ExportLogsServiceRequest()
    groups: dict[int, Any] = {}
    inners: dict[tuple[int, int], Any] = {}
    for resource, scope, log in items:
        if resource not in groups:
            groups[resource] = request.resource_logs.add()
            wire.put(groups[resource].resource.attributes, resources[resource].attributes)
        if (resource, scope) not in inners:
            inners[resource, scope] = groups[resource].scope_logs.add()
            _set_scope(inners[resource, scope], scopes[scope])
        made = inners[resource, scope].log_records.add(
            time_unix_nano=log.time,
            observed_time_unix_nano=log.observed,
            severity_number=log.severity,
            severity_text=log.severity_text or "",
            trace_id=log.trace_id,
            span_id=log.span_id,
            event_name=log.event_name or "",
        )
        if log.body is not None:
            wire.put_value(made.body, log.body)
        if log.attributes:
            wire.put(made.attributes, wire.exported(log.attributes, resources[resource].messages))
    return _serialized(request)


def metrics(points: Iterable[Point], resources: Mapping[int, Resource]) -> bytes:
    """An `ExportMetricsServiceRequest` with all *points*, grouped by resource, scope and metric."""
    request = ExportMetricsServiceRequest()
    groups: dict[int, Any] = {}
    inners: dict[tuple[int, str, str], Any] = {}
    made: dict[tuple[Any, ...], Any] = {}
    for point in points:
        if point.resource not in groups:
            group = groups[point.resource] = request.resource_metrics.add()
            wire.put(group.resource.attributes, resources[point.resource].attributes)
        where = (point.resource, point.scope, point.scope_version)
        if where not in inners:
            inners[where] = groups[point.resource].scope_metrics.add()
            inners[where].scope.name = point.scope
            inners[where].scope.version = point.scope_version
        key = (*where, point.name, point.kind, point.unit, point.temporality)
        target = made.get(key)
        if target is None:
            metric = inners[where].metrics.add(
                name=point.name, unit=point.unit, description=point.description
            )
            target = made[key] = _data(metric, point)
        _add_point(target, point)
    return _serialized(request)


def _data(metric: Any, point: Point) -> Any:
    if point.kind == "gauge":
        return metric.gauge
    if point.kind == "histogram":
        metric.histogram.aggregation_temporality = point.temporality
        return metric.histogram
    metric.sum.aggregation_temporality = point.temporality
    metric.sum.is_monotonic = point.kind == "sum"
    return metric.sum


def _add_point(target: Any, point: Point) -> None:
    made = target.data_points.add(time_unix_nano=point.time)
    if point.kind != "gauge":
        made.start_time_unix_nano = point.start
    for name, value in point.attributes:
        pair = made.attributes.add(key=name)
        wire.put_value(pair.value, value)
    if point.kind == "histogram":
        buckets = point.buckets or [0] * (len(point.bounds) + 1)
        made.count = sum(buckets)
        made.sum = point.value
        made.bucket_counts.extend(buckets)
        made.explicit_bounds.extend(point.bounds)
    elif isinstance(point.value, int) and abs(point.value) < _MAX_INT:
        made.as_int = point.value
    else:
        made.as_double = point.value


def _set_scope(target: Any, scope: Scope) -> None:
    if scope.name:
        target.scope.name = scope.name
    if scope.version:
        target.scope.version = scope.version
    if scope.schema_url:
        target.schema_url = scope.schema_url


def _serialized(message: Any) -> bytes:
    made: bytes = message.SerializeToString()
    return made
