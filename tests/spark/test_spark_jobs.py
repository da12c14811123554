"""Whole Spark jobs under `opentelemetry-instrument`: how they end, and what is there of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.jobs import Jobs
from tests.spark.told import SharedJvm

JOB = {"spark.job": [{"spark.stage": []}]}


def _named(tree: Any, name: str) -> list[Any]:
    return [below for span in tree for found, below in span.items() if found == name]


def test_sessions_of_one_job(spark_jobs: Jobs) -> None:
    """One after the other, a second one on the same context, a forked child, and an end right after
    `stop`: all has its figures, and nothing is said."""
    done = spark_jobs.run(
        """
        import os
        import stagewatch
        from pyspark.sql import SparkSession

        with stagewatch.stage("first"):
            spark = SparkSession.builder.appName("one").getOrCreate()
            spark.sparkContext.setLogLevel("OFF")
            spark.range(10).collect()
            spark.newSession().range(10).collect()
            child = os.fork()
            if not child:
                with stagewatch.stage("forked"):
                    pass
                os._exit(0)
            os.waitpid(child, 0)
            spark.stop()
        with stagewatch.stage("second"):
            spark = SparkSession.builder.appName("two").getOrCreate()
            spark.sparkContext.setLogLevel("OFF")
            spark.range(10).write.parquet(os.path.abspath("out"))
            spark.stop()
        """,
    )
    assert done.returncode == 0, done.stderr
    assert "stagewatch" not in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = spark_jobs.runs()
    tree = spark_jobs.tree(run)
    (first,), (second,) = _named(tree, "first"), _named(tree, "second")
    assert first == [{"pyspark.collect": [JOB]}, {"pyspark.collect": [JOB]}, {"forked": []}]
    assert second == [{"pyspark.write.parquet": [JOB]}]
    with spark_jobs.history() as history:
        stages = {stage.name: stage for stage in history.stages(run.run_id)}
    assert stages["second"].records_out == 10


@pytest.mark.once
def test_jvm_is_killed(spark_jobs: Jobs) -> None:
    """The job goes on as it would without us: its logging is its own, its stages end, and it
    exits at once."""
    done = spark_jobs.run(
        """
        import logging, os, signal, threading, time
        import stagewatch
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
        spark.sparkContext.setLogLevel("OFF")
        with stagewatch.stage("before"):
            spark.range(10).collect()
        set_up_by = []  # py4j's own finalizer may do so at any time

        def basic_config(**known):
            set_up_by.append(threading.current_thread().name)

        logging.basicConfig = basic_config
        os.kill(spark.sparkContext._gateway.proc.pid, signal.SIGKILL)
        while any(it.name == "stagewatch-spark" for it in threading.enumerate()):
            time.sleep(0.05)
        print([name for name in set_up_by if name.startswith("stagewatch")])
        with stagewatch.stage("after"):
            try:
                spark.range(10).collect()
            except Exception:
                print("caught")
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\ncaught\n"
    assert "stagewatch" not in done.stderr
    (run,) = spark_jobs.runs()
    tree = spark_jobs.tree(run)
    assert _named(tree, "before") == [[{"pyspark.collect": [JOB]}]]
    (after,) = _named(tree, "after")
    assert [name for span in after for name in span] == ["pyspark.collect"] * len(after)


def test_write_that_a_signal_leaves(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """What its handler raises is there while the job still runs, and the answers that Spark gives
    afterwards are those to what was asked."""
    done = spark_jobs.run(
        """
        import os, signal, threading, time
        from pathlib import Path
        from pyspark.sql import SparkSession
        from pyspark.sql.functions import udf

        def leave(*_):
            raise SystemExit(3)

        runs, release = Path("runs").absolute(), Path("release").absolute()

        def until_released(value):
            runs.touch()
            while not release.exists():
                time.sleep(0.05)
            return value

        def interrupt():
            while not runs.exists():
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, leave)
        spark = SparkSession.builder.getOrCreate()
        waiting = spark.range(0, 1, 1, 1).select(udf(until_released, "long")("id"))
        threading.Thread(target=interrupt, daemon=True).start()
        try:
            waiting.write.parquet(os.path.abspath("out"))
        except SystemExit:
            print("left", release.exists())
        release.touch()
        print(spark.range(5).count(), spark.range(6).count())
        """,
        **shared_jvm(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["left False", "5 6"]
