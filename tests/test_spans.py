"""Spans as journal records: nothing lost, and the SDK's fields are where we read them."""

from __future__ import annotations

import numpy
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from stagewatch.records import ScopeDefined
from tests.recorded import START, Recorded


def test_every_field(recorded: Recorded) -> None:
    """Pins the SDK's private fields that the hot path reads."""
    state = TraceState([("ot", "th:8")])
    parent = SpanContext(7, 9, True, TraceFlags(1), state)
    link = Link(SpanContext(5, 6, False), {"why": "retry"})
    tracer = recorded.provider.get_tracer("lib", "1.2", "https://schema")
    span = tracer.start_span(
        "name",
        trace.set_span_in_context(trace.NonRecordingSpan(parent)),
        kind=SpanKind.CLIENT,
        attributes={"text": "a", "n": 1, "f": 0.5, "b": True, "list": ["x", "y"]},
        links=[link],
        start_time=START,
    )
    span.add_event("happened", {"k": "v"}, START + 1)
    span.set_status(Status(StatusCode.ERROR, "value 'x' is bad"))
    span.end(START + 2)
    (record,) = recorded.spans()
    assert record.name == "name"
    assert record.trace_id == (7).to_bytes(16, "big")
    assert record.span_id == span.get_span_context().span_id.to_bytes(8, "big")
    assert record.parent_span_id == (9).to_bytes(8, "big")
    assert (record.start, record.end, record.kind, record.status) == (START, START + 2, 2, 2)
    assert record.status_description == "value ? is bad"
    assert record.attributes == {"text": "a", "n": 1, "f": 0.5, "b": True, "list": ["x", "y"]}
    assert [tuple(event) for event in record.events or ()] == [("happened", START + 1, {"k": "v"})]
    assert [tuple(found) for found in record.links or ()] == [
        ((5).to_bytes(16, "big"), (6).to_bytes(8, "big"), {"why": "retry"})
    ]
    assert record.trace_state == "ot=th:8"
    (scope,) = recorded.of(ScopeDefined)
    assert (scope.number, scope.name, scope.version, scope.schema_url) == (
        record.scope,
        "lib",
        "1.2",
        "https://schema",
    )


def test_kinds_and_states_have_the_numbers_we_read() -> None:
    """SpanKind and StatusCode are written by value."""
    assert [kind.value for kind in SpanKind] == [0, 1, 2, 3, 4]
    assert [code.value for code in StatusCode] == [0, 1, 2]


def test_dropped_counts(recorded: Recorded) -> None:
    """What the SDK's limits cut off is counted, as it would be with any exporter."""
    limited = TracerProvider(
        span_limits=SpanLimits(max_attributes=1, max_events=1), shutdown_on_exit=False
    )
    limited._active_span_processor = recorded.provider._active_span_processor
    with limited.get_tracer("t").start_as_current_span("s", attributes={"a": 1, "b": 2}) as span:
        for name in "xyz":
            span.add_event(name)
    (record,) = recorded.spans()
    assert record.dropped == (1, 2, 0)


def test_values_msgpack_does_not_know(recorded: Recorded) -> None:
    """numpy scalars and integers beyond 64 bits do not cost the span."""
    with recorded.provider.get_tracer("t").start_as_current_span("s") as span:
        span.set_attribute("np", numpy.float64(1.5))
        span.set_attribute("big", 1 << 70)
    (record,) = recorded.spans()
    assert record.attributes == {"np": 1.5, "big": str(1 << 70)}


def test_secrets_of_other_libraries(recorded: Recorded) -> None:
    """URLs and statements of any instrumentation are cleaned before they are written."""
    with recorded.provider.get_tracer("t").start_as_current_span(
        "s", attributes={"url.full": "http://u:pw@h/?token=1", "db.statement": "x = 'pw'"}
    ):
        pass
    (record,) = recorded.spans()
    assert record.attributes == {"url.full": "http://h/", "db.statement": "x = ?"}


def test_messages_of_exceptions_that_are_plain_attributes(recorded: Recorded) -> None:
    """A span's own attributes are as readable as those of its events."""
    with recorded.provider.get_tracer("t").start_as_current_span(
        "s", attributes={"exception.message": "no such customer: 'Smith'"}
    ):
        pass
    (record,) = recorded.spans()
    assert record.attributes == {"exception.message": "no such customer: ?"}
