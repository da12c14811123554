"""What a Python worker says of its tasks; each test is a process of its own, without a JVM."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stagewatch import clock, recording
from stagewatch.config import Settings
from stagewatch.exporters.journal import read_frames, start_ticks
from stagewatch.instrumentation.pyspark import PysparkInstrumentor
from stagewatch.program import ParentRun
from stagewatch.records import ProcessStarted, Record, SpanEnded, SpanStarted, decode
from stagewatch.task_parents import stage_span_id
from tests.jobs import Jobs, wait_for
from tests.otlp_receiver import OtlpReceiver
from tests.recorded import Recorded

pytestmark = pytest.mark.once
TRACE, RUN_SPAN, ACTION = "ab" * 16, "cd" * 8, "ef" * 8
PARENT = f"00-{TRACE}-{ACTION}-01"
PROPERTY = {"stagewatch.traceparent": PARENT}

WORKER = """
import os, signal, socket, sys
from pyspark.serializers import write_int
from pyspark.taskcontext import TaskContext
from stagewatch import tasks

sender = {sender}


def report_times(*_): ...
def handle_worker_exception(error, file): ...


def task(number, functions, properties={properties}):
    context = TaskContext._getOrCreate()
    context._stageId, context._partitionId, context._attemptNumber = 7, number, 1
    context._taskAttemptId, context._localProperties = 100 + number, properties
    try:
        for function in functions:
            tasks.begin(sender)
            function()
    except BaseException as error:
        handle_worker_exception(error, None)
    else:
        report_times(None, 0, 0, 0)


def nothing(): ...


"""


def work(
    room: Path, source: str, properties: dict[str, str] = PROPERTY, sampled: bool = True
) -> list[Record]:
    """What the journals of a worker hold whose driver is this process."""
    room.mkdir(parents=True, exist_ok=True)
    run = ParentRun(
        "f" * 32, os.getpid(), start_ticks(), TRACE, RUN_SPAN, sampled, "nightly", clock.offset
    )
    sender = (run.to_environment(), str(room), {"service.name": "etl", "host.name": "h"}, False)
    script = room / "worker.py"
    script.write_text(WORKER.format(sender=sender, properties=properties) + source)
    subprocess.run([sys.executable, script], check=True)
    return [
        decode(body)
        for path in sorted(room.glob("*.journal"))
        for body, _ in read_frames(path.read_bytes(), 0)
    ]


def ended(records: list[Record]) -> list[SpanEnded]:
    return [record for record in records if isinstance(record, SpanEnded)]


def told(span: SpanEnded) -> dict[str, Any]:
    """Its attributes, but for what differs from run to run."""
    differing = ("host.name", "spark.python.cpu.time")
    return {name: it for name, it in (span.attributes or {}).items() if name not in differing}


def test_one_span_for_a_task(tmp_path: Path) -> None:
    """However many functions a task has, it is one span, under the span of its Spark stage; the
    journal says whose worker this is."""
    records = work(tmp_path, "task(0, [nothing, nothing])\ntask(1, [nothing])")
    (process,) = (record for record in records if isinstance(record, ProcessStarted))
    assert (process.run_id, process.opens_run, process.pipeline) == ("f" * 32, False, "nightly")
    assert process.resource == {"service.name": "etl"}
    spans = ended(records)
    begun = [record for record in records if isinstance(record, SpanStarted)]
    assert [span.span_id for span in begun] == [span.span_id for span in spans]
    stage = stage_span_id(PARENT, 7, 0).to_bytes(8, "big")
    assert {
        (span.name, span.trace_id.hex(), span.parent_span_id, span.status) for span in spans
    } == {("spark.python.task", TRACE, stage, 0)}
    common = {"stagewatch.span.role": "detail", "spark.stage.id": 7, "spark.task.attempt": 1}
    assert [told(span) for span in spans] == [
        {**common, "spark.partition.id": 0, "spark.task.id": 100},
        {**common, "spark.partition.id": 1, "spark.task.id": 101},
    ]
    assert all(span.start <= span.end for span in spans)


@pytest.mark.parametrize(
    ("properties", "expected"),
    [({}, RUN_SPAN), ({"spark.job.tags": f"x,Session_1_Tag_stagewatch-{PARENT},y"}, ACTION)],
    ids=["none", "connect"],
)
def test_parent_without_a_stage(tmp_path: Path, properties: dict[str, str], expected: str) -> None:
    """A task that knows no action belongs to the run; under Connect it is told by a tag, and
    belongs to the operation."""
    (span,) = ended(work(tmp_path, "task(0, [nothing])", properties))
    assert span.parent_span_id.hex() == expected


def test_not_sampled(tmp_path: Path) -> None:
    """Tasks of a trace that is not sampled leave nothing behind."""
    assert work(tmp_path, "task(0, [nothing])", {}, sampled=False) == []


def test_the_users_exception(tmp_path: Path) -> None:
    """It is told with its place, without the value in it; the next task is a success."""
    source = 'def fail():\n    raise KeyError("secret")\ntask(0, [fail])\ntask(1, [nothing])'
    failed, well = ended(work(tmp_path, source))
    assert (failed.status, well.status) == (2, 0)
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "KeyError"
    line = len(WORKER.splitlines()) + 2
    assert failed.attributes["stagewatch.error.place"] == f"{tmp_path}/worker.py:{line} in fail"
    assert "secret" not in str(failed)


def test_spark_hangs_up(tmp_path: Path) -> None:
    """A worker whose Spark has seen enough has not failed; a broken pipe of the user's has."""
    source = """
def hung_up():
    ours, theirs = socket.socketpair()
    theirs.close()
    write_int(1, ours.makefile("wb", 0))


def own():
    raise BrokenPipeError


task(0, [hung_up])
task(1, [own])
"""
    spans = ended(work(tmp_path, source))
    assert [told(span).get("error.type") for span in spans] == [None, "BrokenPipeError"]


def test_forked_child(tmp_path: Path) -> None:
    """A child that a function forks does not end the task."""
    source = """
def fork():
    pid = os.fork()
    if pid == 0:
        report_times(None, 0, 0, 0)
        os._exit(0)
    os.waitpid(pid, 0)


task(0, [fork])
"""
    assert len(ended(work(tmp_path, source))) == 1


def test_another_host(jobs: Jobs) -> None:
    """Where the driver is not, the first task starts a recorder, which sends what fails; a task
    whose worker is killed has failed, too."""
    gone = ParentRun("f" * 32, 1 << 22, 1, TRACE, RUN_SPAN, True, "nightly").to_environment()
    sender = (gone, "/nowhere", {"service.name": "etl"}, False)
    source = """
def die():
    os.kill(os.getpid(), signal.SIGKILL)


task(0, [nothing])
task(1, [lambda: 1 / 0])
task(2, [die])
"""
    script = jobs.script(WORKER.format(sender=sender, properties=PROPERTY) + source, "worker.py")
    with OtlpReceiver() as receiver:
        environment = {
            **jobs.environment,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "STAGEWATCH_DETAIL_RATIO": "0",
        }
        done = subprocess.run([sys.executable, script], env=environment)
        assert done.returncode == -signal.SIGKILL
        wait_for(lambda: len(receiver.spans) >= 2)
        found = {
            span.attributes["spark.partition.id"]: span.attributes.get("error.type")
            for span in receiver.spans
        }
    assert found == {1: "ZeroDivisionError", 2: "killed"}


@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas:FutureWarning")
def test_shipped_by_connect(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """An expression of Connect ships its function with a beginning of a task, the same each time,
    and keeps it as it is; what arrives is the function."""
    from pyspark.sql.connect.expressions import PythonUDF
    from pyspark.sql.types import LongType

    function = partial(divmod, 7)
    expression = PythonUDF(LongType(), 100, function, "3.11")
    plain = expression.to_plan(None).command
    instrumentor = PysparkInstrumentor()
    instrumentor.instrument()
    try:
        assert expression.to_plan(None).command == plain  # nobody has opted in
        assert recording.active is not None
        recording.active.settings = Settings(spark_executors=True)
        monkeypatch.setenv("STAGEWATCH_RUN", "of the driver")
        command = expression.to_plan(None).command
        assert expression.to_plan(None).command == command
    finally:
        instrumentor.uninstrument()
    assert b"of the driver" in command
    assert expression._func is function
    arrived, kind = pickle.loads(command)
    assert (arrived(2), kind) == ((3, 1), LongType())
