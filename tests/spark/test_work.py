"""Events become spans and figures: what is whose, what is counted, what is kept."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from stagewatch import semconv
from stagewatch.instrumentation.pyspark import contexts, datasets, events, figures
from stagewatch.instrumentation.pyspark.action import Action
from stagewatch.instrumentation.pyspark.work import Work
from stagewatch.operations import Call, Later, OperationKind, begin, end_later
from stagewatch.records import OperationEnded
from tests.recorded import Recorded

pytestmark = pytest.mark.once
COLLECT = OperationKind("pyspark.collect", io=True, open=True)


class Spark:
    """What a driver tells, one event after the other."""

    def __init__(self) -> None:
        self.work = Work()
        self._jobs = itertools.count()
        self._calls: dict[str, Call] = {}

    def enter(self, lingers: bool = False) -> Action:
        call = begin(COLLECT)
        assert call is not None
        assert call.span is not None
        call.base.open = None  # the next one is another thread's
        context = contexts.traceparent(call.span.get_span_context())
        action = Action(context, call.span, "", 0, False, lingers, False, call.recording)
        self._calls[context] = call
        self.work.begin(action)
        self.work.take(events.Entered(context))
        return action

    def leave(self, action: Action) -> None:
        self.work.returned(action, end_later(self._calls.pop(action.context)))

    def mark(self, action: Action) -> None:
        self.work.take(events.Marked(action.context))
        self.work.settle(False)

    def job(self, action: Action | None, **known: Any) -> int:
        """A job of one stage with its number, from its start to its end."""
        number = next(self._jobs)
        context = action.context if action is not None else None
        self.work.take(events.JobStarted(number, 1, [number], context, **known))
        self.work.take(events.StageSubmitted(number, 0, 1, "stage", 1))
        self.work.take(
            events.StageCompleted(number, 0, "stage", 1, 1, 2, input_records=1, input_bytes=1)
        )
        self.work.take(events.JobEnded(number, 2))
        return number

    def execution(self, number: int) -> events.ExecutionEnded:
        self.work.take(events.ExecutionStarted(number, 1, number))
        return events.ExecutionEnded(number, 2, outputs=[events.Table(f"t{number}")])


def _written(recorded: Recorded) -> list[Any]:
    spans = [span for span in recorded.spans() if span.name == "pyspark.collect"]
    return [(span.attributes or {}).get(semconv.DATASET_URI) for span in spans]


def test_nothing_is_kept_of_many(recorded: Recorded) -> None:
    """Of 2,000 actions with ten jobs and an execution each, half of which nobody owns, and of
    iterators the last thousand."""
    spark = Spark()
    for number in range(2000):
        action = spark.enter(lingers=number % 2 == 0)
        ended = spark.execution(number)
        for _ in range(5):
            spark.job(action, execution=number, root=number)
            spark.job(None)
        spark.work.take(ended)
        spark.leave(action)
        spark.mark(action)
    work = spark.work
    assert not (work._actions or work._jobs or work._stages or work._executions._open)
    assert len(work._lingering) == 1000
    assert not any(action.ended or action.stages for action in work._lingering.values())
    assert len(work._sums) == len(work._slot_seconds) == 1
    assert len(recorded.of(OperationEnded)) == 2000


def test_execution_without_jobs_is_of_the_only_action(recorded: Recorded) -> None:
    """Of two that are under way it could be either's: then it is nobody's."""
    spark = Spark()
    first = spark.enter()
    spark.work.take(spark.execution(1))
    second = spark.enter()
    spark.work.take(spark.execution(2))
    for action in (first, second):
        spark.leave(action)
        spark.mark(action)
    assert _written(recorded) == ["t1", None]


def test_execution_is_whose_jobs_are(recorded: Recorded) -> None:
    """Also where another action, or none, was the only one under way when it began."""
    spark = Spark()
    first, second = spark.enter(), spark.enter()
    of_second, of_stream = spark.execution(1), spark.execution(2)
    spark.job(second, execution=1, root=1)
    spark.job(None, execution=2, root=2, query="q", batch=0)
    spark.work.take(of_second)
    spark.work.take(of_stream)
    for action in (first, second):
        spark.leave(action)
        spark.mark(action)
    assert _written(recorded) == [None, "t1"]


def test_job_of_a_pool_is_of_its_execution(recorded: Recorded) -> None:
    """Threads of Spark's pools have the context of whoever made them: the execution knows."""
    spark = Spark()
    over = spark.enter()
    spark.leave(over)
    spark.mark(over)
    action = spark.enter()
    ended = spark.execution(1)
    spark.job(action, execution=1, root=1)
    spark.job(over, execution=1, root=1)
    spark.work.take(ended)
    spark.leave(action)
    spark.mark(action)
    (first, second) = [span for span in recorded.spans() if span.name == "pyspark.collect"]
    jobs = [span.parent_span_id for span in recorded.spans() if span.name == semconv.SPARK_JOB]
    assert jobs == [second.span_id, second.span_id]


def test_shared_stage_is_run_by_the_oldest_job(recorded: Recorded) -> None:
    """As Spark does it, whichever of the two is the first to end."""
    work = Work()
    for number in (1, 2):
        work.take(events.JobStarted(number, 1, [7]))
    work.take(events.StageSubmitted(7, 0, 1, "stage", 1))
    work.take(events.JobEnded(1, 2))
    work.take(events.StageCompleted(7, 0, "stage", 1, 1, 2))
    stage = next(span for span in recorded.spans() if span.name == semconv.SPARK_STAGE)
    job = next(span for span in recorded.spans() if span.name == semconv.SPARK_JOB)
    assert (job.attributes or {})[semconv.SPARK_JOB_ID] == 1
    assert stage.parent_span_id == job.span_id


def test_end_after_the_mark_is_waited_for(recorded: Recorded) -> None:
    """A failed action's jobs may be told to be over when it is."""
    spark = Spark()
    action = spark.enter()
    spark.work.take(events.JobStarted(0, 1, [0], action.context))
    spark.leave(action)
    spark.mark(action)
    assert not spark.work.is_settled
    spark.work.take(events.JobEnded(0, 2, "java.lang.Exception"))
    spark.work.settle(False)
    assert spark.work.is_settled


def test_not_settled_before_it_is_written(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks from another thread is not told that all is there while it is being written."""
    spark = Spark()
    seen = []
    monkeypatch.setattr(Later, "complete", lambda *_, **__: seen.append(spark.work.is_settled))
    action = spark.enter()
    spark.leave(action)
    spark.mark(action)
    assert (seen, spark.work.is_settled) == ([False], True)


def test_returned_after_the_end(recorded: Recorded) -> None:
    """Of a context that was stopped meanwhile: the action is complete at once."""
    spark = Spark()
    action = spark.enter()
    spark.work.take(events.JobStarted(0, 1, [0], action.context))
    spark.work.close()
    spark.leave(action)
    assert spark.work.is_settled
    assert [span.name for span in recorded.spans()] == ["spark.job", "pyspark.collect"]


def test_tasks_of_a_failed_stage() -> None:
    """Those that ended: most of it may never have run."""
    failed = events.StageCompleted(
        1, 0, "stage", 1000, 1, 2, "Job aborted", succeeded=3, failed=1, killed=2
    )
    assert figures.of_stage(failed)[semconv.SPARK_TASKS] == 6
    retried = events.StageCompleted(1, 0, "stage", 10, 1, 2, succeeded=10, failed=1)
    assert figures.of_stage(retried)[semconv.SPARK_TASKS] == 11


def test_plan_that_does_not_count() -> None:
    """What a write has written its stages know, where there is one write."""
    one = events.ExecutionEnded(1, 2, outputs=[events.Jdbc("jdbc:h2:mem:x", "t")])
    assert datasets.seen([one], 5).rows_out == 5
    two = events.ExecutionEnded(2, 2, outputs=[events.Jdbc("jdbc:h2:mem:x", "u")])
    assert datasets.seen([one, two], 5).rows_out is None
