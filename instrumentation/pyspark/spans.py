"""Spans of what Spark tells, on our clock."""

from __future__ import annotations

import time
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.trace import Span, StatusCode
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, semconv
from stagewatch.instrumentation.pyspark import failures
from stagewatch.recording import Recording
from stagewatch.tracing import start_span_as

_MS: Final = 1_000_000


def start_span(
    recording: Recording, name: str, parent: Context, start: int, stage: str,
    known: dict[str, AttributeValue], span_id: int | None = None,
) -> Span:  # fmt: skip
    """A detail of the run of *recording*; *stage*: of the pipeline, empty: none; *span_id*: that
    others have been told before."""
    known[semconv.PIPELINE_NAME] = recording.run.pipeline.name
    known[semconv.SPAN_ROLE] = semconv.ROLE_DETAIL
    if stage:
        known[semconv.STAGE_NAME] = stage
    if span_id is not None:
        return start_span_as(span_id, name, parent, attributes=known, start_time=start)
    return recording.tracer.start_span(name, parent, attributes=known, start_time=start)


def fail(span: Span, error: str, text: str = "") -> None:
    """*error*: its ``error.type``, where *text*, as Spark prints it, tells no more."""
    found = failures.of_text(text) if text else None
    span.set_attribute(semconv.ERROR_TYPE, found.error_type if found is not None else error)
    if found is not None and found.place is not None:
        span.set_attribute(semconv.ERROR_PLACE, found.place)
    span.set_status(StatusCode.ERROR)


def moment(milliseconds: int, earliest: int) -> int:
    """A time of Spark's on our clock, which does not follow steps of the system's: nothing begins
    before what it is a part of, or ends before it began."""
    step = clock.now() - time.time_ns()
    return max(milliseconds * _MS + (step if abs(step) > _MS else 0), earliest)


def start_of(span: Any) -> int:
    """Nanoseconds since the epoch; 0 of one that is not sampled."""
    return getattr(span, "start_time", None) or 0
