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
from stagewatch.recording import Doing, OperationTally, Recording, thread
from stagewatch.safety import report
from stagewatch.tracing import STAGE_KEY, add_records, current_stage, detach, on_activity

_get_current = otel_context.get_current
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
    number: int = 0
    """Stands for the name in the status page; set by itself."""

    def __post_init__(self) -> None:
        force_setattr(self, "library", self.name.partition(".")[0])
        force_setattr(self, "number", _numbers.setdefault(self.name, len(_numbers) + 1))


_numbers: dict[str, int] = {}


class Call:
    """An operation under way."""

    __slots__ = ("children", "kind", "outer", "recording", "span", "start", "token")

    def __init__(self, outer: str | None) -> None:
        self.outer = outer
        self.span: Span | None = None
        self.token: Any = None
        self.children = False
        self.recording: Recording
        self.kind: OperationKind
        self.start: int


open_calls: dict[int, Call] = {}
"""Operations under way that have their span already, by span id."""


def begin(kind: OperationKind) -> Call | None:
    """An operation begins. None: just call through, for nothing records, or we are inside another
    operation of the same library, and only the outermost counts."""
    recording = state.active
    if recording is None:
        return None
    doing = thread.doing
    call: Call | None = doing.call
    if (
        call is None
        or call.recording is not recording
        or doing.library is not None
        or kind.open
        or kind.number not in recording.named
        or on_activity
    ):
        return _begin_seldom(recording, doing, kind)
    # Two microseconds is all there is, beside the thirteen of a pandas call: nothing is made here.
    call.kind = kind
    doing.library = kind.library
    operation = doing.operation
    operation[1] = call.start = _ticks()
    operation[0] = kind.number
    return call


def _begin_seldom(recording: Recording, doing: Doing, kind: OperationKind) -> Call | None:
    outer = doing.library
    if outer == kind.library:
        return None
    try:
        for hook in tuple(on_activity):
            hook()
        doing = recording.doing()
        if doing.call is None:
            doing.call = Call(None)
            doing.call.recording = recording
        if kind.number not in recording.named:
            recording.sink.append(records.NameDefined(kind.number, kind.name))
            recording.named.add(kind.number)
        call: Call = doing.call
        if outer is not None or kind.open:
            call = Call(outer)
            call.recording = recording
        call.kind = kind
        call.start = _ticks()
        if kind.open:
            _open_span(call)
        doing.operation[1] = call.start
        doing.operation[0] = kind.number
        doing.recorded = 0
        doing.library = kind.library
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
    doing = thread.doing
    doing.library = call.outer
    doing.operation[0] = 0
    recording = call.recording
    kind = call.kind
    try:
        if (
            error is None
            and nanoseconds < recording.threshold
            and not kind.io
            and call.span is None
            and recording is state.active
        ):
            stage = _get_current().get(STAGE_KEY)
            tallies = recording.operations_of("") if stage is None else stage.operations  # type: ignore[attr-defined]
            tally = tallies.get(kind.name) or _new_tally(recording, kind.name)
            tally.add(nanoseconds, rows_in, rows_out)
            return
        if call.token is not None:
            detach(call.token)
            open_calls.pop(call.span.get_span_context().span_id, None)  # type: ignore[union-attr]
        if recording is not state.active:
            return  # a forked child: the call is the parent's
        if error is None and nanoseconds < recording.threshold and not (kind.io or call.children):
            _new_tally(recording, kind.name).add(nanoseconds, rows_in, rows_out)
            return
        if reads is not None or writes is not None:
            add_records(reads, writes)
        known: dict[str, AttributeValue] = {semconv.ROWS_IN: rows_in, semconv.ROWS_OUT: rows_out}
        for dataset in datasets[:1]:
            known.update(dataset_attributes(dataset))
        wall = _clock() - (_ticks() - call.start)
        span = call.span or _start_span(call, wall)
        span.set_attributes({**known, **(attributes or {})})
        if error is not None:
            fail_span(span, error, recorded=doing.recorded == id(error))
            doing.recorded = id(error)
        span.end(wall + nanoseconds)
        recording.sink.append(
            records.OperationEnded(
                recording.run.run_id,
                _stage_name(),
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


def _stage_name() -> str:
    stage = current_stage()
    return stage.name if stage is not None else ""


def _new_tally(recording: Recording, name: str) -> OperationTally:
    return recording.new_tally(_stage_name(), name)


def touch(dataset: Dataset) -> None:
    """A dataset was read or written by the current stage."""
    recording = state.active
    if recording is None:
        return
    try:
        recording.sink.append(
            records.DatasetTouched(
                recording.run.run_id,
                dataset.stage or _stage_name(),
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
    call.span = span = _start_span(call, _clock())
    open_calls[span.get_span_context().span_id] = call
    call.token = otel_context.attach(trace.set_span_in_context(span))


def _start_span(call: Call, wall: int) -> Span:
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
    return recording.tracer.start_span(call.kind.name, context, attributes=known, start_time=wall)
