"""The shared session, and jobs that have one of their own."""

from __future__ import annotations

from typing import Any

from tests.jobs import Jobs
from tests.recorded import Recorded
from tests.spark.told import SharedJvm


def test_shared_session_computes(spark: Any, recorded: Recorded) -> None:
    """The session works beside a recording, Python workers included."""
    doubled = spark.range(4).rdd.map(lambda row: row.id * 2)
    assert sorted(doubled.collect()) == [0, 2, 4, 6]


def test_job_is_one_run(spark_jobs: Jobs, shared_jvm: SharedJvm) -> None:
    """A Spark job under `opentelemetry-instrument` gives one run that is a success."""
    done = spark_jobs.run(
        """
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
        print(spark.range(10).count())
        spark.stop()
        """,
        **shared_jvm(),
    )
    assert (done.returncode, done.stdout) == (0, "10\n"), done.stderr
    (run,) = spark_jobs.runs()
    assert (run.pipeline, run.outcome) == ("etl", "success")
