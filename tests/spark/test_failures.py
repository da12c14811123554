"""Everything that fails in Spark: what is said of it, and that the job sees what it saw before."""

from __future__ import annotations

import re
import runpy
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stagewatch import stages
from stagewatch.model import Run
from stagewatch.records import SpanLeft, StageEnded
from tests.jobs import Jobs, wait_for, without_us
from tests.recorded import Recorded
from tests.spark.told import SharedJvm, settle, unwatched

FAILING = Path(__file__).parent / "failing.py"
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")  # PySpark has its own about pandas
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]
PLAYED = runpy.run_path(str(FAILING), run_name="failing")
SCENES, raised, seen = PLAYED["SCENES"], PLAYED["raised"], PLAYED["seen"]


@pytest.fixture(scope="module")
def bare(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Python sees of all of them without us."""
    folder = tmp_path_factory.mktemp("bare")
    with unwatched():
        return {
            name: seen(raised(_in_stage, act, spark, folder)) for name, (act, *_) in SCENES.items()
        }


def _in_stage(act: Callable[..., object], *arguments: object) -> None:
    with stages.stage("load"):
        act(*arguments)


@pytest.mark.parametrize("name", SCENES)
def test_failure(
    name: str, spark: Any, bare: dict[str, Any], recorded: Recorded, tmp_path: Path, caplog: Any
) -> None:
    """Operation and stage have the same type, outcome and place; nothing of a message leaves.
    Python sees what it saw without us: type, text, attributes and traceback, and what PySpark logs
    has nothing of ours in Java's stack traces either."""
    function, error_type, place = SCENES[name]
    error = raised(_in_stage, function, spark, tmp_path)
    assert type(error).__module__.startswith(("pyspark.", "py4j."))
    assert seen(error) == bare[name]
    assert "stagewatch" not in str([vars(record) for record in caplog.records])

    wait_for(lambda: recorded.of(StageEnded))
    (ended,) = recorded.of(StageEnded)
    outcome = "cancellation" if error_type == "cancelled" else "failure"
    assert (ended.outcome, ended.error_type) == (outcome, error_type)
    spans = {span.name: span for span in recorded.spans()}
    stage = spans["load"].attributes or {}
    (failed,) = [
        span
        for span in recorded.spans()
        if span.name.startswith("pyspark.") and (span.attributes or {}).get("error.type")
    ]
    attributes = failed.attributes or {}
    assert attributes["error.type"] == stage["error.type"] == error_type
    where = rf"{re.escape(str(FAILING))}:\d+ in {re.escape(place or '')}"
    for found in (attributes["stagewatch.error.place"], stage["stagewatch.error.place"]):
        assert re.match(where, str(found)), found
    for span in recorded.spans():  # Spark's jobs and stages say the same as what ran them
        assert (span.attributes or {}).get("error.type") in (None, error_type), span.name
    left = [left for left in recorded.of(SpanLeft) if left.error_type]
    assert {(it.outcome, it.error_type) for it in left} <= {(outcome, error_type)}
    assert "Smith" not in str(recorded.records())


def test_no_value_in_a_users_span(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Whoever records it: what a query makes of its rows stands in Spark's text without quotes."""
    tracer = recorded.provider.get_tracer("mine")
    for name in ("query_raises", "map_has_a_key_twice", "record_is_malformed"):
        function, error_type, _ = SCENES[name]
        with pytest.raises(Exception, match="Smith"), tracer.start_as_current_span(name):
            function(spark, tmp_path)
        settle()
        (mine,) = [span for span in recorded.spans() if span.name == name]
        assert [event[0] for event in mine.events] == ["exception"]
        assert error_type in str(mine)
    assert "Smith" not in str(recorded.records())


# --- jobs of their own --------------------------------------------------------------------------

BEGIN = """
import os, signal, sys, threading, time
from pyspark.sql import SparkSession, functions as F
from pyspark.sql.functions import udf

spark = SparkSession.builder{settings}.getOrCreate()
context = spark.sparkContext
context.setLogLevel("OFF")

@udf("long")
def slowly(x):
    time.sleep(60)
    return x

@udf("long")
def bad(x):
    raise KeyError("of Smith")

def when_it_runs(act):
    def wait():
        tracker = context.statusTracker()
        while not any(info and info.numActiveTasks for info in map(
            tracker.getStageInfo, tracker.getActiveStageIds()
        )):
            time.sleep(0.05)
        act()
    threading.Thread(target=wait, daemon=True).start()

slow = spark.range(0, 2, 1, 2).select(slowly("id"))
"""
SMALL = '.config("spark.driver.memory", "512m")'
EXITS = (
    SMALL + '.config("spark.driver.extraJavaOptions", "-XX:+ExitOnOutOfMemoryError '
    '-Dderby.system.home=" + os.getcwd())'
)
TOO_MUCH = (
    'spark.range(0, 200, 1, 2).select(F.expr("repeat(cast(id as string), 8000000)")).collect()'
)
KILL_JVM = "when_it_runs(lambda: os.kill(context._gateway.proc.pid, signal.SIGKILL))\n"
JOBS: dict[str, tuple[str, str, str, str]] = {
    "uncaught": ("", 'spark.range(3).select(bad("id")).collect()', "failure", "KeyError"),
    "no_memory": (SMALL, TOO_MUCH, "failure", "java.lang.OutOfMemoryError"),
    "no_memory_exits": (EXITS, TOO_MUCH, "failure", "java.lang.OutOfMemoryError"),
    "jvm_killed": ("", KILL_JVM + "slow.collect()", "failure", "jvm_gone"),
    "stopped": ("", "when_it_runs(spark.stop)\nslow.collect()", "failure", "spark_stopped"),
    "ctrl_c": (
        "",
        "when_it_runs(lambda: os.kill(os.getpid(), signal.SIGINT))\nslow.collect()",
        "cancellation",
        "KeyboardInterrupt",
    ),
}
"""Settings, what is done, outcome and ``error.type`` of the run."""
OWN_JVM = {"no_memory", "no_memory_exits", "jvm_killed", "stopped", "ctrl_c"}
ON_4 = {"no_memory", "no_memory_exits", "ctrl_c"}
"""The first two are the same in 3.5; there PySpark's own handler of Ctrl-C fails, for it calls the
JVM in the middle of a call: what is raised is not the Ctrl-C."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", [pytest.param(it, marks=pytest.mark.once) if it in ON_4 else it for it in JOBS]
)
def test_job_that_dies(name: str, spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """Exit status, output and traceback are as without us; the run says why, and so does the
    operation."""
    settings, act, outcome, error_type = JOBS[name]
    script = spark_jobs.script(BEGIN.format(settings=settings) + act + "\n")
    with ThreadPoolExecutor() as beside:
        jvm = dict if name in OWN_JVM else shared_jvm
        playing = beside.submit(without_us, spark_jobs, script, **jvm())
        if name not in OWN_JVM:
            playing.result()
        process = spark_jobs.start("python", script, **jvm())
        out, err = process.communicate(timeout=600)
        plain = playing.result()
    assert (process.returncode, out) == (plain.returncode, plain.stdout), err
    if not error_type.startswith("jvm"):  # how a socket ends is not told twice the same way
        assert traceback_of(err) == traceback_of(plain.stderr)
    assert "stagewatch" not in err

    (run,) = spark_jobs.runs()
    assert (run.outcome, run.error_type) == (outcome, error_type)
    assert str(run.error_place).startswith(str(script))
    assert "Smith" not in str(run.error_message)
    with spark_jobs.history() as history:
        failed = [row for row in history.spans(run.run_id) if row.name.startswith("pyspark.")]
    assert [(row.name, row.attributes.get("error.type")) for row in failed] == [
        ("pyspark.collect", error_type)
    ]


_NUMBERS = re.compile(r"\bo\d+|(?i:job|stage|task|TID) \d+(?:\.\d+)?|:\d{4,5}\b|0x[0-9a-f]+")


def traceback_of(stderr: str) -> str:
    """What Python has printed of its end, without what differs from run to run."""
    begin = stderr.find("Traceback (most recent call last)")
    # PySpark resets the call site of what has failed, and may fail at it: a race of its own.
    first, _, _ = stderr[begin:].partition("\n\nDuring handling of the above exception")
    lines = [line for line in first.splitlines() if not line.startswith("\tat ")]
    return _NUMBERS.sub("…", "\n".join(lines))


def test_killed_driver(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """The death certificate names the action that was in flight; its span is closed with it."""
    kill = "when_it_runs(lambda: os.kill(os.getpid(), signal.SIGKILL))\nslow.collect()\n"
    done = spark_jobs.run(BEGIN.format(settings="") + kill, **shared_jvm())
    assert done.returncode == -signal.SIGKILL, done.stderr
    (run,) = spark_jobs.runs()
    assert (run.outcome, run.error_type, run.last_operation) == (
        "error",
        "killed",
        "pyspark.collect",
    )


CLUSTER = """
import os, signal, threading, time
from pathlib import Path
from pyspark.sql import SparkSession
from pyspark.sql.functions import udf

spark = (
    SparkSession.builder.master("local-cluster[2,1,1024]")
    .config("spark.executor.memory", "512m").config("spark.task.maxFailures", "{failures}")
    .config("spark.deploy.maxExecutorRetries", "-1").getOrCreate()
)
spark.sparkContext.setLogLevel("OFF")
folder = Path(os.environ["FOLDER"])
application = spark.sparkContext.applicationId

def executors():
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:
            continue
        if b"CoarseGrainedExecutorBackend" in command and application.encode() in command:
            if b"java" in command.split(bytes(1))[0]:
                found.append(int(entry.name))
    return found

def kill():
    for _ in range({kills}):
        while not any(folder.iterdir()):
            time.sleep(0.05)
        for path in folder.iterdir():
            path.unlink()
        for pid in executors()[: {each}]:
            os.kill(pid, signal.SIGKILL)

@udf("long")
def wait(x):
    if {always} or not (folder.parent / "once").exists():
        (folder.parent / "once").touch()
        (folder / str(os.getpid())).touch()
        time.sleep(60)
    return x

threading.Thread(target=kill, daemon=True).start()
print(spark.range(0, 1, 1, 1).select(wait("id")).collect())
spark.stop()
"""


def cluster_job(
    jobs: Jobs, jvm: dict[str, str], **values: object
) -> subprocess.CompletedProcess[str]:
    folder = jobs.directory / "running"
    folder.mkdir()
    return jobs.run(CLUSTER.format(**values), FOLDER=str(folder), **jvm)


def collect_span(jobs: Jobs, run: Run) -> Any:
    with jobs.history() as history:
        (found,) = [row for row in history.spans(run.run_id) if row.name == "pyspark.collect"]
    return found


@pytest.mark.once
def test_lost_executor(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """Spark tries the task again: a success, and the span says how many failed."""
    done = cluster_job(spark_jobs, shared_jvm(), failures=4, kills=1, each=2, always=False)
    assert (done.returncode, done.stdout) == (0, "[Row(wait(id)=0)]\n"), done.stderr
    (run,) = spark_jobs.runs()
    assert (run.outcome, run.error_type) == ("success", None)
    attributes = collect_span(spark_jobs, run).attributes
    assert "error.type" not in attributes
    assert attributes["spark.tasks.failed"] == 1


def test_lost_executors(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """Until Spark gives up."""
    done = cluster_job(spark_jobs, shared_jvm(), failures=2, kills=2, each=2, always=True)
    assert done.returncode == 1, done.stderr
    (run,) = spark_jobs.runs()
    assert (run.outcome, run.error_type) == ("failure", "ExecutorLostFailure")
    assert collect_span(spark_jobs, run).attributes["error.type"] == "ExecutorLostFailure"
