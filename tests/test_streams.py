"""What the events of streaming queries become; real queries are in `tests/spark`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace

from stagewatch import child_runs, operations, recording, semconv, tracing
from stagewatch.child_opening import ChildRuns
from stagewatch.config import Config, Settings
from stagewatch.exporters.journal import read_frames, segment_path
from stagewatch.instrumentation.pyspark import events, streams
from stagewatch.instrumentation.pyspark.progress import measured
from stagewatch.instrumentation.pyspark.streams import Streams
from stagewatch.model import Outcome
from stagewatch.opened import Opened
from stagewatch.records import (
    OperationEnded,
    Record,
    RunExiting,
    RunStarted,
    SpanEnded,
    StageEnded,
    StageMeasured,
    TraceSettled,
    decode,
)
from tests.recorded import START, Recorded

AT = START // 1_000_000
"""Milliseconds."""
ID, RUN = "i" * 8, "r" * 8


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's clock and ours agree, and stand still."""
    from stagewatch import clock
    from stagewatch.instrumentation.pyspark import spans

    monkeypatch.setattr(clock, "now", lambda: START + 1_000_000_000)
    monkeypatch.setattr(spans.time, "time_ns", lambda: START + 1_000_000_000)


class Queries:
    """The queries of one process, and what each has written."""

    def __init__(self, recorded: Recorded, ratio: float) -> None:
        self.opened = Opened(
            run=recorded.run, settings=Settings(detail_ratio=ratio), journal=recorded.journal,
            spans=recorded.writer, state_directory=recorded.directory, room=recorded.directory,
            resource={}, span=trace.INVALID_SPAN, owner=os.getpid(), ships_itself=True,
            elsewhere=False,
        )  # fmt: skip
        self.children = ChildRuns(self.opened, Config())
        self.keys: list[str] = []
        self.of_actions: set[int] = set()
        """Numbers of jobs."""
        self.streams = Streams(self.of_actions.__contains__)
        self.directory = recorded.directory

    def open(self, *arguments: Any) -> Any:
        child = self.children.open(*arguments)
        self.keys.append(list(self.children)[-1].journal.key)
        return child

    def feed(self, *found: events.Event) -> None:
        for event in found:
            self.streams.take(event)
        self.streams.settle()

    def start(self, query: str = ID, run: str = RUN, name: str | None = "clicks") -> None:
        self.feed(events.QueryStarted(query, run, name))

    def batch(self, number: int, seconds: float = 0.1, rows: int = 10, **changes: Any) -> None:
        """A batch that went well."""
        self.feed(progress(number, seconds, rows, **changes))

    def records(self, kind: type[Any], query: int = 0) -> list[Any]:
        """Of one query, in the order in which they were opened."""
        data = segment_path(self.directory, self.keys[query], 0).read_bytes()
        found: list[Record] = [decode(body) for body, _ in read_frames(data, 0)]
        return [record for record in found if isinstance(record, kind)]

    def reasons(self, query: int = 0) -> list[Any]:
        """Why batches have spans."""
        return [
            (span.attributes or {}).get(semconv.SPARK_BATCH_REASON)
            for span in self.records(SpanEnded, query)
            if span.name == "batch"
        ]


def progress(number: int, seconds: float, rows: int, **changes: Any) -> events.QueryProgress:
    found = {
        "id": ID,
        "runId": RUN,
        "timestamp": "2023-11-14T22:13:20.500Z",
        "batchId": number,
        "numInputRows": rows,
        "inputRowsPerSecond": 5.0,
        "processedRowsPerSecond": 50.0,
        "durationMs": {"addBatch": 1, "triggerExecution": seconds * 1e3},
        "sources": [],
        "sink": {"numOutputRows": -1},
    }
    return events.QueryProgress({**found, **changes})


def job(number: int, batch: int, *stages: int) -> events.JobStarted:
    return events.JobStarted(
        number, AT + 600, list(stages), query=ID, batch=batch, execution=number
    )


def stage(number: int, **changes: Any) -> events.StageCompleted:
    fields = {"submitted": AT + 610, "completed": AT + 690, "succeeded": 2, "task_max": 30}
    return events.StageCompleted(number, 0, "start at x", 2, **{**fields, **changes})


@pytest.fixture
def made(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Queries]]:
    found: list[Queries] = []

    def make(ratio: float = 0.0) -> Queries:
        found.append(Queries(recorded, ratio))
        ids = itertools.count(1)  # spread like random ones
        monkeypatch.setattr(
            recorded.provider.id_generator,
            "generate_trace_id",
            lambda: next(ids) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128),
        )
        monkeypatch.setattr(child_runs, "opener", found[-1].open)
        return found[-1]

    monkeypatch.setattr(streams, "_starts", {})
    yield make
    assert recorded.writer.of_traces == {}


@pytest.fixture
def queries(made: Callable[..., Queries]) -> Queries:
    """None of its quiet batches is in the sample."""
    return made()


def test_a_query_is_a_run(queries: Queries) -> None:
    """Named after the process's pipeline; started again from its checkpoint it has the same id,
    and is the second attempt."""
    queries.start()
    queries.feed(events.QueryTerminated(ID, RUN))
    queries.start(run="again")
    queries.start(query="other", name=None)
    (first,), (second,), (unnamed,) = (queries.records(RunStarted, n) for n in range(3))
    assert (first.pipeline, first.attempt, first.parent_run_id) == ("test.clicks", 1, "r" * 32)
    assert (second.pipeline, second.attempt) == ("test.clicks", 2)
    assert second.attributes == {
        semconv.SPARK_QUERY_ID: ID,
        semconv.SPARK_QUERY_RUN_ID: "again",
        semconv.SPARK_QUERY_NAME: "clicks",
    }
    assert unnamed.pipeline == "test.query"


def test_quiet_batches_are_counted_only(queries: Queries) -> None:
    """A hundred leave no span, and their rows and durations exactly."""
    queries.start()
    for number in range(100):
        queries.feed(job(number, number, number), stage(number))
        queries.batch(number, 0.1 + number % 2 / 100, rows=number)
    ended = queries.records(StageEnded)
    assert queries.records(SpanEnded) == []
    assert len(ended) == 100
    assert {(one.name, one.outcome, one.span_id) for one in ended} == {("batch", "success", b"")}
    assert sum(one.records_in for one in ended) == sum(range(100))
    assert sum(one.end - one.start for one in ended) == 10_500_000_000
    assert {one.records_out for one in ended} == {None}
    assert {trace.keep for trace in queries.records(TraceSettled)} == {False}
    values = [record.values for record in queries.records(StageMeasured)]
    assert sum(found.get("pipeline.spark.tasks", 0) for found in values) == 200


def test_a_slow_batch_has_a_trace(queries: Queries) -> None:
    """It is longer than the trigger's interval, or much longer than usual; the trace is its own,
    linked to the run, with jobs and stages at their times."""
    queries.streams.started(ID, RUN, "ProcessingTimeTrigger(1000)")
    queries.start()
    for number in range(6):
        queries.batch(number, 0.1)
    queries.feed(job(7, 6, 3, 4), stage(3), events.JobEnded(7, AT + 700))
    queries.batch(6, 0.4, rows=5, sink={"numOutputRows": 4})
    queries.batch(7, 1.1)
    assert queries.reasons() == ["slow", "slow"]
    spans = queries.records(SpanEnded)[:3]
    found = {span.name: span for span in spans}
    batch, spark_job, spark_stage = (found[name] for name in ("batch", "spark.job", "spark.stage"))
    (run,) = queries.records(RunStarted)
    assert batch.links == [(run.trace_id, run.span_id, None)]
    assert batch.parent_span_id == b""
    assert len({batch.trace_id, run.trace_id}) == 2
    assert {span.trace_id for span in spans} == {batch.trace_id}
    assert spark_job.parent_span_id == batch.span_id
    assert spark_stage.parent_span_id == spark_job.span_id
    assert (batch.start - START, batch.end - START) == (500_000_000, 900_000_000)
    assert (spark_job.start - START, spark_job.end - START) == (600_000_000, 700_000_000)
    assert (spark_stage.start - START, spark_stage.end - START) == (610_000_000, 690_000_000)
    assert batch.attributes is not None
    assert batch.attributes[semconv.SPARK_BATCH_ID] == 6
    assert batch.attributes[semconv.SPARK_QUERY_ID] == ID
    assert batch.attributes[semconv.STAGE_RECORDS_OUT] == 4
    assert batch.attributes[semconv.SPARK_TASKS] == 2
    assert queries.records(StageEnded)[6].span_id == batch.span_id
    assert [one.keep for one in queries.records(TraceSettled)] == [False] * 6 + [True] * 2
    ratio = semconv.SPARK_STREAM_TRIGGER_RATIO.name
    last = queries.records(StageMeasured)[-1].values
    assert last[ratio] == 1.1


def test_a_query_that_is_always_behind(queries: Queries) -> None:
    """Not each of its batches has a trace."""
    queries.streams.started(ID, RUN, "ProcessingTimeTrigger(50)")
    queries.start()
    for number in range(100):
        queries.batch(number)
    assert queries.reasons() == ["slow"] * 20


def test_the_sample(made: Callable[..., Queries]) -> None:
    """Of quiet batches a share has spans, which say what they stand for."""
    queries = made(0.5)
    queries.start()
    for number in range(64):
        queries.batch(number)
    settled = queries.records(TraceSettled)
    kept = [one for one in settled if one.keep]
    assert 0 < len(kept) < 64
    assert queries.reasons() == ["sample"] * len(kept)
    assert {one.threshold for one in kept} == {"8"}
    assert all((one.trace_id[-7:] >= b"\x80" + bytes(6)) == one.keep for one in settled)


def test_why_a_query_failed(queries: Queries) -> None:
    """By the user's exception in a worker; the batch under way has failed with it, and has a
    trace. Without one, by Spark's condition."""
    queries.start()
    queries.batch(0)
    failed = stage(1, failure="[PYTHON] x", error="ValueError")
    queries.feed(
        job(1, 1, 1), failed, events.JobEnded(1, AT + 700, "org.apache.spark.SparkException")
    )
    message = (
        "org.apache.spark.SparkException: Job aborted: PythonException: "
        'Traceback (most recent call last):\n  File "/job/etl.py", line 3, in clean\n'
        "    raise ValueError('secret')\nValueError: no such 'secret'\n\n\tat org.apache.Spark(x)"
    )
    queries.feed(events.QueryTerminated(ID, RUN, "PYTHON_EXCEPTION", message))
    (exiting,) = queries.records(RunExiting)
    assert (exiting.outcome, exiting.error_type) == ("failure", "ValueError")
    assert exiting.error_message == "no such ?"
    assert exiting.error_place == "/job/etl.py:3 in clean"
    assert exiting.attributes[semconv.SPARK_QUERY_BATCHES] == 1
    ended = queries.records(StageEnded)[-1]
    assert (ended.outcome, ended.error_type) == ("failure", "ValueError")
    assert queries.reasons() == ["failed"]
    assert [span.status for span in queries.records(SpanEnded)] == [2, 2, 2]
    queries.start(run="again")
    message = "org.apache.spark.sql.AnalysisException: [TABLE_NOT_FOUND] There is no 'a'"
    queries.feed(events.QueryTerminated(ID, "again", "TABLE_NOT_FOUND", message))
    (exiting,) = queries.records(RunExiting, 1)
    assert (exiting.outcome, exiting.error_type) == ("failure", "TABLE_NOT_FOUND")


@pytest.mark.parametrize(
    ("trigger", "stopped", "outcome", "error_type"),
    [
        ("ProcessingTimeTrigger(0)", False, "cancellation", "stopped"),
        ("AvailableNowTrigger", False, "success", None),
        ("AvailableNowTrigger", True, "cancellation", "stopped"),
        ("OneTimeTrigger", False, "success", None),
    ],
)
def test_how_a_query_ends(
    queries: Queries, trigger: str, stopped: bool, outcome: str, error_type: str | None
) -> None:
    """One that goes on for ever ends because somebody stops it; the trigger is known late."""
    queries.start()
    queries.streams.started(ID, RUN, trigger)
    if stopped:
        queries.streams.stopping(ID)
    queries.feed(job(1, 0, 1), events.QueryTerminated(ID, RUN))
    (exiting,) = queries.records(RunExiting)
    assert (exiting.outcome, exiting.error_type) == (outcome, error_type)
    assert queries.records(StageEnded) == []


def test_the_users_function(queries: Queries, recorded: Recorded) -> None:
    """What it does counts for the query's run, in the batch's trace; what it writes is what the
    batch has given out. A quiet one leaves nothing but counts."""
    kind = operations.OperationKind("pandas.to_sql", io=True)
    quick = operations.OperationKind("pandas.merge")
    queries.start()
    for number, raised in ((0, None), (1, KeyError("x"))):
        inside = queries.streams.enter(ID, number)
        assert inside is not None
        root = trace.get_current_span().get_span_context()
        assert tracing.current_run() is not recorded.run
        for one in (kind, quick):
            call = operations.begin(one)
            assert call is not None
            operations.end(call, writes=3 if one is kind else None)
        queries.streams.leave(inside, raised)
        assert (recording.here(), tracing.current_run()) == (recording.active, recorded.run)
        if raised is None:
            queries.batch(0)
    queries.feed(events.QueryTerminated(ID, RUN, "FOREACH_BATCH_USER_FUNCTION_ERROR", "x"))
    quiet, failed = queries.records(StageEnded)
    assert (quiet.records_in, quiet.records_out, quiet.span_id) == (10, 3, b"")
    assert (failed.error_type, failed.records_out) == ("KeyError", 3)
    assert failed.span_id == root.span_id.to_bytes(8, "big")
    assert [(one.stage, one.name) for one in queries.records(OperationEnded)] == [
        ("batch", "pandas.to_sql")
    ] * 2
    spans = queries.records(SpanEnded)
    assert [span.name for span in spans] == ["pandas.to_sql", "pandas.to_sql", "batch"]
    assert [one.keep for one in queries.records(TraceSettled)] == [False, True]
    assert queries.records(TraceSettled)[0].span_ids == [spans[0].span_id]
    assert recorded.of(OperationEnded) == []
    (exiting,) = queries.records(RunExiting)
    assert (exiting.error_type, exiting.error_message) == ("KeyError", "?")


def test_the_users_own_spans_keep_a_batch(queries: Queries, recorded: Recorded) -> None:
    """They are never dropped, and hang under something."""
    queries.start()
    inside = queries.streams.enter(ID, 0)
    assert inside is not None
    with recorded.provider.get_tracer("mine").start_as_current_span("mine"):
        pass
    queries.streams.leave(inside, None)
    queries.batch(0)
    assert queries.reasons() == ["user"]
    mine, batch = queries.records(SpanEnded)
    assert (mine.name, mine.parent_span_id) == ("mine", batch.span_id)


def test_figures_that_are_still_coming(queries: Queries) -> None:
    """A batch waits for those of the user's actions, whose jobs are told under them."""
    queries.start()
    inside = queries.streams.enter(ID, 0)
    assert inside is not None
    kind = operations.OperationKind("pyspark.write.parquet", io=True, open=True)
    call = operations.begin(kind)
    assert call is not None
    later = operations.end_later(call)
    queries.streams.leave(inside, None)
    queries.of_actions.add(1)
    queries.feed(job(1, 0, 1), stage(1))
    queries.batch(0)
    assert queries.records(StageEnded) == []
    assert not queries.streams.is_settled
    assert later is not None
    later.complete(reads=10, writes=7)
    queries.feed()
    (ended,) = queries.records(StageEnded)
    assert (ended.records_in, ended.records_out) == (10, 7)
    assert queries.streams.is_settled
    assert "pipeline.spark.tasks" not in str(queries.records(StageMeasured))


def test_triggers_without_work(queries: Queries) -> None:
    """No batch ran: the gauges move, nothing is counted."""
    queries.start()
    queries.batch(0, durationMs={"latestOffset": 3, "triggerExecution": 3}, numInputRows=0)
    queries.batch(0, rows=4)
    assert [one.records_in for one in queries.records(StageEnded)] == [4]
    assert len(queries.records(StageMeasured)) == 2


def test_queries_whose_end_nobody_tells(queries: Queries) -> None:
    """They end as it is known of their context; late events of a run that is over are nobody's."""
    queries.start()
    inside = queries.streams.enter(ID, 0)
    assert inside is not None
    queries.streams.leave(inside, None)
    queries.streams.close(Outcome.ERROR, "jvm_gone")
    queries.batch(0)
    (exiting,) = queries.records(RunExiting)
    assert (exiting.outcome, exiting.error_type) == ("error", "jvm_gone")
    assert queries.records(StageEnded) == []


def test_what_is_measured() -> None:
    """Of sources, states and the watermark; of several the sum, of what is unknown nothing."""
    found = measured(
        {
            "inputRowsPerSecond": 20.0,
            "processedRowsPerSecond": float("inf"),
            "durationMs": {"triggerExecution": 1500},
            "eventTime": {"watermark": "2023-11-14T22:13:10.000Z"},
            "stateOperators": [
                {"numRowsTotal": 5, "memoryUsedBytes": 100, "numRowsDroppedByWatermark": 1},
                {"numRowsTotal": 6, "memoryUsedBytes": 200, "numRowsDroppedByWatermark": 2},
            ],
            "sources": [
                {"latestOffset": {"a": {"0": 10, "1": 5}}, "endOffset": {"a": {"0": 7, "1": 5}}},
                {"latestOffset": "9", "endOffset": 5},
                {"latestOffset": None, "endOffset": {"logOffset": 3}},
                {"latestOffset": "later", "endOffset": "earlier"},
            ],
        },
        3.0,
        START,
    )
    assert found == {
        semconv.SPARK_STREAM_INPUT_RATE.name: 20.0,
        semconv.SPARK_STREAM_BATCH_DURATION.name: 1.5,
        semconv.SPARK_STREAM_TRIGGER_RATIO.name: 0.5,
        semconv.SPARK_STREAM_WATERMARK_LATENESS.name: 10.0,
        semconv.SPARK_STREAM_SOURCE_LAG.name: 7.0,
        semconv.SPARK_STREAM_STATE_ROWS.name: 11.0,
        semconv.SPARK_STREAM_STATE_MEMORY.name: 300.0,
        semconv.SPARK_STREAM_ROWS_DROPPED.name: 3.0,
    }
    nothing = measured({"eventTime": {"watermark": "1970-01-01T00:00:00.000Z"}}, None, START)
    assert nothing == {semconv.SPARK_STREAM_BATCH_DURATION.name: 0.0}


def test_started_again_at_once(queries: Queries) -> None:
    """One drain may tell the last batch, the end and the next start: the batch counts."""
    queries.start()
    queries.feed(
        progress(0, 0.1, 7),
        events.QueryTerminated(ID, RUN),
        events.QueryStarted(ID, "again", "clicks"),
    )
    assert [one.records_in for one in queries.records(StageEnded)] == [7]
    (exiting,) = queries.records(RunExiting)
    assert exiting.attributes[semconv.SPARK_QUERY_BATCHES] == 1
    assert queries.records(RunExiting, 1) == []


def test_starts_that_nobody_tells(queries: Queries) -> None:
    """Of queries that are over, or never were: the triggers of the last are remembered."""
    for number in range(500):
        queries.streams.started(f"id{number}", f"run{number}", f"ProcessingTimeTrigger({number})")
    queries.start("id0", "run0")
    queries.start("id499", "run499")
    for query in ("id0", "id499"):
        queries.feed(events.QueryTerminated(query, f"run{query[2:]}"))
    intervals = [
        queries.records(RunExiting, query)[0].attributes.get(semconv.SPARK_QUERY_TRIGGER)
        for query in range(2)
    ]
    assert intervals == [None, 0.499]
    assert len(queries.streams._triggers) == 99


def test_starts_of_queries_without_end(queries: Queries, monkeypatch: pytest.MonkeyPatch) -> None:
    """How often the last ones have been started is remembered."""
    monkeypatch.setattr(streams, "_MOST_STARTS", 2)
    for query in ("a", "b", "a", "c"):
        queries.start(query)
        queries.feed(events.QueryTerminated(query, RUN))
    assert streams._starts == {"a": 2, "c": 1}


def test_without_a_run_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose run is not recorded has no queries either."""
    monkeypatch.setattr(child_runs, "opener", None)
    found = Streams(lambda job: False)
    found.take(events.QueryStarted(ID, RUN))
    found.take(progress(0, 1.0, 1))
    assert found.enter(ID, 0) is None
    found.settle()
    assert found.is_settled


def test_fifty_queries(queries: Queries) -> None:
    """Each has its own."""
    for number in range(50):
        queries.start(f"id{number}", f"run{number}", f"q{number}")
    for number in range(50):
        queries.feed(
            progress(0, 0.1, number, id=f"id{number}", runId=f"run{number}"),
        )
    for number in range(50):
        (ended,) = queries.records(StageEnded, number)
        assert ended.records_in == number
