"""Library calls: folded into a tally when they are cheap, a span when they are not."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, structs
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, records, semconv
from stagewatch import recording as state
from stagewatch.failures import error_type, fail_span, verdict
from stagewatch.model import Dataset
from stagewatch.recording import Add, Recording
from stagewatch.records import NAME_MASK
from stagewatch.safety import report
from stagewatch.tracing import (
    Stage,
    add_records,
    current_stage,
    detach,
    innermost,
    on_activity,
    transferred,
)

_clock = clock.now
_ticks = time.monotonic_ns
_innermost = innermost.get


class OperationKind:
    """What an instrumentor knows of a library call before it happens; made once per patch."""

    __slots__ = ("io", "library", "name", "number", "open", "ready", "rest")

    def __init__(self, name: str, io: bool = False, open: bool = False) -> None:
        self.name = name
        """``library.call``: the span's name, the tally's and the ``operation`` attribute."""
        self.io = io
        """Reads or writes something outside the process: always a span."""
        self.open = open
        """May run the user's code or another instrumentor's: has its span before it runs."""
        self.library = name.partition(".")[0]
        self.number = _numbers.setdefault(name, min(len(_numbers) + 1, NAME_MASK))
        """Stands for the name in the status page."""
        self.rest = NAME_MASK - self.number
        """``(start | NAME_MASK) - rest`` has the number in those bits: quicker than by ``~``."""
        self.ready: Recording | None = None
        """The recording whose journal has the number, if calls may take the short way."""


_numbers: dict[str, int] = {}


class Call:
    """An operation under way. A thread has one that it uses for all its calls that do not nest."""

    __slots__ = (
        "base",
        "children",
        "kind",
        "open",
        "operation",
        "outer",
        "recording",
        "span",
        "start",
        "token",
    )

    def __init__(
        self, recording: Recording, base: Call | None, outer: OperationKind | None
    ) -> None:
        self.recording = recording
        self.base: Call = base or self
        """The thread's own one."""
        self.open: OperationKind | None = None
        """Of the thread's own one: the innermost that is open; further calls of its library do not
        count."""
        self.outer = outer
        """What `open` is when this call is over."""
        self.operation: Any = [0]
        """Where the status page shows the open operation of this thread."""
        self.span: Span | None = None
        self.token: Any = None
        self.children = False
        self.kind: OperationKind
        self.start: int


_thread = threading.local()
"""``_thread.call`` is the calling thread's own, from its first on: no subclass, which would cost as
much again as the look-up."""
open_calls: dict[int, Call] = {}
"""Operations under way that have their span already, by span id."""


def begin(kind: OperationKind) -> Call | None:
    """An operation begins. None: just call through, for nothing records, or we are inside another
    operation of the same library, and only the outermost counts."""
    recording = state.active
    if recording is None:
        return None
    call: Call | None
    try:
        call = _thread.call
    except AttributeError:  # handled below: what a signal handler raises has no context of ours
        call = None
    if (
        call is None
        or call.open is not None
        or call.recording is not recording
        or kind.ready is not recording
        or on_activity
    ):
        return _begin_seldom(recording, call, kind)
    # Two microseconds is all there is, beside the thirteen of a pandas call: nothing is made here.
    call.kind = kind
    call.start = start = _ticks()
    call.operation[0] = (start | NAME_MASK) - kind.rest
    call.open = kind  # last: a signal handler may have raised until here
    return call


def _begin_seldom(recording: Recording, base: Call | None, kind: OperationKind) -> Call | None:
    try:
        recording = state.here() or recording
        base = _own(recording, base)
        outer = base.open
        if outer is not None and outer.library == kind.library:
            return None
        for hook in tuple(on_activity):
            hook()
        if kind.number not in recording.named:
            recording.named.add(kind.number)
            recording.sink.append(records.NameDefined(kind.number, kind.name))
        if not (kind.open or kind.io) and recording is state.active:
            kind.ready = recording
        call = base
        if outer is not None or kind.open:
            call = Call(recording, base, outer)
            call.operation = base.operation
        call.kind = kind
        call.start = _ticks()
        if kind.open:
            _open_span(call)
        call.operation[0] = (call.start | NAME_MASK) - kind.rest
        base.open = kind
        return call
    except Exception as error:
        report(error)
        return None


def _own(recording: Recording, base: Call | None) -> Call:
    """The calling thread's own; *base*: the one it had, if any."""
    if base is None or base.recording is not recording:  # or the first after a fork
        base = _thread.call = Call(recording, None, None)
        doing = recording.doing()
        if doing.slot is not None:
            base.operation = doing.slot.operation
    return base


def suspend(call: Call) -> None:
    """A call whose kind is ``open`` pauses, as a generator does at a ``yield``: until `resume`
    other code runs, which is not inside it, and its time stands still."""
    call.base.open = call.outer
    call.start = _ticks() - call.start
    if not call.recording.is_over:
        call.operation[0] = 0
    if call.token is not None:
        detach(call.token)
        call.token = None


def resume(call: Call) -> None:
    """It goes on, in whatever thread."""
    recording, span = call.recording, call.span
    call.start = _ticks() - call.start
    if recording.is_over or span is None:
        return  # a forked child: the call is the parent's
    base = call.base = _own(recording, getattr(_thread, "call", None))
    call.outer, call.operation = base.open, base.operation
    call.token = otel_context.attach(trace.set_span_in_context(span))
    call.operation[0] = (call.start | NAME_MASK) - call.kind.rest
    base.open = call.kind


def fold(call: Call, rows_in: int, rows_out: int) -> None:
    """`end` of a call that went well, for kinds that are neither ``io`` nor ``open``: the path on
    which a microsecond counts."""
    call.base.open = call.outer
    nanoseconds = _ticks() - call.start
    recording = call.recording
    if nanoseconds >= recording.threshold:
        end(call, rows_in=rows_in, rows_out=rows_out)
        return
    call.operation[0] = 0
    try:
        scope: Any = _innermost()
        if scope is None or scope.recording is not recording:
            scope = _scope(recording)
        add: Add | None
        try:
            add = scope.operations[call.kind.name]
        except KeyError:
            add = None
        if add is None:
            add = _new_tally(recording, call.kind.name)
        add(nanoseconds, rows_in, rows_out)
    except Exception as fault:
        report(fault)


def end(
    call: Call,
    error: BaseException | None = None,
    *,
    rows_in: int = 0,
    rows_out: int = 0,
    reads: int | None = None,
    writes: int | None = None,
    bytes_in: int = 0,
    bytes_out: int = 0,
    datasets: Sequence[Dataset] = (),
    attributes: Mapping[str, AttributeValue] | None = None,
) -> None:
    """The operation is over: once per `begin` that gave a call, on failure too.

    *rows_in*, *rows_out*: of its frames. *reads*, *writes*: rows that came from or went to the
    outside, which are the stage's records; None for operations that do neither. *bytes_in*,
    *bytes_out*: as far as they are known.
    """
    call.base.open = call.outer  # before any call, in which a signal handler may raise
    recording, kind = call.recording, call.kind
    try:
        nanoseconds = _leave(call)
        if recording.is_over:
            return  # a forked child: the call is the parent's
        if error is None and nanoseconds < recording.threshold and not (kind.io or call.children):
            _new_tally(recording, kind.name)(nanoseconds, rows_in, rows_out)
            return
        if reads is not None or writes is not None:
            add_records(reads, writes)
        transferred(bytes_in, bytes_out)
        wall = _clock() - (_ticks() - call.start)
        span = call.span or _start_span(call, wall)
        span.set_attributes({**_figures(rows_in, rows_out, datasets), **(attributes or {})})
        if error is not None:
            fail_span(span, error, recorded=recording.doing().has_recorded(error, span))
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


def announce(call: Call) -> None:
    """The beginning of a call whose kind is ``open`` goes into the journal now, as it does when
    its span gets a child here: for one whose children others report, perhaps after its process is
    dead, which is closed with its id then. Never raises; again is harmless."""
    recording, span = call.recording, call.span
    if span is not None and not recording.is_over:
        recording.begin(span)


class Later(Struct):
    """An operation that is over, but whose figures are still coming; see `end_later`."""

    recording: Recording
    span: Span
    stage: Stage | None
    """That it belongs to, which waits for it."""
    end: int
    """Nanoseconds since the epoch."""
    ended: records.OperationEnded
    """Without its rows."""
    children: bool
    """Something began in it that needs its span."""

    def fold(self) -> None:
        """Nothing came of a call whose kind is not ``io``: it is counted like any cheap one."""
        if self.children or self.ended.error_type is not None:
            self.complete()
            return
        recording, stage, ended = self.recording, self.stage, self.ended
        try:
            if not recording.is_over:
                recording.sink.append(structs.replace(ended, folded=True))
        except Exception as fault:
            report(fault)
        finally:
            if stage is not None:
                stage.let_go()

    def count(
        self, reads: int | None, writes: int | None = None, bytes_in: int = 0, bytes_out: int = 0
    ) -> None:
        """What came from or went to the outside; also when it is complete, for what goes on."""
        if not self.recording.is_over and (
            reads is not None or writes is not None or bytes_in or bytes_out
        ):
            add = self.recording.add if self.stage is None else self.stage.count
            add(reads, writes, 0, 0, bytes_in, bytes_out)

    def complete(
        self,
        *,
        rows_in: int = 0,
        rows_out: int = 0,
        reads: int | None = None,
        writes: int | None = None,
        bytes_in: int = 0,
        bytes_out: int = 0,
        datasets: Sequence[Dataset] = (),
        attributes: Mapping[str, AttributeValue] | None = None,
    ) -> None:
        """They are there: as for `end`. Once, from any thread; where it is not called the
        operation is closed without them when its process is dead. In a forked child nothing
        happens."""
        recording, stage, ended = self.recording, self.stage, self.ended
        if recording.is_over:
            return
        try:
            self.count(reads, writes, bytes_in, bytes_out)
            found = _figures(rows_in, rows_out, datasets)
            self.span.set_attributes({**found, **(attributes or {})})
            self.span.end(self.end)
            recording.sink.append(structs.replace(ended, rows_in=rows_in, rows_out=rows_out))
            for dataset in datasets:
                _touch(recording, dataset, dataset.stage or ended.stage, self.end)
        except Exception as fault:
            report(fault)
        finally:
            if stage is not None:
                stage.let_go()


def end_later(call: Call, error: BaseException | None = None) -> Later | None:
    """`end` of a call whose kind is ``open`` and whose figures come after it has returned: its
    end is in the journal now, its span when they are complete. None: nothing is to come.
    """
    call.base.open = call.outer
    recording, span = call.recording, call.span
    try:
        nanoseconds = _leave(call)
        if recording.is_over or span is None:
            return None  # a forked child: the call is the parent's
        end = _clock() - (_ticks() - call.start) + nanoseconds
        stage = current_stage()
        outcome, failed_as = verdict(error)
        if error is not None and failed_as is not None:
            fail_span(span, error, recorded=recording.doing().has_recorded(error, span))
        span_id = span.get_span_context().span_id.to_bytes(8, "big")
        name = stage.name if stage is not None else ""
        ended = records.OperationEnded(
            recording.run.run_id, name, call.kind.name, nanoseconds, 0, 0, failed_as, span_id
        )
        recording.begin(span)
        recording.sink.append(records.SpanLeft(span_id, end, outcome.value, failed_as, ended))
        if stage is not None:
            stage.hold()  # last: who holds it has to let it go
        return Later(recording, span, stage, end, ended, call.children)
    except Exception as fault:
        report(fault)
        return None


def _scope(recording: Recording) -> Any:
    """What has the tallies: stage or recording; for a stage of before a fork, its namesake."""
    stage = current_stage()
    if stage is None:
        return recording
    return stage if stage.recording is recording else _Namesake(recording.operations_of(stage.name))


class _Namesake(NamedTuple):
    operations: dict[str, Add]


def _stage_name() -> str:
    stage = current_stage()
    return stage.name if stage is not None else ""


def _new_tally(recording: Recording, name: str) -> Add:
    return recording.new_tally(_stage_name(), name)


def forget(call: Call) -> None:
    """It was no call after all (an iterator that was at its end): it is not counted."""
    call.base.open = call.outer
    _leave(call)


def _leave(call: Call) -> int:
    """Neither shown nor current any more; its nanoseconds."""
    nanoseconds = _ticks() - call.start
    if not call.recording.is_over:  # else a forked child: page and call are the parent's
        call.operation[0] = 0
    if call.token is not None:
        detach(call.token)
    if call.span is not None:
        open_calls.pop(call.span.get_span_context().span_id, None)
    return nanoseconds


def touch(dataset: Dataset) -> None:
    """A dataset was read or written by the current stage."""
    recording = state.here()
    if recording is None:
        return
    try:
        _touch(recording, dataset, dataset.stage or _stage_name(), _clock())
    except Exception as error:
        report(error)


def _touch(recording: Recording, dataset: Dataset, stage: str, at: int) -> None:
    recording.sink.append(
        records.DatasetTouched(
            recording.run.run_id,
            stage,
            dataset.direction,
            dataset.uri,
            dataset.rows,
            dataset.bytes,
            dataset.fingerprint,
            dataset.newest_event,
            dataset.declared,
            at,
        )
    )


def child_started(parent: SpanContext | None) -> None:
    """A span began; if its parent is an operation under way, that one must not fold."""
    call = open_calls.get(parent.span_id) if parent is not None else None
    if call is not None:
        call.children = True


def _figures(rows_in: int, rows_out: int, datasets: Sequence[Dataset]) -> dict[str, AttributeValue]:
    known: dict[str, AttributeValue] = {semconv.ROWS_IN: rows_in, semconv.ROWS_OUT: rows_out}
    for dataset in datasets[:1]:
        known.update(dataset_attributes(dataset))
    return known


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
