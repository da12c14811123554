"""What Spark does for the actions under way: events become spans of jobs and stages, and the
figures of the operation.

`Work.begin` and `Work.returned` are called by the user's threads, everything else by the one that
drains the listener.
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from msgspec import Struct
from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, recording, semconv
from stagewatch.instrumentation.pyspark import (
    advice,
    advisor,
    contexts,
    events,
    figures,
)
from stagewatch.instrumentation.pyspark.action import Action, call_site, figures_of
from stagewatch.instrumentation.pyspark.bounded import keep
from stagewatch.instrumentation.pyspark.executions import Executions
from stagewatch.instrumentation.pyspark.spans import fail, moment, start_of, start_span
from stagewatch.operations import Later
from stagewatch.recording import Recording
from stagewatch.records import StageMeasured
from stagewatch.safety import guarded

_GRACE: Final = 2.0
"""Seconds: ends of jobs and tasks may be told after the mark of an action that failed."""
_LOST: Final = 10.0
"""Seconds after which a mark that is not among what has been told was dropped on its way."""
_MOST_ITERATORS: Final = 1000
"""Actions whose jobs may come after they have returned: results that are fetched bit by bit."""


class _Job(Struct, eq=False):
    number: int
    recording: Recording
    span: Span
    action: Action | None
    stages: list[int]
    context: str | None
    """As its tasks know it, be it of a live action or not."""


class _Stage(Struct, eq=False):
    span: Span
    job: _Job


class _Measured(NamedTuple):
    recording: Recording
    increments: dict[str, float]


class Work:
    """All that is under way in one Spark context."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._finishing: list[Action] = []
        """Those whose figures are being written."""
        self._lingering: dict[str, Action] = {}
        self._jobs: dict[int, _Job] = {}
        self._stages: dict[tuple[int, int], _Stage] = {}
        self._executions = Executions()
        self._slots: dict[str, int] = {}
        self._sums: dict[str, dict[str, float]] = {}
        """By stage of the pipeline, over the run."""
        self._unwritten: dict[tuple[str, str], _Measured] = {}
        """By run and stage, since it was written last."""
        self._slot_seconds: dict[str, float] = {}
        self._advisor = advisor.Advisor()
        self.is_over = False
        """Nothing is told any more."""

    @property
    def is_settled(self) -> bool:
        """Nothing that has returned waits for its figures."""
        waits = any(action.later is not None for action in list(self._actions.values()))
        return not (waits or self._finishing)  # in this order: they go from one to the other

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
        action.returned = time.monotonic()
        action.later = later
        if later is None:
            self._actions.pop(action.context, None)
        elif self.is_over:
            self._finish(action)

    def give_up(self, action: Action) -> None:
        """Of one that has returned no figures will come, for Spark could not be told that it
        has."""
        self._finish(action)

    # --- from the thread that drains ----------------------------------------------------------

    def runs(self, job: int) -> bool:
        """Whether an open job is an action's, or nobody's, but not a streaming query's."""
        return job in self._jobs

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
            case events.Entered():
                action = self._actions.get(event.context)
                if action is not None:
                    action.entered = True
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

    def settle(self, is_idle: bool) -> None:
        """Complete the actions that have all their figures, or will not get them any more;
        *is_idle*: all that was posted has been told."""
        self._write_measured()  # a stage is not over before it has its own
        now = time.monotonic()
        for action in list(self._actions.values()):
            if action.later is None:
                continue
            is_complete = action.marked and not (action.jobs or action.executions)
            is_late = action.marked and now - action.marked > _GRACE
            is_lost = is_idle and not action.marked and now - action.returned > _LOST
            if is_complete or is_late or is_lost:
                self._finish(action)

    def close(self) -> None:
        """Nothing more is told."""
        self.is_over = True
        for action in list(self._actions.values()):
            if action.later is not None:
                self._finish(action)
        self._write_measured()
        for stage in self._stages.values():
            stage.span.end()
        for job in self._jobs.values():
            job.span.end()
        self._stages.clear()
        self._jobs.clear()

    # --- jobs and stages ----------------------------------------------------------------------

    def _job_started(self, event: events.JobStarted) -> None:
        current = recording.active
        if current is None:
            return
        root = event.root if event.root is not None else event.execution
        # A context that is not live was inherited by a thread of a pool.
        action = self._action_of(event.context) or self._executions.owner(root)
        if root is not None:
            self._executions.claim(root, action)
        if action is None and event.query is not None:
            return  # a batch of a stream
        if action is not None:
            current = action.recording
        start = moment(event.at, action.start if action else 0)
        known: dict[str, AttributeValue] = {semconv.SPARK_JOB_ID: event.job}
        if event.execution is not None:
            known[semconv.SPARK_EXECUTION_ID] = event.execution
        parent = current.run.context if action is None else trace.set_span_in_context(action.span)
        stage = action.stage if action else ""
        span = start_span(current, semconv.SPARK_JOB, parent, start, stage, known)
        self._jobs[event.job] = _Job(event.job, current, span, action, event.stages, event.context)
        if action is None:
            return
        if not action.jobs:
            action.busy_since = event.at
        action.jobs.add(event.job)
        action.job_count += 1

    def _job_ended(self, event: events.JobEnded) -> None:
        job = self._jobs.pop(event.job, None)
        if job is None:
            return
        if event.error is not None:
            fail(job.span, event.error, f"{event.error}: {event.message}")
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
        context = job.context
        span_id = contexts.stage_span_id(context, event.stage, event.attempt) if context else None
        current = job.recording
        span = start_span(current, semconv.SPARK_STAGE, parent, start, stage, known, span_id)
        self._stages[event.stage, event.attempt] = _Stage(span, job)
        if current.settings.spark_executors:
            current.begin(span)  # its tasks hang under it, and are told by others

    def _stage_completed(self, event: events.StageCompleted) -> None:
        stage = self._stages.pop((event.stage, event.attempt), None)
        if stage is None:
            return
        span, action = stage.span, stage.job.action
        found = figures.of_stage(event)
        span.set_attributes(found)
        if event.failure is not None:
            fail(span, event.error or "stage_failed", event.failure)
        end = event.completed
        span.end(moment(end, start_of(span)) if end is not None else clock.now())
        if action is not None:
            self._stage_of_action(action, event, found)
        self._measure(stage.job.recording, action.stage if action is not None else "", found)

    def _stage_of_action(
        self, action: Action, event: events.StageCompleted, found: figures.Figures
    ) -> None:
        if action.context in self._lingering:
            # Its operation is over, but what its iterator goes on to read is read.
            if action.reads and action.later is not None and not event.cached:
                action.later.count(event.input_records, bytes_in=event.input_bytes)
            return
        action.stages.append(event)
        figures.add(action.sums, found)

    def _measure(self, current: Recording, stage: str, found: figures.Figures) -> None:
        key = current.run.run_id, stage
        measured = self._unwritten.setdefault(key, _Measured(current, {}))
        figures.add(measured.increments, figures.increments(found))
        if current is recording.active:  # else a streaming query, which has sums of its own
            figures.add(self._sums.setdefault(stage, {}), found)

    def _write_measured(self) -> None:
        """Once for all that came with one drain."""
        unwritten, self._unwritten = self._unwritten, {}
        for (run_id, stage), (current, values) in unwritten.items():
            if current is recording.active:
                known = self._slot_seconds.get(stage, 0)
                values |= figures.ratios(self._sums.get(stage, {}), known)
            current.sink.append(StageMeasured(run_id, stage, values))

    def _job_of(self, stage: int) -> _Job | None:
        # Of several jobs that share a stage Spark runs it for the oldest.
        return next((job for job in self._jobs.values() if stage in job.stages), None)

    def _action_of(self, context: str | None) -> Action | None:
        if context is None:
            return None
        return self._actions.get(context) or self._lingering.get(context)

    # --- SQL ------------------------------------------------------------------------------------

    def _execution_started(self, event: events.ExecutionStarted) -> None:
        root = event.root if event.root is not None else event.execution
        live = [it for it in list(self._actions.values()) if it.entered and not it.marked]
        self._executions.start(event.execution, root, live)

    def _execution_ended(self, event: events.ExecutionEnded) -> None:
        action = self._executions.end(event.execution)
        if action is not None and action.context in self._actions:
            action.ended.append(event)

    # --- the end of an action ---------------------------------------------------------------------

    def _finish(self, action: Action) -> None:
        self._finishing.append(action)
        try:
            # Both the thread that drains and the user's may come here: who takes it out completes
            # it.
            if self._actions.pop(action.context, None) is not None and action.later is not None:
                self._fold_or_complete(action, action.later)
        finally:
            self._finishing.remove(action)

    def _fold_or_complete(self, action: Action, later: Later) -> None:
        if action.lingers:
            keep(self._lingering, action.context, action, _MOST_ITERATORS)
        if action.may_fold and not (action.job_count or action.ended):
            later.fold()
        else:
            self._complete(action, later)

    def _complete(self, action: Action, later: Later) -> None:
        found: dict[str, Any] = {}
        with guarded:
            found = figures_of(action)
            self._use_slots(action)
        later.complete(**found)  # in any case: its stage waits for it
        self._advise(action, later)
        if action.lingers:
            action.reads = found.get("reads") is not None
            action.ended.clear()
            action.stages.clear()

    def _use_slots(self, action: Action) -> None:
        """For as long as it had jobs."""
        if action.stages:
            known = self._slot_seconds.get(action.stage, 0)
            self._slot_seconds[action.stage] = known + action.busy / 1e3 * self.slots
            self._measure(action.recording, action.stage, {})

    def _advise(self, action: Action, later: Later) -> None:
        current = action.recording
        if current.is_over or later.ended.error_type is not None:
            return
        finished = advice.Finished(
            later.ended.name,
            later.ended.nanoseconds / 1e9,
            action.busy / 1e3,
            self.slots,
            call_site(action),
            tuple(action.stages),
            tuple(action.ended),
        )
        for one in self._advisor.advise(finished):
            current.sink.append(advisor.noted(one, current.run.run_id, later.end))
