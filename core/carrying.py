"""Where work was asked for, carried to where it is done: another thread, or a worker of a pool."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import Token
from typing import Any, NamedTuple

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState

from stagewatch import recording as state
from stagewatch.recording import Recording
from stagewatch.safety import report
from stagewatch.stage_calls import UNSEEN_FILE, drop_first_frame
from stagewatch.tracing import (
    STAGE_KEY,
    Stage,
    StageElsewhere,
    detach,
    innermost,
    stage_of,
)

Function = Callable[..., Any]
_Tokens = tuple[Token[Any], Token[Any]]


class Here(NamedTuple):
    """The stage, and the span, that are current where work is asked for."""

    context: otel_context.Context
    innermost: Stage | Recording | None

    @property
    def stage(self) -> Stage | None:
        """The stage; None outside of any."""
        return stage_of(self.innermost, self.context)


def here() -> Here | None:
    """To be carried elsewhere; None while nothing is recorded."""
    if state.active is None:
        return None
    return Here(otel_context.get_current(), innermost.get())


def go(place: Here | None) -> _Tokens | None:
    """Make *place* current in this thread or task."""
    if place is None:
        return None
    return otel_context.attach(place.context), innermost.set(place.innermost)


def back(tokens: _Tokens | None) -> None:
    """Undo `go`."""
    for token in tokens or ():
        detach(token)


def carried(function: Function) -> Function:
    """What to hand to a pool instead of *function*, for it to be called as if from here."""
    place = here()
    return function if place is None else _Carried(function, place)


class _Carried:
    """Called in a thread it runs the function here; in a worker process the function itself
    arrives, so that nothing of ours is in what the worker raises, pickles or prints."""

    __slots__ = ("_function", "_here")

    def __init__(self, function: Function, place: Here) -> None:
        self._function = function
        self._here = place

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tokens = go(self._here)
        try:
            return self._function(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise
        finally:
            back(tokens)

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, (_carrier(self._here), self._function)


_Carried.__call__.__code__ = _Carried.__call__.__code__.replace(co_filename=UNSEEN_FILE)


# --- between processes --------------------------------------------------------------------------


class Carrier(NamedTuple):
    """`Here` as another process can read it."""

    pid: int
    """Of the sender: a pool that is ended reads what its workers did not."""
    run_id: str
    stage: str
    """Empty outside of any."""
    trace_id: int
    span_id: int
    flags: int
    state: str
    headers: dict[str, str]
    """What else propagators carry, as baggage."""


_packed: tuple[Here | None, tuple[Any, ...] | None] = (None, None)
_unpacked: tuple[Any, Recording | None, Here | None] = (None, None, None)


def _carrier(place: Here) -> tuple[Any, ...] | None:
    """A plain tuple, which any interpreter can unpickle; the last one is kept, for the next item of
    a pool most often comes from the same place."""
    global _packed
    last, packed = _packed
    if (
        last is not None
        and packed is not None
        and last.context is place.context
        and last.innermost is place.innermost
        and packed[0] == os.getpid()
    ):
        return packed
    try:
        recording = state.active
        if recording is None:
            return None
        span = trace.get_current_span(place.context).get_span_context()
        stage = place.stage
        headers: dict[str, str] = {}
        propagate.inject(headers, place.context)
        packed = tuple(
            Carrier(
                os.getpid(),
                recording.run.run_id,
                stage.name if stage is not None else "",
                span.trace_id,
                span.span_id,
                int(span.trace_flags),
                span.trace_state.to_header(),
                headers,
            )
        )
        _packed = place, packed
        return packed
    except Exception as error:
        report(error)
        return None


def arrived(carrier: tuple[Any, ...] | None, function: Function) -> Function:
    """*function* was unpickled, most likely to be called now: until the next one arrives, this
    process works for the stage that the carrier names."""
    global _unpacked
    try:
        recording = state.active
        if recording is not None and carrier is not None and carrier[0] != os.getpid():
            last, whose, place = _unpacked
            if last != carrier or whose is not recording:
                place = _place(Carrier(*carrier), recording)
                _unpacked = carrier, recording, place
            go(place)
    except Exception as error:
        report(error)
    return function


def _place(carrier: Carrier, recording: Recording) -> Here | None:
    if carrier.run_id != recording.run.run_id:  # this process is no part of the sender's run
        return None
    context = propagate.extract(carrier.headers, otel_context.Context())
    span = SpanContext(
        carrier.trace_id,
        carrier.span_id,
        is_remote=True,
        trace_flags=TraceFlags(carrier.flags),
        trace_state=TraceState.from_header([carrier.state]) if carrier.state else None,
    )
    if not span.is_valid:
        span = recording.run.span
    context = trace.set_span_in_context(NonRecordingSpan(span), context)
    if not carrier.stage:
        return Here(context, recording)
    stage = StageElsewhere(recording, carrier.stage)
    return Here(otel_context.set_value(STAGE_KEY, stage, context), stage)
