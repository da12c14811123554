"""Library calls: folded into a tally when they are cheap, a span when they are not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext
from opentelemetry.util.types import AttributeValue

from stagewatch import recording as state
from stagewatch import records, semconv
from stagewatch.failures import error_type, fail_span
from stagewatch.model import Dataset
from stagewatch.recording import Recording, thread
from stagewatch.safety import report
from stagewatch.tracing import add_records, current_stage, detach, on_activity

_clock = time.time_ns
_ticks = time.monotonic_ns


class OperationKind(Struct, frozen=True):
    """What an instrumentor knows of a library call before it happens; made once per patch."""

    name: str
    """``library.call``: the span's name, the tally's and the ``operation`` attribute."""
    io: bool = False
    """Reads or writes something outside the process: always a span."""
    open: bool = False
    """May run the user's code or another instrumentor's: has its span before it runs."""
    library: str = ""
    """The part of `name` before the first dot; set by itself."""

    def __post_init__(self) -> None:
        force_setattr(self, "library", self.name.partition(".")[0])


class Call:
    """An operation under way."""

    __slots__ = ("children", "kind", "outer", "recording", "span", "start", "token", "wall")

    def __init__(self, recording: Recording, kind: OperationKind, outer: str | None) -> None:
        self.recording = recording
        self.kind = kind
        self.outer = outer
        self.wall = _clock()
        self.span: Span | None = None
        self.token: Any = None
        self.children = False
        self.start = 0


open_calls: dict[int, Call] = {}
"""Operations under way that have their span already, by span id."""


def begin(kind: OperationKind) -> Call | None:
    """An operation begins. None: just call through, for nothing records, or we are inside another
    operation of the same library, and only the outermost counts."""
    recording = state.active
    if recording is None:
        return None
    outer = thread.library
    if outer == kind.library:
        return None
    try:
        if on_activity:
            for hook in tuple(on_activity):
                hook()
        call = Call(recording, kind, outer)
        slot = thread.slot if thread.recording is recording else recording.slot()
        if slot is not None:
            slot.show_operation(
                recording.names.get(kind.name) or recording.number(kind.name), call.wall
            )
        if kind.open:
            _open_span(call)
        thread.library = kind.library
        thread.recorded = 0
        call.start = _ticks()
        return call
    except Exception as error:
        report(error)
        return None


def end(
    call: Call,
    error: BaseException | None = None,
    *,
    rows_in: int = 0,
    rows_out: int = 0,
    reads: int | None = None,
    writes: int | None = None,
    datasets: Sequence[Dataset] = (),
    attributes: Mapping[str, AttributeValue] | None = None,
) -> None:
    """The operation is over: once per `begin` that gave a call, on failure too.

    *rows_in*, *rows_out*: of its frames. *reads*, *writes*: rows that came from or went to the
    outside, which are the stage's records; None for operations that do neither.
    """
    nanoseconds = _ticks() - call.start
    thread.library = call.outer
    try:
        recording, kind = call.recording, call.kind
        if recording is not state.active:
            return
        slot = thread.slot
        if slot is not None:
            slot.show_operation(0, 0)
        if call.token is not None:
            detach(call.token)
            open_calls.pop(call.span.get_span_context().span_id, None)  # type: ignore[union-attr]
        stage = current_stage()
        if (
            error is None
            and nanoseconds < recording.threshold
            and not kind.io
            and not call.children
        ):
            recording.operation(stage.name if stage else "", kind.name).add(
                nanoseconds, rows_in, rows_out
            )
            return
        if reads is not None or writes is not None:
            add_records(reads, writes)
        known: dict[str, AttributeValue] = {semconv.ROWS_IN: rows_in, semconv.ROWS_OUT: rows_out}
        for dataset in datasets[:1]:
            known.update(dataset_attributes(dataset))
        span = call.span or _start_span(call)
        span.set_attributes({**known, **(attributes or {})})
        if error is not None:
            fail_span(span, error, recorded=thread.recorded == id(error))
            thread.recorded = id(error)
        span.end(call.wall + nanoseconds)
        recording.sink.append(
            records.OperationEnded(
                recording.run.run_id,
                stage.name if stage else "",
                kind.name,
                nanoseconds,
                rows_in,
                rows_out,
                error_type(error) if error is not None else None,
            )
        )
        for dataset in datasets:
            touch(dataset)
    except Exception as fault:
        report(fault)


def touch(dataset: Dataset) -> None:
    """A dataset was read or written by the current stage."""
    recording = state.active
    if recording is None:
        return
    try:
        stage = current_stage()
        recording.sink.append(
            records.DatasetTouched(
                recording.run.run_id,
                dataset.stage or (stage.name if stage else ""),
                dataset.direction,
                dataset.uri,
                dataset.rows,
                dataset.bytes,
                dataset.fingerprint,
                dataset.newest_event,
                dataset.declared,
                _clock(),
            )
        )
    except Exception as error:
        report(error)


def child_started(parent: SpanContext | None) -> None:
    """A span began; if its parent is an operation under way, that one must not fold."""
    call = open_calls.get(parent.span_id) if parent is not None else None
    if call is not None:
        call.children = True


def dataset_attributes(dataset: Dataset) -> dict[str, AttributeValue]:
    """Span attributes of the operation that touched *dataset*; what is unknown is absent."""
    known: dict[str, AttributeValue | None] = {
        semconv.DATASET_URI: dataset.uri,
        semconv.DATASET_DIRECTION: dataset.direction,
        semconv.DATASET_ROWS: dataset.rows,
        semconv.DATASET_BYTES: dataset.bytes,
        semconv.DATASET_FINGERPRINT: dataset.fingerprint,
    }
    return {name: value for name, value in known.items() if value is not None}


def _open_span(call: Call) -> None:
    call.span = span = _start_span(call)
    open_calls[span.get_span_context().span_id] = call
    call.token = otel_context.attach(trace.set_span_in_context(span))


def _start_span(call: Call) -> Span:
    recording = call.recording
    context = otel_context.get_current()
    if not trace.get_current_span(context).get_span_context().is_valid:
        context = recording.run.context
    known: dict[str, AttributeValue] = {
        semconv.PIPELINE_NAME: recording.run.pipeline.name,
        semconv.OPERATION: call.kind.name,
        semconv.SPAN_ROLE: semconv.ROLE_DETAIL,
    }
    stage = current_stage()
    if stage is not None:
        known[semconv.STAGE_NAME] = stage.name
    return recording.tracer.start_span(
        call.kind.name, context, attributes=known, start_time=call.wall
    )
