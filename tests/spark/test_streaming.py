"""Structured Streaming with a real Spark: one program with every kind of query, and one that is
killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from stagewatch import semconv
from stagewatch.model import Outcome, Run
from tests.jobs import Jobs, end_recorders, wait_for
from tests.spark.told import SharedJvm

QUERIES = '''
import json, os, time
from pathlib import Path

import pandas as pd
from opentelemetry import trace
from pyspark.sql import SparkSession, functions as F

spark = SparkSession.builder.getOrCreate()
spark.sparkContext.setLogLevel("OFF")
here = Path.cwd()


def files(name, *parts):
    """A file a batch, each a list of rows."""
    (here / name).mkdir(exist_ok=True)
    for part in parts:
        number = len(list((here / name).iterdir()))
        lines = "".join(json.dumps(row) + "\\n" for row in part)
        path = here / name / f"{number:03}.json"
        path.write_text(lines)
        os.utime(path, (number, number))  # Spark takes the oldest first


def source(name):
    reader = spark.readStream.schema("id long, at timestamp").option("maxFilesPerTrigger", 1)
    return reader.json(str(here / name))


def start(name, frame, **trigger):
    frame = frame if hasattr(frame, "start") else frame.writeStream.format("noop")
    frame = frame.queryName(name).option("checkpointLocation", str(here / f"{name}.checkpoint"))
    return frame.trigger(**(trigger or {"availableNow": True})).start()


# Quiet, and once more from its checkpoint.
files("quiet", *([{"id": n}] * (n + 1) for n in range(6)))
start("quiet", source("quiet")).awaitTermination()
files("quiet", [{"id": 1}, {"id": 2}])
again = start("quiet", source("quiet"))
again.awaitTermination()
assert again.exception() is None and again.name == "quiet"

# State, and rows that come too late.
at = "2026-11-21T12:%02d:00"
files(
    "late",
    [{"id": n, "at": at % n} for n in range(30)],
    [{"id": 3, "at": at % 40}],
    [{"id": 1, "at": at % 1}, {"id": 2, "at": at % 2}],
)
counts = source("late").withWatermark("at", "1 minute").groupBy(F.window("at", "1 minute")).count()
start("late", counts.writeStream.format("memory").outputMode("append")).awaitTermination()
assert spark.table("late").count() > 0

# A stream, stopped.
rate = spark.readStream.format("rate").option("rowsPerSecond", 10).load()
rate = rate.withWatermark("timestamp", "1 second")
running = start("rate", rate, processingTime="100 milliseconds")
while running.lastProgress is None or running.lastProgress["numInputRows"] == 0:
    time.sleep(0.1)
running.stop()
assert not running.isActive


# The user's function.
def each(frame, number):
    frame.write.mode("append").parquet(str(here / "each.parquet"))
    pd.DataFrame({"a": [number]}).to_csv(here / "each.csv")
    if number == 1:
        with trace.get_tracer("mine").start_as_current_span("mine"):
            pass


files("each", *([{"id": n}] * 5 for n in range(3)))
start("each", source("each").writeStream.foreachBatch(each)).awaitTermination()


def broken(frame, number):
    frame.count()
    raise KeyError("secret")


@F.udf("long")
def bad(number):
    raise ValueError("secret")


for name, frame in (
    ("broken", source("each").writeStream.foreachBatch(broken)),
    ("failing", source("each").select(bad("id"))),
):
    try:
        start(name, frame).awaitTermination()
    except Exception as error:
        print(name, type(error).__name__)

start("left", rate, processingTime="1 hour")
print(spark.range(10).count())
'''


class Ran:
    """What became of `QUERIES`."""

    def __init__(self, jobs: Jobs, finished: subprocess.CompletedProcess[str]) -> None:
        self.jobs = jobs
        self.finished = finished
        self.runs = jobs.runs(9)

    def of(self, name: str) -> list[Run]:
        return [run for run in self.runs if run.pipeline == f"etl.{name}"]

    def only(self, name: str) -> Run:
        (run,) = self.of(name)
        return run

    def spans(self, run: Run) -> list[Any]:
        with self.jobs.history() as history:
            return list(history.spans(run.run_id))

    def batches(self, run: Run) -> Any:
        """The stage that batches are calls of."""
        with self.jobs.history() as history:
            (stage,) = history.stages(run.run_id)
        assert stage.name == "batch"
        return stage

    def counter(self, name: str, pipeline: str) -> float:
        with self.jobs.history() as history:
            rows = history.link.execute(
                "select total.value from total join instrument on instrument.id = instrument "
                "where name = ? and pipeline = ?",
                (name, pipeline),
            ).fetchall()
        return float(sum(value for (value,) in rows))


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
    spark_environment: dict[str, str],
    shared_jvm: SharedJvm,
) -> Iterator[Ran]:
    jobs = Jobs(tmp_path_factory.mktemp("streams"), patience=280)
    jobs.environment |= spark_environment
    jobs.environment["STAGEWATCH_DETAIL_RATIO"] = "0"
    yield Ran(jobs, jobs.run(QUERIES, **shared_jvm()))
    end_recorders(jobs)


def test_the_program_is_what_it_is_without_us(ran: Ran) -> None:
    """Output and exit code."""
    assert ran.finished.returncode == 0, ran.finished.stderr[-3000:]
    assert ran.finished.stdout.split() == [
        "broken", "StreamingQueryException", "failing", "StreamingQueryException", "10",
    ]  # fmt: skip
    assert "stagewatch" not in ran.finished.stderr


def test_quiet_batches_make_few_spans_and_exact_totals(ran: Ran) -> None:
    """Of six batches, those that were slow have spans; started again it has the same id."""
    first, second = ran.of("quiet")
    stage = ran.batches(first)
    assert (first.outcome, second.outcome) == (Outcome.SUCCESS, Outcome.SUCCESS)
    assert (stage.calls, stage.failed, stage.records_in) == (6, 0, 21)
    assert first.records_in == 21
    assert ran.batches(second).records_in == 2
    assert (first.attempt, second.attempt) == (1, 2)
    own = [span for run in (first, second) for span in ran.spans(run) if span.name == "etl.quiet"]
    assert len({span.attributes[semconv.SPARK_QUERY_ID] for span in own}) == 1
    assert len({span.attributes[semconv.SPARK_QUERY_RUN_ID] for span in own}) == 2
    kept = [span for span in ran.spans(first) if span.name == "batch"]
    assert len(kept) <= 3
    assert {span.attributes[semconv.SPARK_BATCH_REASON] for span in kept} <= {"slow"}
    assert ran.counter("pipeline.records", "etl.quiet") == 23 + 23  # in and out
    (process,) = [run for run in ran.runs if run.pipeline == "etl"]
    assert first.parent_run_id == process.run_id


def test_rows_that_come_too_late(ran: Ran) -> None:
    """They are counted; so is what the state holds."""
    run = ran.only("late")
    assert run.outcome == Outcome.SUCCESS
    assert ran.batches(run).records_in == 33
    assert ran.counter("pipeline.spark.stream.rows.dropped", "etl.late") == 2
    assert ran.counter("pipeline.spark.stream.state.rows", "etl.late") >= 1
    assert ran.counter("pipeline.spark.stream.state.memory", "etl.late") > 0
    assert ran.counter("pipeline.spark.stream.watermark.lateness", "etl.late") != 0


def test_a_stream_that_is_stopped(ran: Ran) -> None:
    """It says so; its first batch took longer than the trigger's interval, and has a trace of its
    own with Spark's job and stages."""
    run = ran.only("rate")
    assert (run.outcome, run.error_type) == (Outcome.CANCELLATION, "stopped")
    assert ran.counter("pipeline.spark.stream.trigger.ratio", "etl.rate") > 0
    spans = ran.spans(run)
    batch = next(span for span in spans if span.name == "batch")
    assert batch.attributes[semconv.SPARK_BATCH_REASON] == "slow"
    assert batch.trace_id != run.trace_id
    inside = [span for span in spans if span.trace_id == batch.trace_id]
    names = [span.name for span in inside]
    assert names[:2] == ["batch", "spark.job"]
    assert {"spark.job", "spark.stage"} <= set(names)
    assert all(batch.start <= span.start <= span.end <= batch.end for span in inside)


def test_the_users_function(ran: Ran) -> None:
    """What it writes is what the batch has given out; all it does is in the query's run, and in the
    trace of its batch where that is kept."""
    run = ran.only("each")
    stage = ran.batches(run)
    assert (run.outcome, stage.calls) == (Outcome.SUCCESS, 3)
    assert (stage.records_in, stage.records_out) == (15, 15 + 3)
    with ran.jobs.history() as history:
        calls = {one.name: (one.stage, one.calls) for one in history.operations(run.run_id)}
    assert calls == {"pyspark.write.parquet": ("batch", 3), "pandas.to_csv": ("batch", 3)}
    spans = ran.spans(run)
    (mine,) = [span for span in spans if span.name == "mine"]
    (batch,) = [span for span in spans if span.span_id == mine.parent_span_id]
    assert batch.attributes[semconv.SPARK_BATCH_ID] == 1
    inside = {span.name for span in spans if span.trace_id == batch.trace_id}
    assert inside >= {"batch", "mine", "pyspark.write.parquet", "spark.job", "pandas.to_csv"}
    kept = {span.trace_id for span in spans if span.name == "batch"} | {run.trace_id}
    assert {span.trace_id for span in spans} == kept


@pytest.mark.parametrize(
    ("name", "error_type"), [("broken", "KeyError"), ("failing", "ValueError")]
)
def test_why_a_query_failed(ran: Ran, name: str, error_type: str) -> None:
    """By the user's own exception, wherever it was raised, with its place and without its values;
    the batch has failed with it, and its trace is kept."""
    run = ran.only(name)
    assert (run.outcome, run.error_type) == (Outcome.FAILURE, error_type)
    assert run.error_message == "?" or run.error_message == "secret"
    assert run.error_place is not None and "etl.py:" in run.error_place
    (batch,) = [span for span in ran.spans(run) if span.name == "batch"]
    assert batch.failed
    assert batch.attributes[semconv.ERROR_TYPE] == error_type
    assert ran.batches(run).failed == 1


def test_a_query_that_the_program_leaves(ran: Ran) -> None:
    """It ends with the program, as the program does."""
    assert ran.only("left").outcome == Outcome.SUCCESS


def test_the_process_has_no_part_in_it(ran: Ran) -> None:
    """Its own actions are its own, and nothing of the queries is counted twice."""
    (process,) = [run for run in ran.runs if run.pipeline == "etl"]
    assert process.outcome == Outcome.SUCCESS
    with ran.jobs.history() as history:
        calls = {one.name: one.calls for one in history.operations(process.run_id)}
    assert calls.get("pyspark.count") == 2
    assert not {"pyspark.write.parquet", "pandas.to_csv"} & set(calls)


@pytest.mark.once
def test_a_killed_driver(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """Its query's run is closed with it."""
    script = spark_jobs.script(
        """
        import time
        from pathlib import Path
        from pyspark.sql import SparkSession
        spark = SparkSession.builder.getOrCreate()
        rate = spark.readStream.format("rate").load()
        query = rate.writeStream.format("noop").queryName("rate").start()
        while query.lastProgress is None:
            time.sleep(0.1)
        Path("up").touch()
        query.awaitTermination()
        """
    )
    job = spark_jobs.start("python", script, **shared_jvm())
    try:
        wait_for(lambda: (spark_jobs.directory / "up").exists(), 240)
        wait_for(lambda: len(spark_jobs.runs(ended=0)) == 2)
    finally:
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
    runs = {run.pipeline: (run.outcome, run.error_type) for run in spark_jobs.runs(2)}
    killed = (Outcome.ERROR, "killed")
    assert runs == {"etl": killed, "etl.rate": killed}
