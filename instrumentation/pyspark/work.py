"""What Spark does for the actions under way: events become spans of jobs and stages, and the
figures of the operation.

`Work.begin` and `Work.returned` are called by the user's threads, everything else by the one that
drains the listener.
"""

from __future__ import annotations

import time
from typing import Final

from msgspec import Struct, field
from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, recording, semconv
from stagewatch.instrumentation.pyspark import datasets, events, figures
from stagewatch.instrumentation.pyspark.spans import fail, moment, start_of, start_span
from stagewatch.operations import Later
from stagewatch.recording import Recording
from stagewatch.records import StageMeasured

_GRACE: Final = 2.0
"""Seconds: ends of jobs and tasks may be told after the mark of an action that failed."""
_MOST_ITERATORS: Final = 1000
"""Actions whose jobs may come after they have returned: results that are fetched bit by bit."""


class Action(Struct, eq=False):
    """One action, from its call until its figures are complete."""

    recording: Recording
    """That it counts for."""
    context: str
    """Its `contexts.traceparent`."""
    span: Span
    stage: str
    """Of the pipeline; empty: the run itself."""
    start: int
    """Nanoseconds since the epoch."""
    may_fold: bool
    """It often does nothing in Spark: then it is counted only."""
    lingers: bool
    """Its jobs may come later."""
    later: Later | None = None
    rows_out: int = 0
    """Rows it returned."""
    marked: float = 0.0
    """When all that was posted before its return had been told, on the monotonic clock."""
    jobs: set[int] = field(default_factory=set)
    """Open ones."""
    job_count: int = 0
    executions: set[int] = field(default_factory=set)
    """Open ones."""
    ended: list[events.ExecutionEnded] = field(default_factory=list)
    stages: list[events.StageCompleted] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    busy_since: int = 0
    """When the first of the open jobs started, ms."""
    busy: int = 0
    """Milliseconds in which at least one job was open."""


class _Job(Struct, eq=False):
    number: int
    recording: Recording
    span: Span
    action: Action | None
    stages: frozenset[int]


class Work:
    """All that is under way in one Spark context."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._lingering: dict[str, Action] = {}
        self._jobs: dict[int, _Job] = {}
        self._stages: dict[tuple[int, int], Span] = {}
        self._executions: dict[int, Action | None] = {}
        self._slots: dict[str, int] = {}
        self._sums: dict[str, dict[str, float]] = {}
        """By stage of the pipeline, over the run."""
        self._slot_seconds: dict[str, float] = {}

    @property
    def is_settled(self) -> bool:
        return not self._actions

    @property
    def slots(self) -> int:
        """Tasks that can run at once."""
        return sum(self._slots.values())

    # --- from the user's threads --------------------------------------------------------------

    def begin(self, action: Action) -> None:
        """Its jobs may come from now on."""
        self._actions[action.context] = action

    def returned(self, action: Action, later: Later | None) -> None:
        """It is over, and waits for its figures; None: nobody wants them."""
        if later is None:
            self._actions.pop(action.context, None)
        action.later = later

    # --- from the thread that drains ----------------------------------------------------------

    def take(self, event: events.Event) -> None:
        """One event of the listener."""
        match event:
            case events.StageSubmitted():
                self._stage_submitted(event)
            case events.StageCompleted():
                self._stage_completed(event)
            case events.JobStarted():
                self._job_started(event)
            case events.JobEnded():
                self._job_ended(event)
            case events.ExecutionStarted():
                self._execution_started(event)
            case events.ExecutionEnded():
                self._execution_ended(event)
            case events.Marked():
                action = self._actions.get(event.context)
                if action is not None:
                    action.marked = time.monotonic()
            case events.ExecutorAdded():
                self._slots[event.executor] = event.slots
            case events.ExecutorRemoved():
                self._slots.pop(event.executor, None)
            case _:
                pass

    def settle(self, *, at_once: bool = False) -> None:
        """Complete the actions that have all their figures, or will not get them any more;
        *at_once*: nothing more is told."""
        now = time.monotonic()
        for action in list(self._actions.values()):
            if action.later is None:
                continue
            is_complete = action.marked and not (action.jobs or action.executions)
            if is_complete or at_once or (action.marked and now - action.marked > _GRACE):
                del self._actions[action.context]
                self._complete(action, action.later)
        if at_once:
            for span in (*self._stages.values(), *(job.span for job in self._jobs.values())):
                span.end()
            self._stages.clear()
            self._jobs.clear()

    # --- jobs and stages ----------------------------------------------------------------------

    def _job_started(self, event: events.JobStarted) -> None:
        current = recording.active
        if current is None:
            return
        action = self._action_of(event.context)
        if action is None and event.query is not None:  # a batch of a stream
            self._disown(event.execution, event.root)
            return
        if action is not None:
            current = action.recording
        start = moment(event.at, action.start if action else 0)
        known: dict[str, AttributeValue] = {semconv.SPARK_JOB_ID: event.job}
        if event.execution is not None:
            known[semconv.SPARK_EXECUTION_ID] = event.execution
        parent = current.run.context if action is None else trace.set_span_in_context(action.span)
        stage = action.stage if action else ""
        span = start_span(current, semconv.SPARK_JOB, parent, start, stage, known)
        self._jobs[event.job] = _Job(event.job, current, span, action, frozenset(event.stages))
        if action is None:
            return
        if not action.jobs:
            action.busy_since = event.at
        action.jobs.add(event.job)
        action.job_count += 1
        root = event.root if event.root is not None else event.execution
        if root is not None and self._executions.get(root, action) is None:
            self._adopt(root, action)

    def _job_ended(self, event: events.JobEnded) -> None:
        job = self._jobs.pop(event.job, None)
        if job is None:
            return
        if event.error is not None:
            fail(job.span, event.error)
        job.span.end(moment(event.at, start_of(job.span)))
        action = job.action
        if action is not None:
            action.jobs.discard(event.job)
            if not action.jobs:
                action.busy += max(0, event.at - action.busy_since)

    def _stage_submitted(self, event: events.StageSubmitted) -> None:
        job = self._job_of(event.stage)
        if job is None:
            return
        known: dict[str, AttributeValue] = {
            semconv.SPARK_STAGE_ID: event.stage,
            semconv.SPARK_STAGE_ATTEMPT: event.attempt,
            semconv.SPARK_STAGE_NAME: event.name,
        }
        start = moment(event.at, start_of(job.span))
        parent = trace.set_span_in_context(job.span)
        stage = job.action.stage if job.action else ""
        self._stages[event.stage, event.attempt] = start_span(
            job.recording, semconv.SPARK_STAGE, parent, start, stage, known
        )

    def _stage_completed(self, event: events.StageCompleted) -> None:
        span = self._stages.pop((event.stage, event.attempt), None)
        if span is None:
            return
        found = figures.of_stage(event)
        span.set_attributes(found)
        if event.failure is not None:
            fail(span, event.error or "stage_failed")
        end = event.completed
        span.end(moment(end, start_of(span)) if end is not None else clock.now())
        job = self._job_of(event.stage)
        action = job.action if job is not None else None
        if action is not None:
            action.stages.append(event)
            figures.add(action.sums, found)
        current = job.recording if job is not None else recording.active
        if current is not None:
            self._measure(current, action.stage if action is not None else "", found)

    def _measure(self, current: Recording, stage: str, found: figures.Figures) -> None:
        if current is not recording.active:
            current.sink.append(StageMeasured(current.run.run_id, stage, figures.increments(found)))
            return
        sums = self._sums.setdefault(stage, {})
        figures.add(sums, found)
        values = {
            **figures.increments(found),
            **figures.ratios(sums, self._slot_seconds.get(stage, 0)),
        }
        current.sink.append(StageMeasured(current.run.run_id, stage, values))

    def _job_of(self, stage: int) -> _Job | None:
        # Of several jobs that share a stage the newest runs it.
        found = [job for job in self._jobs.values() if stage in job.stages]
        return found[-1] if found else None

    def _action_of(self, context: str | None) -> Action | None:
        if context is None:
            return None
        # A context that is not live was inherited by a thread of a pool.
        return self._actions.get(context) or self._lingering.get(context)

    # --- SQL ------------------------------------------------------------------------------------

    def _execution_started(self, event: events.ExecutionStarted) -> None:
        root = event.root if event.root is not None else event.execution
        known = self._executions.get(root)
        if known is not None:
            self._adopt(event.execution, known)
            return
        # The event does not say whose it is; a job of it will, if more than one action is open.
        live = [action for action in self._actions.values() if not action.marked]
        self._executions[event.execution] = None
        if len(live) == 1:
            self._adopt(event.execution, live[0])

    def _adopt(self, execution: int, action: Action) -> None:
        self._executions[execution] = action
        action.executions.add(execution)

    def _disown(self, *executions: int | None) -> None:
        for execution in executions:
            action = self._executions.get(execution) if execution is not None else None
            if action is not None and execution is not None:
                action.executions.discard(execution)
                self._executions[execution] = None

    def _execution_ended(self, event: events.ExecutionEnded) -> None:
        action = self._executions.pop(event.execution, None)
        if action is not None:
            action.executions.discard(event.execution)
            action.ended.append(event)

    # --- the end of an action ---------------------------------------------------------------------

    def _complete(self, action: Action, later: Later) -> None:
        if action.lingers:
            self._lingering[action.context] = action
            while len(self._lingering) > _MOST_ITERATORS:
                del self._lingering[next(iter(self._lingering))]
        if action.may_fold and not (action.job_count or action.ended):
            later.fold()
            return
        seen = datasets.seen(action.ended)
        reads, writes = seen.rows_in, seen.rows_out
        if not action.ended:  # RDDs have no plan to tell
            reads = int(action.sums.get(semconv.SPARK_INPUT_RECORDS, 0)) or None
            writes = int(action.sums.get(semconv.SPARK_OUTPUT_RECORDS, 0)) or None
        if action.stages:
            wall = action.busy / 1e3
            known = self._slot_seconds.get(action.stage, 0)
            self._slot_seconds[action.stage] = known + wall * self.slots
            self._measure(action.recording, action.stage, {})
        later.complete(
            rows_in=reads or 0,
            rows_out=action.rows_out or writes or 0,
            reads=reads,
            writes=writes,
            bytes_in=int(action.sums.get(semconv.SPARK_INPUT_BYTES, 0)),
            bytes_out=int(action.sums.get(semconv.SPARK_OUTPUT_BYTES, 0)),
            datasets=seen.datasets,
            attributes=_attributes(action, seen),
        )


def _attributes(action: Action, seen: datasets.Seen) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {**action.sums}
    if action.job_count:
        found[semconv.SPARK_JOBS] = action.job_count
    if action.ended:
        last = action.ended[-1]
        found[semconv.SPARK_EXECUTION_ID] = last.execution
        if last.fingerprint is not None:
            found[semconv.SPARK_PLAN_FINGERPRINT] = last.fingerprint
        if changes := sum(execution.plan_changes for execution in action.ended):
            found[semconv.SPARK_PLAN_CHANGES] = changes
    is_write = bool(seen.datasets) and seen.datasets[0].direction == "out"
    inputs = [dataset.uri for dataset in seen.datasets if dataset.direction == "in"]
    if is_write and inputs:
        found[semconv.DATASET_INPUTS] = inputs
    return found
