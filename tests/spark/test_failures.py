"""Everything that fails in Spark: what is said of it, and that the job sees what it saw before."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stagewatch import stages
from stagewatch.records import SpanLeft, StageEnded
from tests.jobs import Jobs, wait_for
from tests.recorded import Recorded

FAILING = Path(__file__).parent / "failing.py"
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")  # PySpark has its own about pandas
    for kind in ("FutureWarning", "UserWarning")
]
SCENES = runpy.run_path(str(FAILING), run_name="failing")["SCENES"]


@pytest.mark.parametrize("name", SCENES)
def test_failure(name: str, spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Operation and stage have the same type, outcome and place; nothing of a message leaves."""
    function, error_type, place = SCENES[name]
    with pytest.raises(Exception) as raised, stages.stage("load"):
        function(spark, tmp_path)
    assert raised.type.__module__.startswith(("pyspark.", "py4j."))

    wait_for(lambda: recorded.of(StageEnded))
    (ended,) = recorded.of(StageEnded)
    outcome = "cancellation" if error_type == "cancelled" else "failure"
    assert (ended.outcome, ended.error_type) == (outcome, error_type)
    spans = {span.name: span for span in recorded.spans()}
    stage = spans["load"].attributes or {}
    (failed,) = [
        span
        for span in recorded.spans()
        if (span.attributes or {}).get("error.type")
        and "stagewatch.error.place" in span.attributes
        and span.name != "load"
    ]
    attributes = failed.attributes or {}
    assert attributes["error.type"] == stage["error.type"] == error_type
    where = rf"{re.escape(str(FAILING))}:\d+ in {re.escape(place or '')}"
    for found in (attributes["stagewatch.error.place"], stage["stagewatch.error.place"]):
        assert re.match(where, str(found)), found
    left = [left for left in recorded.of(SpanLeft) if left.error_type]
    assert {(it.outcome, it.error_type) for it in left} <= {(outcome, error_type)}
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


@pytest.mark.parametrize("name", JOBS)
def test_job_that_dies(name: str, spark_jobs: Jobs) -> None:
    """Exit status, output and traceback are as without us; the run says why, and so does the
    operation."""
    settings, act, outcome, error_type = JOBS[name]
    script = spark_jobs.script(BEGIN.format(settings=settings) + act + "\n")
    plain = subprocess.run(
        [sys.executable, script],
        cwd=spark_jobs.directory,
        env=spark_jobs.environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    process = spark_jobs.start("python", script)
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out) == (plain.returncode, plain.stdout), err
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
    lines = [line for line in stderr[begin:].splitlines() if not line.startswith("\tat ")]
    return _NUMBERS.sub("…", "\n".join(lines))
