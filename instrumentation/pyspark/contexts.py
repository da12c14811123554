"""The trace context of an action, as it travels through Spark: in a local property of its jobs."""

from __future__ import annotations

import hashlib
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

PROPERTY: Final = "stagewatch.traceparent"
"""Name of the local property; tasks read it with `TaskContext.getLocalProperty`."""


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


def stage_span_id(value: str, stage: int, attempt: int) -> int:
    """Span id of a Spark stage of the action with this `traceparent`: a task can work it out before
    that span exists."""
    digest = hashlib.sha1(f"{value}/{stage}.{attempt}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") or 1
