"""Every way to start a Spark job or a session: one run, the Python driver's, and what it did."""

from __future__ import annotations

import os
import pty
import subprocess

import pytest
from opentelemetry.instrumentation import auto_instrumentation

from stagewatch.model import Outcome
from tests.jobs import BIN, Jobs, wait_for
from tests.spark.told import SharedJvm

SITE = auto_instrumentation.__path__[0]
JOB = """
    import stagewatch
    from pyspark.sql import SparkSession

    with stagewatch.stage("load"):
        print(SparkSession.builder.getOrCreate().range(10).count())
    """
COUNTED = {"pyspark.count": [{"spark.job": [{"spark.stage": []}]}] * 2}


def done(jobs: Jobs, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command to its end."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=jobs.directory,
        env={**jobs.environment, **environment},
        capture_output=True,
        text=True,
        timeout=jobs.patience,
    )


@pytest.mark.parametrize(
    ("before", "environment"),
    [
        (["opentelemetry-instrument", "--"], {}),
        pytest.param([], {"PYTHONPATH": SITE}, marks=pytest.mark.once),
        pytest.param(["stagewatch", "run", "--"], {}, marks=pytest.mark.once),
    ],
)
def test_spark_submit(spark_jobs: Jobs, before: list[str], environment: dict[str, str]) -> None:
    """One run, called as the script, with the driver's stages; Spark's own helpers are none."""
    spark_jobs.script(JOB, "nightly.py")
    command = [*before, "spark-submit", "--conf", "spark.app.name=x", "nightly.py", "--day", "1"]
    ended = done(spark_jobs, *command, **environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.endswith("10\n")
    (run,) = spark_jobs.runs()
    assert (run.pipeline, run.outcome) == ("nightly", Outcome.SUCCESS)
    assert spark_jobs.tree(run) == [{"load": [COUNTED]}]


@pytest.mark.once
def test_submitted_job_fails(spark_jobs: Jobs) -> None:
    """What the driver raised is in its stage; the run ends as `spark-submit` does."""
    spark_jobs.script("import stagewatch\nwith stagewatch.stage('load'): {}['x']\n", "nightly.py")
    ended = done(spark_jobs, "stagewatch", "run", "--", "spark-submit", "nightly.py")
    assert ended.returncode == 1
    (run,) = spark_jobs.runs()
    assert (run.pipeline, run.outcome, run.error_type) == ("nightly", Outcome.FAILURE, "exit_1")
    with spark_jobs.history() as history:
        (stage,) = history.stages(run.run_id)
    assert (stage.name, stage.error_type) == ("load", "KeyError")


@pytest.mark.once
def test_submission_fails(spark_jobs: Jobs) -> None:
    """Where Spark gives up before there is a driver there is a run all the same."""
    ended = done(spark_jobs, "stagewatch", "run", "--", "spark-submit", "--nonsense", "nightly.py")
    assert ended.returncode == 1
    (run,) = spark_jobs.runs()
    assert (run.outcome, run.error_type) == (Outcome.FAILURE, "exit_1")


@pytest.mark.once
def test_shell(spark_jobs: Jobs) -> None:
    """A `pyspark` shell is one run, from its first line to `exit`."""
    terminal, inside = pty.openpty()
    environment = {**spark_jobs.environment, "STAGEWATCH_PIPELINE": "shell", "TERM": "dumb"}
    shell = subprocess.Popen(
        [str(BIN / "opentelemetry-instrument"), "--", str(BIN / "pyspark")],
        cwd=spark_jobs.directory,
        env=environment,
        stdin=inside,
        stdout=inside,
        stderr=inside,
        start_new_session=True,
    )
    os.close(inside)
    os.write(terminal, b"spark.range(10).count() + 32\nexit()\n")
    said = bytearray()

    def is_over() -> bool:
        try:
            said.extend(os.read(terminal, 4096))
        except OSError:  # nobody has it open any more
            return True
        return False

    wait_for(is_over, spark_jobs.patience)
    os.close(terminal)
    assert (shell.wait(spark_jobs.patience), b"\n42\r\n" in said) == (0, True), said.decode()
    (run,) = spark_jobs.runs()
    assert (run.pipeline, run.outcome) == ("shell", Outcome.SUCCESS)
    assert spark_jobs.tree(run)[-1:] == [COUNTED]


def test_notebook_with_a_session(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """Where nothing can be put in front of Python, a call turns us on: also after the session was
    made, whose actions are recorded with their jobs as soon as its listener is there."""
    path = spark_jobs.script(
        """
        import time

        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
        spark.range(1).count()

        from opentelemetry.instrumentation.auto_instrumentation import initialize

        initialize()
        from stagewatch.instrumentation.pyspark import attaching

        for _ in range(1000):
            if attaching.current is None:
                time.sleep(0.01)
        assert SparkSession.getActiveSession() is spark
        print(spark.range(10).count())
        """,
        "notebook.py",
    )
    ended = done(spark_jobs, "python", str(path), **shared_jvm())
    assert (ended.returncode, ended.stdout) == (0, "10\n"), ended.stderr
    (run,) = spark_jobs.runs()
    assert (run.pipeline, run.outcome) == ("notebook", Outcome.SUCCESS)
    assert spark_jobs.tree(run) == [COUNTED]
