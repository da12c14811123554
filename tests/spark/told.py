"""What Spark itself says it has done, to compare with what was recorded of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from stagewatch import semconv
from stagewatch.instrumentation.pyspark import PysparkInstrumentor, attaching
from stagewatch.records import DatasetTouched, OperationEnded, SpanEnded, StageEnded
from tests.jobs import wait_for
from tests.recorded import Recorded

_MOST = 100
SharedJvm = Callable[[], dict[str, str]]
"""The fixture ``shared_jvm``."""


class Stage(NamedTuple):
    """One attempt that ran: number, then milliseconds, then records."""

    number: int
    start: int
    end: int
    records_in: int
    shuffled: int


class Job(NamedTuple):
    """A job, milliseconds since the epoch, and the stages that it ran."""

    number: int
    start: int
    end: int
    stages: tuple[Stage, ...]


def settle() -> None:
    """Until all that has returned has its figures."""
    wait_for(lambda: attaching.current is not None and attaching.current.work.is_settled, 60)


@contextmanager
def unwatched() -> Iterator[None]:
    """The library as it is; instrumented again afterwards."""
    instrumentor = PysparkInstrumentor()
    instrumentor.uninstrument()
    try:
        yield
    finally:
        instrumentor.instrument()
        wait_for(lambda: attaching.current is not None, 60)


def done(spark: Any, after: int) -> list[Job]:
    """The jobs numbered higher than *after*, by Spark's own store."""
    context = spark.sparkContext
    spark_context = context._jsc.sc()
    spark_context.listenerBus().waitUntilEmpty(60_000)
    jvm, store = context._jvm, spark_context.statusStore()
    mapper = jvm.com.fasterxml.jackson.databind.ObjectMapper()
    scala = getattr(jvm.com.fasterxml.jackson.module.scala, "DefaultScalaModule$")
    mapper.registerModule(getattr(scala, "MODULE$"))
    jobs = json.loads(mapper.writeValueAsString(store.jobsList(None).take(_MOST)))
    none = context._gateway.new_array(jvm.double, 0)
    stages = store.stageList(None, False, False, none, None).take(_MOST)
    ran = {
        it["stageId"]: Stage(
            it["stageId"],
            it["submissionTime"],
            it["completionTime"],
            it["inputRecords"],
            it["shuffleWriteBytes"],
        )
        for it in json.loads(mapper.writeValueAsString(stages))
        if it.get("submissionTime") is not None
    }
    return [
        Job(
            job["jobId"],
            job["submissionTime"],
            job["completionTime"],
            # A stage that several jobs have was run by the first.
            tuple(ran.pop(number) for number in sorted(job["stageIds"]) if number in ran),
        )
        for job in sorted(jobs, key=lambda job: job["jobId"])
        if job["jobId"] > after
    ]


def newest(spark: Any) -> int:
    """The highest number of a job so far; -1 before the first."""
    jobs = spark.sparkContext._jsc.sc().statusStore().jobsList(None)
    return -1 if jobs.isEmpty() else jobs.head().jobId()


def children(recorded: Recorded, span: SpanEnded, name: str) -> list[SpanEnded]:
    """Those of one name, in their order."""
    found = [it for it in recorded.spans() if it.parent_span_id == span.span_id and it.name == name]
    return sorted(found, key=lambda it: (it.start, it.span_id))


def jobs_below(recorded: Recorded, action: SpanEnded) -> list[Job]:
    """What the spans below an action's say, in the words of `done`."""
    found = []
    for job in children(recorded, action, semconv.SPARK_JOB):
        stages = tuple(
            Stage(
                stage.attributes[semconv.SPARK_STAGE_ID],
                _ms(stage.start),
                _ms(stage.end),
                stage.attributes.get(semconv.SPARK_INPUT_RECORDS, 0),
                stage.attributes.get(semconv.SPARK_SHUFFLE_WRITE_BYTES, 0),
            )
            for stage in children(recorded, job, semconv.SPARK_STAGE)
        )
        by_number = tuple(sorted(stages))
        found.append(
            Job(job.attributes[semconv.SPARK_JOB_ID], _ms(job.start), _ms(job.end), by_number)
        )
    return sorted(found)


def operations(recorded: Recorded) -> list[str]:
    """Names of the operations that ended, in their order."""
    return [record.name for record in recorded.of(OperationEnded)]


def stages(recorded: Recorded) -> list[tuple[str, int | None, int | None]]:
    """Of the pipeline: name, records in, records out."""
    return [(it.name, it.records_in, it.records_out) for it in recorded.of(StageEnded)]


def datasets(recorded: Recorded) -> list[tuple[str, str, int | None]]:
    """What was touched: direction, URI, rows."""
    return [(it.direction, it.uri, it.rows) for it in recorded.of(DatasetTouched)]


def named(recorded: Recorded, name: str) -> SpanEnded:
    """The one span of that name."""
    (found,) = [span for span in recorded.spans() if span.name == name]
    return found


def _ms(nanoseconds: int) -> int:
    return nanoseconds // 1_000_000
