"""Structured Streaming: a query is a run of its own, each micro-batch a trace of its own.

What a batch was like is known when Spark tells its progress: then it is counted, and its spans are
written if it failed, was slow or is in the sample. Quiet ones are counted only.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from math import isfinite
from statistics import median
from typing import Any, Final

from msgspec import Struct, field, structs
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, recording, semconv, tracing
from stagewatch.child_runs import ChildRun, open_child_run
from stagewatch.failures import Cause, error_message, error_place, verdict
from stagewatch.instrumentation.pyspark import events, failures, figures
from stagewatch.instrumentation.pyspark.spans import fail, moment, start_of, start_span
from stagewatch.model import Outcome
from stagewatch.recording import Counts, Recording
from stagewatch.records import StageEnded, StageMeasured
from stagewatch.semconv import Metric
from stagewatch.tracing import STAGE_KEY, StageElsewhere

STOPPED: Final = "stopped"
_UNNAMED: Final = "query"
_SLOW: Final = 3.0
"""So many times the usual duration."""
_RECENT: Final = 20
"""Batches by which the usual duration is judged."""
_ENOUGH: Final = 5
_MOST_SLOW: Final = 20
"""Slow batches that get spans, in a minute: of a query that is always behind all are slow."""
_MOST_EVENTS: Final = 1000
"""Of one batch that are remembered."""
_MOST_BATCHES: Final = 10
"""Of one query under way: there is one, and late events of the last."""
_GRACE: Final = 2.0
"""Seconds: figures of the user's actions in a batch may be told after its progress."""
_SECOND: Final = 1_000_000_000

_starts: dict[str, int] = {}
"""How often this process has started a query, by its id."""


class _BatchStage(StageElsewhere):
    """What the user's function does in a batch counts for the batch."""

    __slots__ = ("counts",)

    def __init__(self, recorded: Recording) -> None:
        super().__init__(recorded, semconv.SPARK_BATCH)
        self.counts = Counts()

    @property
    def is_awaited(self) -> bool:
        """Figures are still coming."""
        return self._awaited > 0

    def count(
        self,
        in_: int | None,
        out: int | None,
        rejected: int = 0,
        retries: int = 0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        """See `tracing.OpenStage.count`."""
        with self.recording.lock:
            self.counts.add(in_, out, rejected, retries, bytes_in, bytes_out)


class _Batch(Struct, eq=False):
    """A micro-batch under way."""

    number: int
    root: Span | None = None
    """Made before its end where the user's function runs in it."""
    stage: _BatchStage | None = None
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


class _Query(Struct, eq=False):
    """A query under way."""

    child: ChildRun
    id: str
    run: str
    started: int
    """Nanoseconds since the epoch."""
    interval: float | None = None
    """Seconds, of its trigger."""
    ends_itself: bool = False
    """Its trigger has it end when all that was there is processed."""
    is_stopped: bool = False
    """By the user."""
    batches: dict[int, _Batch] = field(default_factory=dict)
    last: int = -1
    """Number of the newest."""
    count: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Durations of the last batches, seconds."""
    slow: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_SLOW))
    """When slow ones were kept, on the monotonic clock."""
    terminated: events.QueryTerminated | None = None


class Inside(Struct, eq=False):
    """A call of the user's ``foreachBatch`` function."""

    batch: _Batch
    tokens: tuple[Any, Any]


class Streams:
    """The queries of one Spark context."""

    def __init__(self, is_an_actions: Callable[[int], bool]) -> None:
        """*is_an_actions*: whether a job that has started is one of an action: the user's function
        may run some."""
        self._is_an_actions = is_an_actions
        self._queries: dict[str, _Query] = {}
        """By id: at most one run of a query is under way."""
        self._triggers: dict[str, str] = {}
        """By id of the query's run, until its start is told."""
        self._lock = threading.RLock()

    @property
    def is_settled(self) -> bool:
        """Nothing waits for figures."""
        return not any(
            query.terminated is not None
            or any(batch.progress for batch in list(query.batches.values()))
            for query in list(self._queries.values())
        )

    # --- from the user's threads --------------------------------------------------------------

    def started(self, query_id: str, run: str, trigger: str) -> None:
        """A query has been started; *trigger* as Spark prints it."""
        with self._lock:
            query = self._queries.get(query_id)
            if query is not None and query.run == run:
                _set_trigger(query, trigger)
            else:
                self._triggers[run] = trigger

    def stopping(self, query_id: str) -> None:
        """The user stops a query."""
        query = self._queries.get(query_id)
        if query is not None:
            query.is_stopped = True

    def is_open(self, query_id: str) -> bool:
        """Whether its start has been told."""
        return query_id in self._queries

    def open(self, query_id: str, run: str, name: str | None) -> None:
        """A query runs; again is harmless."""
        with self._lock:
            known = self._queries.get(query_id)
            if known is not None:
                if known.run == run:
                    return
                self._end(known)  # whose end nobody has told
            attempt = _starts[query_id] = _starts.get(query_id, 0) + 1
            about: dict[str, AttributeValue] = {
                semconv.SPARK_QUERY_ID: query_id,
                semconv.SPARK_QUERY_RUN_ID: run,
            }
            if name:
                about[semconv.SPARK_QUERY_NAME] = name
            child = open_child_run(name or _UNNAMED, about, attempt)
            if child is None:
                return
            query = self._queries[query_id] = _Query(child, query_id, run, clock.now())
            trigger = self._triggers.pop(run, None)
            if trigger is not None:
                _set_trigger(query, trigger)

    def enter(self, query_id: str, number: int) -> Inside | None:
        """The user's function is called with a batch, in this thread."""
        with self._lock:
            query = self._queries.get(query_id)
            if query is None:
                return None
            batch = _batch(query, number)
            if batch is None:
                return None
            child = query.child
            if batch.root is None:
                batch.began = clock.now()
                batch.root = child.start_trace(
                    semconv.SPARK_BATCH, _about(query, batch), batch.began
                )
                batch.stage = _BatchStage(child.recording)
        context = trace.set_span_in_context(batch.root)
        tokens = (
            otel_context.attach(otel_context.set_value(STAGE_KEY, batch.stage, context)),
            tracing.innermost.set(batch.stage),
        )
        recording.thread.elsewhere = child.recording
        return Inside(batch, tokens)

    def leave(self, inside: Inside, error: BaseException | None) -> None:
        """It has returned."""
        recording.thread.elsewhere = None
        for token in inside.tokens:
            tracing.detach(token)
        inside.batch.error = error

    # --- from the thread that drains ----------------------------------------------------------

    def take(self, event: events.Event) -> None:
        """One event of the listener."""
        match event:
            case events.JobStarted() if event.query is not None and event.batch is not None:
                batch = self._batch_of(event.query, event.batch)
                if batch is not None and not self._is_an_actions(event.job):
                    batch.jobs[event.job] = event
            case events.JobEnded():
                for batch in self._batches():
                    if event.job in batch.jobs:
                        batch.ended[event.job] = event
            case events.StageCompleted():
                self._stage_completed(event)
            case events.QueryStarted():
                self.open(event.id, event.run, event.name)
            case events.QueryProgress():
                self._progressed(event.progress)
            case events.QueryTerminated():
                query = self._queries.get(event.id)
                if query is not None and query.run == event.run:
                    query.terminated = event
            case _:
                pass

    def settle(self, is_idle: bool = False, *, at_once: bool = False) -> None:
        """Finish the batches, and then the queries, that have all their figures; *is_idle*: all
        that was posted has been told; *at_once*: nothing more is told."""
        now = time.monotonic()
        for query in list(self._queries.values()):
            for batch in list(query.batches.values()):
                if batch.progress is None:
                    continue
                waits = batch.stage is not None and batch.stage.is_awaited
                if not waits or at_once or now - batch.told > _GRACE:
                    with self._lock:
                        query.batches.pop(batch.number, None)
                    self._finish(query, batch, batch.progress)
            if query.terminated is not None and not any(
                batch.progress for batch in list(query.batches.values())
            ):
                self._end(query)

    def close(self, outcome: Outcome | None = None, error_type: str | None = None) -> None:
        """Nothing more will be told of the queries: this is what is known of them; None: they go on
        for now."""
        self.settle(at_once=True)
        if outcome is None:
            return
        for query in list(self._queries.values()):
            self._forget(query)
            _let_go(query, query.batches)
            query.child.end(outcome, error_type)

    # --- batches ----------------------------------------------------------------------------------

    def _batch_of(self, query_id: str, number: int) -> _Batch | None:
        with self._lock:
            query = self._queries.get(query_id)
            found = _batch(query, number) if query is not None else None
        return found if found is not None and len(found.jobs) < _MOST_EVENTS else None

    def _batches(self) -> Iterator[_Batch]:
        for query in list(self._queries.values()):
            yield from list(query.batches.values())

    def _stage_completed(self, event: events.StageCompleted) -> None:
        for query in list(self._queries.values()):
            for batch in list(query.batches.values()):
                if any(event.stage in job.stages for job in batch.jobs.values()):
                    if len(batch.stages) < _MOST_EVENTS:
                        batch.stages.append(event)
                    return

    def _progressed(self, progress: dict[str, Any]) -> None:
        query = self._queries.get(str(progress.get("id")))
        if query is None or query.run != progress.get("runId"):
            return
        _measure(query.child, measured(progress, query.interval, clock.now()))
        if "addBatch" not in progress.get("durationMs", {}):
            return  # there was nothing to do
        with self._lock:
            batch = _batch(query, int(progress["batchId"]))
        if batch is not None:
            batch.progress, batch.told = progress, time.monotonic()

    def _finish(self, query: _Query, batch: _Batch, progress: dict[str, Any]) -> None:
        """A batch that went well."""
        seconds = _duration(progress)
        start = moment(_milliseconds(progress.get("timestamp")) or 0, 0)
        end = start + round(seconds * _SECOND)
        sink = (progress.get("sink") or {}).get("numOutputRows", -1)
        ended = _ended(
            query, batch, start, end, int(progress.get("numInputRows") or 0),
            int(sink) if sink is not None and sink >= 0 else None,
        )  # fmt: skip
        query.count += 1
        reason = self._slowness(query, seconds)
        query.recent.append(seconds)
        self._write(query, batch, ended, reason, _times(progress))

    def _slowness(self, query: _Query, seconds: float) -> str | None:
        is_slow = query.interval is not None and 0 < query.interval < seconds
        if len(query.recent) >= _ENOUGH:
            is_slow |= seconds >= max(
                _SLOW * median(query.recent), query.child.recording.threshold / _SECOND
            )
        now, full = time.monotonic(), len(query.slow) == _MOST_SLOW
        if not is_slow or (full and now - query.slow[0] < 60):
            return None
        query.slow.append(now)
        return "slow"

    def _write(
        self, query: _Query, batch: _Batch, ended: StageEnded, reason: str | None,
        more: dict[str, AttributeValue],
    ) -> None:  # fmt: skip
        """Count a batch, and write its trace if there is a *reason* to, or one is found."""
        child, root, threshold = query.child, batch.root, ""
        if root is None:
            root = child.start_trace(semconv.SPARK_BATCH, _about(query, batch), ended.start)
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
            _write_jobs(child, batch, root, ended.end)
            root.end(ended.end)
            span_id = root.get_span_context().span_id.to_bytes(8, "big")
            ended = structs.replace(ended, span_id=span_id)
        child.settle(root, keep=reason is not None, threshold=threshold)
        child.recording.sink.append(ended)
        _measure(child, {**figures.increments(sums), **figures.ratios(sums, 0)})

    # --- the end of a query -----------------------------------------------------------------------

    def _end(self, query: _Query) -> None:
        self._forget(query)
        told = query.terminated
        query.child.span.set_attribute(semconv.SPARK_QUERY_BATCHES, query.count)
        if told is None or (told.error is None and told.message is None):
            _let_go(query, query.batches)
            if query.ends_itself and not query.is_stopped:
                query.child.end(Outcome.SUCCESS)
            else:
                query.child.end(Outcome.CANCELLATION, STOPPED)
            return
        under_way = max(list(query.batches.values()), key=lambda batch: batch.number, default=None)
        raised = under_way.error if under_way is not None else None
        cause = _of_error(raised) if raised is not None else _of_text(told)
        if under_way is not None:
            start = under_way.began or _first_job(under_way, query.started)
            ended = _ended(query, under_way, start, max(clock.now(), start), None, None)
            failed = structs.replace(ended, outcome=str(cause.outcome), error_type=cause.error_type)
            del query.batches[under_way.number]
            self._write(query, under_way, failed, "failed", {})
        _let_go(query, query.batches)
        query.child.end(cause.outcome, cause.error_type, cause.message, cause.place)

    def _forget(self, query: _Query) -> None:
        with self._lock:
            if self._queries.get(query.id) is query:
                del self._queries[query.id]


# --- parts of it ------------------------------------------------------------------------------


def _batch(query: _Query, number: int) -> _Batch | None:
    """Under the lock. None: of one that is over."""
    found = query.batches.get(number)
    if found is None and number > query.last:
        found = query.batches[number] = _Batch(number)
        query.last = number
        if len(query.batches) > _MOST_BATCHES:
            _let_go(query, [next(iter(query.batches))])
    return found


def _let_go(query: _Query, numbers: Iterable[int]) -> None:
    """Batches whose end nobody has told: what is known of them is not much."""
    for number in tuple(numbers):
        batch = query.batches.pop(number)
        if batch.root is not None:
            query.child.settle(batch.root, keep=False)


def _about(query: _Query, batch: _Batch) -> dict[str, AttributeValue]:
    run = query.child.recording.run
    return {
        semconv.PIPELINE_NAME: run.pipeline.name,
        semconv.RUN_ID: run.run_id,
        semconv.STAGE_NAME: semconv.SPARK_BATCH,
        semconv.SPARK_QUERY_ID: query.id,
        semconv.SPARK_BATCH_ID: batch.number,
    }


def _ended(
    query: _Query, batch: _Batch, start: int, end: int, rows_in: int | None, rows_out: int | None
) -> StageEnded:
    """What the sink does not count, what the user's function has written may."""
    counts = batch.stage.counts if batch.stage is not None else Counts()
    return StageEnded(
        query.child.recording.run.run_id,
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
        (end - start) / _SECOND,
        0,
        counts.bytes_in,
        counts.bytes_out,
    )


def _write_jobs(child: ChildRun, batch: _Batch, root: Span, end: int) -> None:
    """Spans of the jobs and stages that Spark ran for a batch; those of the user's actions in it
    are written as everywhere."""
    parent = trace.set_span_in_context(root)
    for number, started in batch.jobs.items():
        known: dict[str, AttributeValue] = {semconv.SPARK_JOB_ID: number}
        if started.execution is not None:
            known[semconv.SPARK_EXECUTION_ID] = started.execution
        start = moment(started.at, start_of(root))
        job = start_span(
            child.recording, semconv.SPARK_JOB, parent, start, semconv.SPARK_BATCH, known
        )
        for stage in batch.stages:
            if stage.stage in started.stages and stage.submitted is not None:
                _write_stage(child, stage, stage.submitted, job, end)
        over = batch.ended.get(number)
        if over is not None and over.error is not None:
            fail(job, over.error, f"{over.error}: {over.message}")
        job.end(moment(over.at, start) if over is not None else max(end, start))


def _write_stage(
    child: ChildRun, stage: events.StageCompleted, submitted: int, job: Span, end: int
) -> None:
    known: dict[str, AttributeValue] = {
        semconv.SPARK_STAGE_ID: stage.stage,
        semconv.SPARK_STAGE_ATTEMPT: stage.attempt,
        semconv.SPARK_STAGE_NAME: stage.name,
    }
    start = moment(submitted, start_of(job))
    span = start_span(
        child.recording, semconv.SPARK_STAGE, trace.set_span_in_context(job), start,
        semconv.SPARK_BATCH, known,
    )  # fmt: skip
    span.set_attributes(figures.of_stage(stage))
    if stage.failure is not None:
        fail(span, stage.error or "stage_failed", stage.failure)
    span.end(moment(stage.completed, start) if stage.completed is not None else max(end, start))


def _measure(child: ChildRun, values: Mapping[str, float]) -> None:
    if values:
        run_id = child.recording.run.run_id
        child.recording.sink.append(StageMeasured(run_id, semconv.SPARK_BATCH, dict(values)))


def _set_trigger(query: _Query, trigger: str) -> None:
    kind, _, interval = trigger.rstrip(")").partition("(")
    query.ends_itself = not kind.startswith(("ProcessingTime", "Continuous", "RealTime"))
    if interval.isdecimal() and int(interval):
        query.interval = int(interval) / 1e3
        query.child.span.set_attribute(semconv.SPARK_QUERY_TRIGGER, query.interval)


def _first_job(batch: _Batch, otherwise: int) -> int:
    started = [job.at for job in batch.jobs.values()]
    return moment(min(started), otherwise) if started else otherwise


# --- why it failed ----------------------------------------------------------------------------


def _of_error(error: BaseException) -> Cause:
    """Of what the user's function raised."""
    outcome, error_type = verdict(error)
    return Cause(error_type or "unknown", outcome, error_place(error), error_message(error))


def _of_text(told: events.QueryTerminated) -> Cause:
    """The user's exception of a Python worker, else what Spark says."""
    text = told.message or ""
    found = failures.of_text(text)
    return found if found is not None else Cause(told.error or "unknown", message=text or None)


# --- progress ---------------------------------------------------------------------------------


def measured(progress: Mapping[str, Any], interval: float | None, now: int) -> dict[str, float]:
    """Values of `semconv.MEASURED` in a `StreamingQueryProgress`; what is unknown is absent.

    *interval* of the trigger, seconds; *now*: nanoseconds since the epoch. Watermark lateness: now
    - watermark; source lag: latest offset - end offset, summed over sources and partitions.
    """
    states = progress.get("stateOperators") or []
    seconds = _duration(progress)
    watermark = _milliseconds((progress.get("eventTime") or {}).get("watermark"))
    sources = progress.get("sources") or []
    lags = [lag for source in sources if (lag := _lag(source)) is not None]
    found: dict[Metric, float | None] = {
        semconv.SPARK_STREAM_INPUT_RATE: progress.get("inputRowsPerSecond"),
        semconv.SPARK_STREAM_PROCESSING_RATE: progress.get("processedRowsPerSecond"),
        semconv.SPARK_STREAM_BATCH_DURATION: seconds,
        semconv.SPARK_STREAM_TRIGGER_RATIO: seconds / interval if interval else None,
        # Before the first event it is at the epoch.
        semconv.SPARK_STREAM_WATERMARK_LATENESS: now / _SECOND - watermark / 1e3
        if watermark
        else None,
        semconv.SPARK_STREAM_SOURCE_LAG: sum(lags) if lags else None,
        semconv.SPARK_STREAM_STATE_ROWS: _sum(states, "numRowsTotal"),
        semconv.SPARK_STREAM_STATE_MEMORY: _sum(states, "memoryUsedBytes"),
        semconv.SPARK_STREAM_ROWS_DROPPED: _sum(states, "numRowsDroppedByWatermark"),
    }
    return {
        metric.name: float(value)
        for metric, value in found.items()
        if isinstance(value, int | float) and isfinite(value)
    }


def _times(progress: Mapping[str, Any]) -> dict[str, AttributeValue]:
    took = progress.get("durationMs") or {}
    return {
        name: took[part] / 1e3 for part, name in semconv.SPARK_BATCH_TIMES.items() if part in took
    }


def _duration(progress: Mapping[str, Any]) -> float:
    """Seconds of the trigger's execution."""
    return float((progress.get("durationMs") or {}).get("triggerExecution") or 0) / 1e3


def _milliseconds(text: object) -> int | None:
    """Since the epoch, of a time as Spark writes it; None if it is none."""
    with suppress(ValueError):
        return (
            round(datetime.fromisoformat(text).timestamp() * 1e3) if isinstance(text, str) else None
        )
    return None


def _lag(source: Mapping[str, Any]) -> int | None:
    latest, end = _offset(source.get("latestOffset")), _offset(source.get("endOffset"))
    return None if latest is None or end is None else max(latest - end, 0)


def _offset(value: object) -> int | None:
    """A number, also within text; of topics and their partitions the sum."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, dict):
        parts = [_offset(part) for part in value.values()]
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _sum(states: Iterable[Mapping[str, Any]], name: str) -> int | None:
    found = [state[name] for state in states if name in state]
    return sum(found) if found else None
