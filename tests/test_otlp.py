"""Requests as the official messages read them, and what they must not hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stagewatch.exporters import otlp, wire
from stagewatch.exporters.otlp import LogItem, Point, Resource, Scope, SpanItem
from stagewatch.records import LogEmitted, SpanEnded
from tests.otlp_decode import plain, spans_of

SCOPES = {1: Scope("stagewatch", "", "https://schema"), 2: Scope("mine", "1.2", "")}
RESOURCES = {1: Resource({"service.name": "a"}, False), 2: Resource({"service.name": "b"}, True)}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
scalars = (
    texts
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
)
values = scalars | st.lists(texts, max_size=3) | st.lists(st.integers(0, 300), max_size=3)
names = texts.filter(lambda name: name and name not in wire._WATCHED)
attributes = st.dictionaries(names, values, max_size=5)
times = st.integers(0, 2**63 - 1)


def span(**changes: Any) -> SpanEnded:
    """One that failed with a message which nobody may see."""
    fields: dict[str, Any] = {
        "name": "load",
        "trace_id": b"t" * 16,
        "span_id": b"s" * 8,
        "parent_span_id": b"p" * 8,
        "start": 1,
        "end": 2,
        "kind": 0,
        "status": 2,
        "status_description": "KeyError: hush",
        "scope": 0,
        "attributes": {"a": 1},
    }
    return SpanEnded(**{**fields, **changes})


def received(item: SpanEnded, *, resource: int = 1, threshold: str | None = None) -> Any:
    """The span as a backend decodes it."""
    data = otlp.spans([SpanItem(resource, 1, threshold, item)], RESOURCES, SCOPES)
    (found,) = spans_of(data)
    return found


@settings(deadline=None)
@given(
    name=texts,
    kind=st.integers(0, 4),
    status=st.integers(0, 2),
    start=times,
    end=times,
    found=attributes,
    parent=st.sampled_from([b"", b"12345678"]),
    state=st.sampled_from(["", "a=b", "ot=rv:1;th:8,c=d"]),
    events=st.lists(st.tuples(texts, times, attributes), max_size=2),
    links=st.lists(st.tuples(st.just(b"l" * 16), st.just(b"m" * 8), attributes), max_size=2),
    dropped=st.none() | st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
)
def test_a_span_reads_as_it_was_recorded(
    name: str,
    kind: int,
    status: int,
    start: int,
    end: int,
    found: dict[str, Any],
    parent: bytes,
    state: str,
    events: list[Any],
    links: list[Any],
    dropped: Any,
) -> None:
    """Our own wire format is what the official decoder reads, field by field."""
    item = span(
        name=name, kind=kind, status=status, start=start, end=end, attributes=found,
        parent_span_id=parent, trace_state=state, events=events, links=links, dropped=dropped,
    )  # fmt: skip
    got = received(item).span
    assert (got.name, got.kind, got.status.code) == (name, kind + 1, status)
    assert (got.start_time_unix_nano, got.end_time_unix_nano) == (start, end)
    assert (got.trace_id, got.span_id, got.parent_span_id) == (b"t" * 16, b"s" * 8, parent)
    assert plain(got.attributes) == found
    assert got.trace_state == state
    assert [(e.name, e.time_unix_nano, plain(e.attributes)) for e in got.events] == events
    assert [(one.trace_id, one.span_id, plain(one.attributes)) for one in got.links] == links
    counts = (
        got.dropped_attributes_count,
        got.dropped_events_count,
        got.dropped_links_count,
    )
    assert counts == (dropped or (0, 0, 0))


def test_equal_values_of_different_types_stay_apart() -> None:
    """1, 1.0 and True are equal in Python, and the memory of attributes must not mix them up."""
    for value in (1, 1.0, True, 0, False, 0.0):
        found = received(span(attributes={"x": value})).attributes["x"]
        assert (found, type(found)) == (value, type(value))


def test_the_memory_of_attributes_is_bounded() -> None:
    """A value that is never the same again does not stay for ever."""
    for number in range(10_000):
        wire.attributes({f"n{number}": f"v{number}", f"m{number}": number}, b"\x4a")
        wire.attributes({f"b{number}": True, f"r{number}": 0.5, "long": f"{number:999}"}, b"\x4a")
    memory = wire._remembered[b"\x4a"]
    for known in (memory.texts, memory.booleans, memory.reals, *memory.integers):
        assert len(known) <= wire._REMEMBERED
        assert all(len(made) < 1000 for made in known.values())


def test_large_numbers_and_odd_values_become_text() -> None:
    """What OTLP cannot hold is not lost, and nested values are kept."""
    found = received(span(attributes={"big": 2**70, "none": None, "map": {"a": [1, "b"]}}))
    assert found.attributes == {"big": str(2**70), "none": None, "map": {"a": [1, "b"]}}


def test_items_are_grouped_by_resource_and_scope() -> None:
    """One group each, however they are mixed."""
    places = [(1, 1), (2, 1), (1, 2), (1, 1)]
    items = [
        SpanItem(resource, scope, None, span(name=str(number)))
        for number, (resource, scope) in enumerate(places)
    ]
    request = ExportTraceServiceRequest.FromString(otlp.spans(items, RESOURCES, SCOPES))
    assert [
        (
            plain(group.resource.attributes)["service.name"],
            inner.scope.name,
            inner.scope.version,
            inner.schema_url,
            [one.name for one in inner.spans],
        )
        for group in request.resource_spans
        for inner in group.scope_spans
    ] == [
        ("a", "stagewatch", "", "https://schema", ["0", "3"]),
        ("a", "mine", "1.2", "", ["2"]),
        ("b", "stagewatch", "", "https://schema", ["1"]),
    ]


SECRET = "4711-hush"
TRACE = f'Traceback (most recent call last):\n  File "a.py", line 1, in f\nKeyError: {SECRET}\n'
TELLING = span(
    status_description=SECRET,
    events=[("exception", 1, {"exception.type": "KeyError", "exception.message": SECRET})],
    attributes={"exception.stacktrace": TRACE, "exception.message": SECRET},
)


def test_exception_messages_stay_at_home() -> None:
    """Of the message, its stack trace's line and the status nothing is in the request."""
    item = SpanItem(1, 1, None, TELLING)
    assert SECRET.encode() not in otlp.spans([item], RESOURCES, SCOPES)
    got = received(TELLING)
    assert got.events == [("exception", {"exception.type": "KeyError"})]
    assert "KeyError" in got.attributes["exception.stacktrace"]


def test_exception_messages_leave_when_asked_to() -> None:
    """Where the process's user opted in they go as they are."""
    got = received(TELLING, resource=2)
    assert got.span.status.message == SECRET
    assert got.events[0][1]["exception.message"] == SECRET
    assert got.attributes["exception.stacktrace"] == TRACE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("url.full", f"https://user:{SECRET}@host/path?token={SECRET}"),
        ("db.query.text", f"select * from t where a = '{SECRET}'"),
        ("http.target", f"/path?token={SECRET}"),
    ],
)
def test_standard_attributes_are_cleaned(name: str, value: str) -> None:
    """URLs and SQL of other libraries' spans lose what may be secret."""
    item = SpanItem(1, 1, None, span(attributes={name: value}))
    data = otlp.spans([item], RESOURCES, SCOPES)
    assert SECRET.encode() not in data
    assert name.encode() in data


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", "ot=th:f333"),
        ("vendor=1", "ot=th:f333,vendor=1"),
        ("vendor=1,ot=rv:abc;th:8", "ot=th:f333;rv:abc,vendor=1"),
    ],
)
def test_a_sampled_detail_says_for_how_many_it_stands(state: str, expected: str) -> None:
    """The threshold stands in the trace state, beside what was there."""
    assert received(span(trace_state=state), threshold="f333").span.trace_state == expected


def point(**changes: Any) -> Point:
    """One of a counter."""
    fields: dict[str, Any] = {
        "resource": 1,
        "scope": "stagewatch",
        "scope_version": "",
        "name": "pipeline.runs",
        "kind": "sum",
        "unit": "{run}",
        "description": "Runs that ended.",
        "attributes": [("pipeline.name", "flights")],
        "value": 3,
        "buckets": None,
        "bounds": (),
        "start": 1,
        "time": 2,
        "temporality": otlp.CUMULATIVE,
    }
    return Point(**{**fields, **changes})


def test_metrics_of_every_kind() -> None:
    """Sums, histograms and gauges; points of one metric stand together."""
    made = [
        point(),
        point(value=4, attributes=[("pipeline.name", "b")]),
        point(name="t", value=0.5, temporality=otlp.DELTA),
        point(name="u", kind="updown"),
        point(name="g", kind="gauge", value=1.5),
        point(name="h", kind="histogram", value=0.7, buckets=(1, 0, 2), bounds=(0.1, 0.2)),
        point(name="empty", kind="histogram", value=0, bounds=(0.1, 0.2)),
    ]
    request = ExportMetricsServiceRequest.FromString(otlp.metrics(made, RESOURCES))
    (group,) = request.resource_metrics
    (inner,) = group.scope_metrics
    runs, t, u, g, h, empty = inner.metrics
    assert (runs.name, runs.unit, runs.description) == (
        "pipeline.runs",
        "{run}",
        "Runs that ended.",
    )
    assert [p.as_int for p in runs.sum.data_points] == [3, 4]
    assert (runs.sum.is_monotonic, runs.sum.aggregation_temporality) == (True, 2)
    assert (t.sum.data_points[0].as_double, t.sum.aggregation_temporality) == (0.5, 1)
    assert (u.sum.is_monotonic, g.gauge.data_points[0].as_double) == (False, 1.5)
    (bars,) = h.histogram.data_points
    assert (bars.count, bars.sum, list(bars.bucket_counts)) == (3, 0.7, [1, 0, 2])
    assert list(bars.explicit_bounds) == [0.1, 0.2]
    assert (bars.start_time_unix_nano, bars.time_unix_nano) == (1, 2)
    assert list(empty.histogram.data_points[0].bucket_counts) == [0, 0, 0]


def test_logs() -> None:
    """A log record with its body, trace and attributes; exception messages stay."""
    log = LogEmitted(
        1, 2, 9, "INFO", {"a": 1}, b"t" * 16, b"s" * 8, 0,
        {"k": "v", "exception.message": SECRET}, "event",
    )  # fmt: skip
    data = otlp.logs([LogItem(1, 2, log)], RESOURCES, SCOPES)
    assert SECRET.encode() not in data
    (group,) = ExportLogsServiceRequest.FromString(data).resource_logs
    (inner,) = group.scope_logs
    (got,) = inner.log_records
    assert (inner.scope.name, got.time_unix_nano, got.observed_time_unix_nano) == ("mine", 1, 2)
    assert (got.severity_number, got.severity_text, got.event_name) == (9, "INFO", "event")
    assert (got.trace_id, got.span_id) == (b"t" * 16, b"s" * 8)
    assert plain(got.attributes) == {"k": "v"}
    assert got.body.kvlist_value.values[0].key == "a"
