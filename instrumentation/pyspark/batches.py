"""Micro-batches of a streaming query: traces of their own, written where there is a reason to.

What a batch was like is known when Spark tells its progress: then it is counted, and its spans are
written if it failed, was slow or is in the sample. Quiet ones are counted only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field, structs
from opentelemetry import trace
from opentelemetry.context import set_value
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from stagewatch import carrying, clock, recording, semconv, tracing
from stagewatch.child_runs import ChildRun
from stagewatch.instrumentation.pyspark import events, figures
from stagewatch.instrumentation.pyspark.spans import fail, moment, start_of, start_span
from stagewatch.model import Outcome
from stagewatch.recording import Counts, Recording
from stagewatch.records import StageEnded, StageMeasured


class BatchStage:
    """What the user's function does in a batch counts for the batch: a `tracing.Stage`."""

    __slots__ = ("_awaited", "counts", "name", "operations", "recording")

    def __init__(self, recording: Recording) -> None:
        self.name = semconv.SPARK_BATCH
        self.recording = recording
        self.operations = recording.operations_of(self.name)
        self.counts = Counts()
        self._awaited = 0

    @property
    def is_awaited(self) -> bool:
        """Figures are still coming."""
        return self._awaited > 0

    def count(self, *counts: Any) -> None:
        """See `tracing.Stage.count`."""
        with self.recording.lock:
            self.counts.add(*counts)

    def hold(self) -> None:
        """See `tracing.Stage.hold`."""
        self._await(1)

    def let_go(self) -> None:
        """See `tracing.Stage.let_go`."""
        self._await(-1)

    def _await(self, more: int) -> None:
        if not self.recording.is_over:  # else one of before a fork, whose lock nobody may hold
            with self.recording.lock:
                self._awaited += more


class Batch(Struct, eq=False):
    """One under way."""

    child: ChildRun
    query: str
    """Id of its query."""
    number: int
    root: Span | None = None
    """Made before its end where the user's function runs in it."""
    stage: BatchStage | None = None
    began: int = 0
    """Nanoseconds since the epoch, where its progress does not tell."""
    jobs: dict[int, events.JobStarted] = field(default_factory=dict)
    ended: dict[int, events.JobEnded] = field(default_factory=dict)
    stages: list[events.StageCompleted] = field(default_factory=list)
    error: BaseException | None = None
    """That the user's function raised."""
    progress: dict[str, Any] | None = None
    told: float = 0.0
    """When its progress was, on the monotonic clock."""

    @property
    def is_awaited(self) -> bool:
        """Figures of what the user's function did in it are still coming."""
        return self.stage is not None and self.stage.is_awaited


class Inside(Struct, eq=False):
    """A call of the user's ``foreachBatch`` function."""

    batch: Batch
    tokens: Any


def enter(batch: Batch) -> Inside:
    """The user's function is called with it, in this thread."""
    child = batch.child
    if batch.root is None:
        batch.began = clock.now()
        batch.root = child.start_trace(semconv.SPARK_BATCH, _about(batch), batch.began)
        batch.stage = BatchStage(child.recording)
    context = set_value(tracing.STAGE_KEY, batch.stage, trace.set_span_in_context(batch.root))
    tokens = carrying.go(carrying.Here(context, batch.stage))
    recording.thread.elsewhere = child.recording
    return Inside(batch, tokens)


def leave(inside: Inside, error: BaseException | None) -> None:
    """It has returned."""
    recording.thread.elsewhere = None
    carrying.back(inside.tokens)
    inside.batch.error = error


def first_job(batch: Batch, otherwise: int) -> int:
    """When the first of its jobs started, nanoseconds since the epoch."""
    started = [job.at for job in batch.jobs.values()]
    return moment(min(started), otherwise) if started else otherwise


def ended(
    batch: Batch, start: int, end: int, rows_in: int | None = None, rows_out: int | None = None
) -> StageEnded:
    """One that went well. What the sink does not count, what the user's function has written
    may."""
    counts = batch.stage.counts if batch.stage is not None else Counts()
    return StageEnded(
        batch.child.recording.run.run_id,
        b"",
        semconv.SPARK_BATCH,
        start,
        end,
        str(Outcome.SUCCESS),
        None,
        rows_in,
        counts.records_out if rows_out is None else rows_out,
        counts.rejected,
        counts.retries,
        0.0,
        0,
        (end - start) / 1e9,
        0,
        counts.bytes_in,
        counts.bytes_out,
    )


def write(
    batch: Batch, ended: StageEnded, reason: str | None, more: Mapping[str, AttributeValue]
) -> None:
    """Count it, and write its trace if there is a *reason* to, or one is found."""
    child, root, threshold = batch.child, batch.root, ""
    if root is None:
        root = child.start_trace(semconv.SPARK_BATCH, _about(batch), ended.start)
    elif hasattr(root, "_start_time"):
        root._start_time = ended.start  # it began before the user's function did
    if reason is None and child.has_users_spans(root):
        reason = "user"
    if reason is None and (found := child.sample(root)) is not None:
        reason, threshold = "sample", found
    sums: dict[str, float] = {}
    for stage in batch.stages:
        figures.add(sums, figures.of_stage(stage))
    if reason is not None:
        root.set_attributes({semconv.SPARK_BATCH_REASON: reason, **more, **sums})
        for hook in tracing.before_stage_ends:
            root.set_attributes(hook(ended))
        if ended.error_type is not None:
            fail(root, ended.error_type)
        _write_jobs(batch, root, ended.end)
        root.end(ended.end)
        span_id = root.get_span_context().span_id.to_bytes(8, "big")
        ended = structs.replace(ended, span_id=span_id)
    child.settle(root, keep=reason is not None, threshold=threshold)
    child.recording.sink.append(ended)
    measure(child, {**figures.increments(sums), **figures.ratios(sums, 0)})


def forget(batch: Batch) -> None:
    """Nobody has told its end: what is known of it is not much."""
    if batch.root is not None:
        batch.child.settle(batch.root, keep=False)


def measure(child: ChildRun, values: Mapping[str, float]) -> None:
    """*values* of `semconv.MEASURED`."""
    if values:
        run_id = child.recording.run.run_id
        child.recording.sink.append(StageMeasured(run_id, semconv.SPARK_BATCH, dict(values)))


def _about(batch: Batch) -> dict[str, AttributeValue]:
    run = batch.child.recording.run
    return {
        semconv.PIPELINE_NAME: run.pipeline.name,
        semconv.RUN_ID: run.run_id,
        semconv.STAGE_NAME: semconv.SPARK_BATCH,
        semconv.SPARK_QUERY_ID: batch.query,
        semconv.SPARK_BATCH_ID: batch.number,
    }


def _write_jobs(batch: Batch, root: Span, end: int) -> None:
    """Spans of the jobs and stages that Spark ran for it; those of the user's actions in it are
    written as everywhere."""
    recording, parent = batch.child.recording, trace.set_span_in_context(root)
    for number, started in batch.jobs.items():
        known: dict[str, AttributeValue] = {semconv.SPARK_JOB_ID: number}
        if started.execution is not None:
            known[semconv.SPARK_EXECUTION_ID] = started.execution
        start = moment(started.at, start_of(root))
        job = start_span(recording, semconv.SPARK_JOB, parent, start, semconv.SPARK_BATCH, known)
        for stage in batch.stages:
            if stage.stage in started.stages and stage.submitted is not None:
                _write_stage(recording, stage, stage.submitted, job, end)
        over = batch.ended.get(number)
        if over is not None and over.error is not None:
            fail(job, over.error, f"{over.error}: {over.message}")
        job.end(moment(over.at, start) if over is not None else max(end, start))


def _write_stage(
    recording: Recording, stage: events.StageCompleted, submitted: int, job: Span, end: int
) -> None:
    known: dict[str, AttributeValue] = {
        semconv.SPARK_STAGE_ID: stage.stage,
        semconv.SPARK_STAGE_ATTEMPT: stage.attempt,
        semconv.SPARK_STAGE_NAME: stage.name,
    }
    start, parent = moment(submitted, start_of(job)), trace.set_span_in_context(job)
    span = start_span(recording, semconv.SPARK_STAGE, parent, start, semconv.SPARK_BATCH, known)
    span.set_attributes(figures.of_stage(stage))
    if stage.failure is not None:
        fail(span, stage.error or "stage_failed", stage.failure)
    span.end(moment(stage.completed, start) if stage.completed is not None else max(end, start))
