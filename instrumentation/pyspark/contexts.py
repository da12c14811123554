"""The trace context of an action, as it travels through Spark: in a local property of its jobs."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from stagewatch.task_parents import PROPERTY, stage_span_id

__all__ = ["PROPERTY", "context", "stage_span_id", "traceparent"]


def traceparent(span: SpanContext) -> str:
    """As in W3C's header."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"


def context(value: str) -> Context | None:
    """What a `traceparent` names as the current span; None if it is none."""
    try:
        _, trace_id, span_id, flags = value.split("-")
        found = SpanContext(int(trace_id, 16), int(span_id, 16), True, TraceFlags(int(flags, 16)))
    except ValueError:
        return None
    return trace.set_span_in_context(NonRecordingSpan(found)) if found.is_valid else None
