"""Spark Connect with the server in the job's own process."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.jobs import Jobs

if find_spec("grpc_status") is None:
    pytest.skip("this PySpark has no Connect client", allow_module_level=True)


def test_remote_local(spark_jobs: Jobs) -> None:
    """``remote("local[2]")``: the listener in that JVM tells jobs, stages and what was written."""
    done = spark_jobs.run(
        """
        from pyspark.sql import SparkSession, functions as F
        import stagewatch

        spark = SparkSession.builder.remote("local[2]").getOrCreate()
        with stagewatch.stage("load"):
            spark.range(0, 1000, 1, 2).withColumn("k", F.col("id") % 3).write.parquet("out")
        with stagewatch.stage("use"):
            spark.read.parquet("out").createOrReplaceTempView("t")
            print(sorted(spark.sql("select k, count(*) from t group by k").collect()))
            rows = spark.range(0, 40000, 1, 4).toLocalIterator()
            next(rows)
        try:
            spark.table("nowhere").count()
        except Exception as error:
            print(type(error).__name__, error.getCondition())
        spark.stop()
        """,
        PYTHONWARNINGS="ignore",
        SPARK_TESTING="1",  # its server takes any free port
    )
    assert (done.returncode, done.stdout) == (
        0,
        "[Row(k=0, count(1)=334), Row(k=1, count(1)=333), Row(k=2, count(1)=333)]\n"
        "AnalysisException TABLE_OR_VIEW_NOT_FOUND\n",
    ), done.stderr
    (run,) = spark_jobs.runs()
    job = {"spark.job": [{"spark.stage": []}]}
    assert spark_jobs.tree(run) == [
        {"load": [{"pyspark.write.parquet": [job]}]},
        {
            "use": [
                {"pyspark.sql": []},
                {"pyspark.collect": [job, job]},
                {"pyspark.toLocalIterator": [job]},
            ]
        },
        job,  # the schema of the parquet files, which analysis asks for
        {"pyspark.count": []},
    ]
    with spark_jobs.history() as history:
        touched = [(d.direction, d.uri, d.rows) for d in history.datasets(run_id=run.run_id)]
    out = f"file://{spark_jobs.directory}/out"
    assert sorted(touched) == [("in", out, 1000), ("out", out, 1000)]
