"""The current run and stage, and the one place that opens spans.

Nothing here raises, and everything is a no-op until `start` was called: instrumentors and the
user's ``with stage(…)`` need not ask. What is seen goes to a `Sink` (journal and status page).
"""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, records, semconv
from stagewatch import recording as state
from stagewatch.failures import fail_span, verdict
from stagewatch.model import Outcome, Pipeline
from stagewatch.recording import Add, Counts, Recording, Run, thread
from stagewatch.records import StageEnded
from stagewatch.safety import report
from stagewatch.system import PEAK_UNIT

FULL_SPANS = 100
"""Calls of one stage name in a run that get a span; the rest fold into a tally."""

_MOST_RECORDS = 1 << 53
"""What page, history and protobuf hold, also in sums."""
STAGE_KEY = otel_context.create_key("stagewatch-stage")
"""Where the current stage is in an OpenTelemetry context, which pools hand on to their threads."""
innermost: ContextVar[Stage | Recording | None] = ContextVar("stagewatch", default=None)
"""The same, one call away; the recording where no stage is open, None where only the OpenTelemetry
context knows."""
_get_current = otel_context.get_current
_clock = clock.now
_ticks = time.monotonic_ns

before_stage_ends: list[Callable[[StageEnded], Mapping[str, AttributeValue]]] = []
"""What each returns is set on the stage's span: an ended span takes nothing any more."""
after_stage_ended: list[Callable[[], None]] = []
"""Called when a stage is over: a moment at which a job does not mind a millisecond."""
on_activity: list[Callable[[], None]] = []
"""Called before a stage or an operation begins; whoever is done with it removes itself."""


def current_run() -> Run | None:
    """The run of this process, if one is recorded."""
    recording = state.here()
    return recording.run if recording else None


def declared_pipeline() -> Pipeline | None:
    """What is declared of this run's pipeline."""
    run = current_run()
    return run.pipeline if run else None


# --- stages -----------------------------------------------------------------------------------


class Stage(Protocol):
    """What operations and records count for: a stage of this process, or one it works for."""

    name: str
    recording: Recording
    operations: dict[str, Add]
    """Tallies of the operations folded into it."""

    def count(self, *counts: Any) -> None:
        """`Counts.add` of what came from or went to the outside; for callers that are guarded
        themselves."""

    def hold(self) -> None:
        """Figures of an operation in it are still coming, perhaps when it is over: its own end is
        told when they are there. Once per `let_go`, which any thread may call."""

    def let_go(self) -> None:
        """They are there. Never raises."""


class OpenStage:
    """A stage under way. In a process forked meanwhile it counts records, but ends nothing."""

    __slots__ = (
        "name",
        "operations",
        "recording",
        "_active",
        "_awaited",
        "_cell",
        "_context",
        "_counts",
        "_cpu",
        "_folded",
        "_is_over",
        "_left",
        "_resumed",
        "_span",
        "_start",
        "_thread",
        "_token",
    )

    def __init__(
        self, recording: Recording, name: str, attributes: Mapping[str, AttributeValue] | None
    ) -> None:
        self.name = name
        self.recording = recording
        self._counts = Counts()
        self._active = 0
        self._is_over = False
        self._awaited = 0
        self._left: _Left | None = None
        self._cell: Any = None
        self._span: Span | None = None
        self._thread: list[OpenStage] | None = None
        with recording.lock:
            calls = recording.calls[name] = recording.calls.get(name, 0) + 1
        self._folded = calls > FULL_SPANS
        self.operations = recording.operations_of(name)
        self._start = _clock()
        self._cpu = _cpu_seconds(resource.getrusage(resource.RUSAGE_SELF))
        context = _get_current()
        if not self._folded:
            context = self._open_span(context, attributes)
        self._context = otel_context.set_value(STAGE_KEY, self, context)
        self._resumed = _ticks()
        self._token: Any = (otel_context.attach(self._context), innermost.set(self))

    def _open_span(
        self, context: otel_context.Context, attributes: Mapping[str, AttributeValue] | None
    ) -> otel_context.Context:
        recording, run = self.recording, self.recording.run
        parent = trace.get_current_span(context).get_span_context()
        if not parent.is_valid:  # a thread that was started around every hook
            parent = run.span
            context = run.context
        known: dict[str, AttributeValue] = {
            semconv.PIPELINE_NAME: run.pipeline.name,
            semconv.RUN_ID: run.run_id,
            semconv.STAGE_NAME: self.name,
            semconv.CICD_PIPELINE_NAME: run.pipeline.name,
            semconv.CICD_TASK_NAME: self.name,
            **(attributes or {}),
        }
        span = recording.tracer.start_span(
            self.name, context, attributes=known, start_time=self._start
        )
        span_context = span.get_span_context()
        self._span = span
        doing = recording.doing()
        self._cell = recording.sink.cell("stage")
        recording.sink.append(
            records.StageStarted(
                run.run_id,
                span_context.trace_id.to_bytes(16, "big"),
                span_context.span_id.to_bytes(8, "big"),
                parent.span_id.to_bytes(8, "big"),
                self.name,
                self._start,
                span_context.trace_flags.sampled,
                self._cell.offset if self._cell else 0,
                known,
            )
        )
        self._show()
        self._thread = doing.stages
        self._thread.append(self)
        if doing.slot:
            doing.slot.show_stages(_offsets(self._thread), self._start)
        return trace.set_span_in_context(span, context)

    def records(
        self, in_: int | None = None, out: int | None = None, rejected: int | None = None
    ) -> None:
        """Add records read, written and rejected to those of this stage."""
        try:
            self.count(
                None if in_ is None else _countable(in_),
                None if out is None else _countable(out),
                0 if rejected is None else _countable(rejected),
            )
        except Exception as error:
            report(error)

    def count(self, *counts: Any) -> None:
        """See `Stage.count`."""
        recording = state.here()
        if recording is None:
            return
        if not self.recording.is_over:
            recording = self.recording
            with recording.lock:
                if not self._is_over:
                    self._counts.add(*counts)
                    self._show()
                    return
        tally = recording.folded_stage(self.name)
        tally.add_counts(*counts)

    def suspend(self) -> None:
        """No longer current: the generator that is this stage has yielded."""
        if self._token is not None:
            self._active += _ticks() - self._resumed
            for token in self._token:
                detach(token)
            self._token = None

    def resume(self) -> None:
        """Current again: the generator goes on."""
        if self._token is None:
            self._resumed = _ticks()
            context = trace.set_span_in_context(self._span) if self._span else None
            self._token = (
                otel_context.attach(otel_context.set_value(STAGE_KEY, self, context)),
                innermost.set(self),
            )

    def leave(
        self,
        error: BaseException | None = None,
        *,
        frame_rows_in: int | None = None,
        frame_rows_out: int | None = None,
    ) -> None:
        """End the stage; the rows count only for a side that nothing else has counted."""
        try:
            self.suspend()
            if self.recording.is_over:
                self._is_over = True
                return
            usage = resource.getrusage(resource.RUSAGE_SELF)
            outcome, error_type = verdict(error)
            left = _Left(
                _clock(),
                outcome,
                error_type,
                max(0.0, _cpu_seconds(usage) - self._cpu),
                usage.ru_maxrss * PEAK_UNIT,
                frame_rows_in,
                frame_rows_out,
            )
            span = self._span
            if span is not None and outcome is not Outcome.SUCCESS and error is not None:
                fail_span(span, error, recorded=thread.doing.has_recorded(error, span))
            if not self._waits(left):
                self._end(left)
            self._hide()
            if span is not None:
                for after in after_stage_ended:
                    after()
        except Exception as fault:
            report(fault)

    def hold(self) -> None:
        """See `Stage.hold`."""
        if not self.recording.is_over:  # else one of before a fork, whose lock nobody may hold
            with self.recording.lock:
                self._awaited += 1

    def let_go(self) -> None:
        """See `Stage.let_go`."""
        if self.recording.is_over:
            return
        try:
            with self.recording.lock:
                self._awaited -= 1
                left = self._left if not self._awaited else None
                if left is not None:
                    self._left = None
            if left is not None:
                self._end(left)
        except Exception as fault:
            report(fault)

    def _waits(self, left: _Left) -> bool:
        # A folded one need not: what comes later is added to the same tally.
        if self._span is None:
            return False
        with self.recording.lock:
            if not self._awaited:
                return False
            self._left = left
            ended = self._ended(left)
            self.recording.sink.append(
                records.SpanLeft(ended.span_id, ended.end, ended.outcome, ended.error_type, ended)
            )
            return True

    def _ended(self, left: _Left) -> StageEnded:
        counts, span = self._counts, self._span
        frame_rows_in, frame_rows_out = left.frame_rows_in, left.frame_rows_out
        return StageEnded(
            self.recording.run.run_id,
            span.get_span_context().span_id.to_bytes(8, "big") if span else b"",
            self.name,
            self._start,
            left.end,
            left.outcome.value,
            left.error_type,
            counts.records_in if counts.records_in is not None else frame_rows_in,
            counts.records_out if counts.records_out is not None else frame_rows_out,
            counts.rejected,
            counts.retries,
            left.cpu_seconds,
            left.memory_peak,
            self._active / 1e9,
            (counts.records_in is None and frame_rows_in is not None)
            | (counts.records_out is None and frame_rows_out is not None) << 1,
            counts.bytes_in,
            counts.bytes_out,
        )

    def _end(self, left: _Left) -> None:
        recording, span = self.recording, self._span
        with recording.lock:
            self._is_over = True
            ended = self._ended(left)
        if span is None:
            recording.folded_stage(self.name).add(ended)
            return
        for hook in before_stage_ends:
            span.set_attributes(hook(ended))
        span.set_attributes(
            {
                semconv.STAGE_CPU_TIME: ended.cpu_seconds,
                semconv.STAGE_MEMORY_PEAK: ended.memory_peak,
            }
        )
        span.end(left.end)
        recording.sink.append(ended)
        if self._cell is not None:
            with recording.lock:
                recording.sink.release(self._cell)
            self._cell = None

    def _show(self) -> None:
        if self._cell is not None and self._span is not None:
            self._cell.store(self._span.get_span_context().span_id, *self._counts.fields())

    def _hide(self) -> None:
        if self._thread is not None and self in self._thread:
            self._thread.remove(self)
            doing = thread.doing
            if self._thread is doing.stages and doing.slot:
                doing.slot.show_stages(_offsets(self._thread), _clock())


class _Left(NamedTuple):
    """How a stage ended, and what it had used by then."""

    end: int
    outcome: Outcome
    error_type: str | None
    cpu_seconds: float
    memory_peak: int
    frame_rows_in: int | None
    frame_rows_out: int | None


class _NoStage(OpenStage):
    """Stands in where nothing is recorded."""

    __slots__ = ()

    def __init__(self) -> None:
        self.name = ""
        self._token = None

    def count(self, *_: Any, **__: Any) -> None: ...
    def hold(self) -> None: ...
    def let_go(self) -> None: ...
    def resume(self) -> None: ...
    def leave(self, *_: Any, **__: Any) -> None: ...


NO_STAGE = _NoStage()


class StageElsewhere:
    """A stage of another process that this one works for: what is counted counts for its name."""

    __slots__ = ("name", "operations", "recording")

    def __init__(self, recording: Recording, name: str) -> None:
        self.name = name
        self.recording = recording
        self.operations = recording.operations_of(name)

    def count(self, *counts: Any) -> None:
        """See `Stage.count`."""
        recording = state.here() if self.recording.is_over else self.recording
        if recording is not None:
            recording.folded_stage(self.name).add_counts(*counts)

    def hold(self) -> None:
        """Who opened it ends it."""

    def let_go(self) -> None:
        """Nobody waits."""


def enter(name: str, attributes: Mapping[str, AttributeValue] | None = None) -> OpenStage:
    """Open the stage *name* and make it current in this context."""
    recording = state.here()
    if recording is None:
        return NO_STAGE
    try:
        for hook in tuple(on_activity):
            hook()
        return OpenStage(recording, name, attributes)
    except Exception as error:
        report(error)
        return NO_STAGE


def current_stage() -> Stage | None:
    """The innermost stage of this thread or task, if any."""
    found = innermost.get()
    if found is not None and found is state.active:
        return None
    return stage_of(found, _get_current())


def stage_of(found: Stage | Recording | None, context: otel_context.Context) -> Stage | None:
    """The stage that is current where `innermost` was *found* and *context* was current."""
    if found is None or isinstance(found, Recording):
        return context.get(STAGE_KEY)  # type: ignore[return-value]
    return found


def add_records(in_: int | None = None, out: int | None = None, rejected: int = 0) -> None:
    """Count records for the innermost stage, else for the run."""
    _add(in_, out, rejected)


def retried(count: int = 1) -> None:
    """Count requests that the current stage tried again."""
    _add(None, None, retries=count)


def transferred(bytes_in: int = 0, bytes_out: int = 0) -> None:
    """Count bytes that the current stage, else the run, took in or gave out."""
    if bytes_in or bytes_out:
        _add(None, None, bytes_in=bytes_in, bytes_out=bytes_out)


def _add(
    in_: int | None,
    out: int | None,
    rejected: int = 0,
    retries: int = 0,
    bytes_in: int = 0,
    bytes_out: int = 0,
) -> None:
    recording = state.here()
    if recording is None:
        return
    try:
        stage = current_stage()
        if stage is not None:
            stage.count(in_, out, rejected, retries, bytes_in, bytes_out)
        else:
            recording.add(in_, out, rejected, retries, bytes_in, bytes_out)
    except Exception as error:
        report(error)


class _Given:
    """In place of the id generator, for a span that has a parent: its id is known already."""

    def __init__(self, span_id: int) -> None:
        self._span_id = span_id

    def generate_span_id(self) -> int:
        return self._span_id


def start_span_as(span_id: int, name: str, context: otel_context.Context, **more: Any) -> Span:
    """Start a span under the one of *context*, with an id that others have been told before.

    *more*: as for `Tracer.start_span`. A tracer that is none of the SDK's gives it another id; a
    no-op where nothing records.
    """
    recording = state.here()
    if recording is None:
        return trace.INVALID_SPAN
    tracer = recording.tracer
    if hasattr(tracer, "id_generator"):
        tracer = copy.copy(tracer)
        tracer.id_generator = _Given(span_id)
    return tracer.start_span(name, context, **more)


def detach(token: Any) -> None:
    """Make the context before the one of *token* current again, where it still can be."""
    # opentelemetry.context.detach logs an error when a generator ends in another context.
    with suppress(ValueError):
        token.var.reset(token)


def _countable(number: int) -> int:
    return max(-_MOST_RECORDS, min(int(number), _MOST_RECORDS))


def _offsets(stages: list[OpenStage]) -> list[int]:
    return [stage._cell.offset if stage._cell else 0 for stage in stages]


def _cpu_seconds(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime
