"""Python on executors: the same results, and a span for every task that ran it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import venv
from contextlib import closing
from pathlib import Path

import pytest

from stagewatch.history import SpanRow
from stagewatch.model import Run
from tests.jobs import Jobs, wait_for, without_us

ON = {"STAGEWATCH_SPARK_EXECUTORS": "1"}
TASK = "spark.python.task"

KINDS = """
import contextlib, inspect, io, re, sys, types, warnings
warnings.simplefilter("ignore")
import pandas as pd
from collections.abc import Iterator
from pyspark.sql import SparkSession
from pyspark.sql.functions import col, pandas_udf, udf, udtf

spark = SparkSession.builder.getOrCreate()
sc = spark.sparkContext
sc.setLogLevel("OFF")
frame = spark.range(0, 8, 1, 2)


def shown(error):
    found = re.search(r"Traceback .*?(?=\\n\\s*\\n|\\n\\tat |\\Z)", str(error), re.DOTALL)
    return f"{type(error).__name__} {found[0] if found else error}"


def tell(name, act):
    print(f"--- {name}")
    try:
        print(act())
    except Exception as error:
        print(shown(error))


@udf("long")
def plus(x: int) -> int:
    return x + 1


@pandas_udf("long")
def twice(values: pd.Series) -> pd.Series:
    return values * 2


@pandas_udf("long")
def pieces(parts: Iterator[pd.Series]) -> Iterator[pd.Series]:
    for part in parts:
        yield part + 1


@pandas_udf("double")
def average(values: pd.Series) -> float:
    return values.mean()


@udtf(returnType="word string")
class Words:
    def eval(self, text: str):
        for word in text.split():
            yield (word,)


def grouped():
    return frame.withColumn("k", col("id") % 2).groupBy("k")


def from_arrow(batches):
    yield from batches


gone = types.ModuleType("gone")
sys.modules["gone"] = gone
exec("def lost(x): return x", gone.__dict__)


class Odd:
    def __reduce__(self):
        return (divmod, (1, 0))


def fail(x):
    if x == 5:
        raise KeyError(f"secret {x}")
    return x


tell("udf", lambda: frame.select(plus("id")).collect())
tell("chained", lambda: frame.select(plus(plus("id")), twice("id"), pieces("id")).collect())
both = "id long, k long"
by = grouped()
tell("aggregate", lambda: by.agg(average("id")).sort("k").collect())
tell("group", lambda: by.applyInPandas(lambda part: part.head(1), both).sort("k").collect())
keyed = by.applyInPandas(lambda key, part: part.tail(1), both)
tell("group with key", lambda: keyed.sort("k").collect())
cogrouped = by.cogroup(grouped()).applyInPandas(lambda a, b: a.head(1), both)
tell("cogroup", lambda: cogrouped.sort("k").collect())
mapped = frame.mapInPandas(lambda parts: (part * 2 for part in parts), "id long")
tell("mapInPandas", lambda: mapped.collect())
tell("mapInArrow", lambda: frame.mapInArrow(from_arrow, "id long").collect())
spark.udf.register("add_one", plus)
spark.udtf.register("words", Words)
tell("sql", lambda: spark.sql("SELECT add_one(3)").collect())
tell("table function", lambda: spark.sql("SELECT * FROM words('a b')").collect())
six, one = sc.parallelize(range(6), 2), sc.parallelize([1], 1)
tell("rdd", lambda: six.map(lambda x: x * x).filter(lambda x: x % 2).collect())
tell("partitions", lambda: six.mapPartitionsWithIndex(lambda i, it: [(i, sum(it))]).collect())
pairs = six.map(lambda x: (x % 2, x)).reduceByKey(lambda a, b: a + b)
tell("shuffle", lambda: sorted(pairs.collect()))
seen = sc.accumulator(0)
tell("foreach", lambda: six.foreach(lambda x: seen.add(x)))
print(seen.value)
tell("limit", lambda: frame.mapInPandas(lambda it: it, "id long").limit(1).collect())

single = frame.coalesce(1)
tell("udf fails", lambda: single.select(udf(fail, "long")("id")).collect())
tell("rdd fails", lambda: six.coalesce(1).map(fail).collect())
series = pandas_udf(lambda values: values.apply(fail), "long")
tell("pandas udf fails", lambda: single.select(series("id")).collect())
tell("exits", lambda: one.map(lambda x: sys.exit(3)).collect())
tell("function not there", lambda: one.map(gone.lost).collect())
odd = Odd()
tell("cannot be unpickled", lambda: one.map(lambda x: odd).collect())
frame_of_python = sys._getframe()
tell("cannot be pickled", lambda: one.map(lambda x: frame_of_python).collect())

print(plus.func.__name__, inspect.signature(plus))
print(plus.evalType, twice.evalType, pieces.evalType, average.evalType)
text = io.StringIO()
with contextlib.redirect_stdout(text):
    frame.select(plus("id"), twice("id")).explain()
print(re.sub(r"#\\d+|plan_id=\\d+", "#", text.getvalue()))


def is_cached(made):
    return "InMemoryTableScan" in made._jdf.queryExecution().executedPlan().toString()


kept = frame.select(plus("id")).cache()
print(kept.count(), is_cached(frame.select(plus("id"))))
print(is_cached(frame.select(udf(plus.func, "long")("id"))))
spark.stop()
"""

LOOK = """
import os, sys
from pyspark.sql import SparkSession

spark = SparkSession.builder{config}.getOrCreate()


def look(_):
    ours = sorted(name for name in sys.modules if name.startswith("stagewatch."))
    yield ours


def fail(x):
    raise KeyError("secret")


print(spark.sparkContext.parallelize([1], 1).mapPartitions(look).collect()[0])
try:
    spark.sparkContext.parallelize([1, 2], 2).map(fail).collect()
except Exception as error:
    print("KeyError" in str(error))
spark.stop()
"""


@pytest.mark.timeout(600)  # two sessions
def test_results_are_the_same(spark_jobs: Jobs) -> None:
    """Of every kind of function: results, errors with their tracebacks, plans and cache hits are
    those of a Spark without us; and every task is a span under its Spark stage."""
    pytest.importorskip("pyarrow", exc_type=ImportError)
    script = spark_jobs.script(KINDS)
    without = without_us(spark_jobs, script)
    assert without.returncode == 0, without.stderr
    done = spark_jobs.run(KINDS, **ON)
    assert done.stdout == without.stdout, done.stderr
    (run,) = spark_jobs.runs()
    spans = _spans(spark_jobs, run)
    tasks = _under_their_stages(spans)
    assert len(tasks) > 30
    failed = {task.attributes["error.type"]: task for task in tasks if task.failed}
    assert failed.keys() == {"KeyError", "SystemExit", "ModuleNotFoundError", "ZeroDivisionError"}
    lines = script.read_text().splitlines()
    line = 1 + next(at for at, text in enumerate(lines) if "raise KeyError" in text)
    place = failed["KeyError"].attributes["stagewatch.error.place"]
    assert place == f"{script}:{line} in fail"
    assert "secret 5" not in str(tasks)


@pytest.mark.once
@pytest.mark.timeout(600)  # two sessions
def test_executors_without_us(spark_jobs: Jobs, tmp_path: Path) -> None:
    """Where executors have Spark but nothing of ours, the job does what it does without us."""
    bare = _bare_python(tmp_path / "bare")
    found = subprocess.run([bare, "-c", "import stagewatch"], capture_output=True)
    assert found.returncode == 1
    spark_jobs.environment["PYSPARK_PYTHON"] = str(bare)
    pytest.importorskip("pyarrow", exc_type=ImportError)
    script = spark_jobs.script(KINDS)
    without = without_us(spark_jobs, script)
    assert without.returncode == 0, without.stderr
    done = spark_jobs.run(KINDS, **ON)
    assert done.stdout == without.stdout, done.stderr
    (run,) = spark_jobs.runs()
    assert run.outcome == "success"
    assert not [span for span in _spans(spark_jobs, run) if span.name == TASK]


def test_nothing_without_the_opt_in(spark_jobs: Jobs) -> None:
    """Not opted in, a Python worker has no journal, and of ours only what tells that it is one."""
    done = spark_jobs.run(LOOK.format(config=""))
    first, second = done.stdout.splitlines()
    ours = eval(first)
    assert second == "True"
    assert "stagewatch.distro" in ours
    busy = {"instrumentation", "lifecycle", "tasks", "tracing", "wiring"}
    assert busy.isdisjoint(name.split(".")[1] for name in ours)
    (run,) = spark_jobs.runs()
    assert not [span for span in _spans(spark_jobs, run) if span.name == TASK]
    assert _journals(spark_jobs) == 1


def test_executors_of_a_cluster(spark_jobs: Jobs) -> None:
    """Executors that are processes of their own tell of their tasks, each attempt of one."""
    config = '.master("local-cluster[2,1,1024]").config("spark.task.maxFailures", "2")'
    done = spark_jobs.run(LOOK.format(config=config), **ON)
    assert done.stdout.splitlines()[1:] == ["True"], done.stderr
    (run,) = spark_jobs.runs()
    tasks = _under_their_stages(_spans(spark_jobs, run))
    kinds = [(task.attributes["spark.task.attempt"], task.failed) for task in tasks]
    assert (0, False) in kinds
    assert {(0, True), (1, True)} <= set(kinds)


def _spans(jobs: Jobs, run: Run) -> list[SpanRow]:
    """All of them: the workers' journals, too, have been taken in."""
    wait_for(lambda: _journals(jobs, "where not closed") == 0)
    with jobs.history() as history:
        return list(history.spans(run.run_id))


def _journals(jobs: Jobs, which: str = "") -> int:
    link = sqlite3.connect(f"file:{jobs.state / 'history.db'}?mode=ro", uri=True)
    with closing(link):
        (count,) = link.execute(f"select count(*) from journal {which}").fetchone()
    return int(count)


def _under_their_stages(spans: list[SpanRow]) -> list[SpanRow]:
    by_id = {span.span_id: span for span in spans}
    tasks = [span for span in spans if span.name == TASK]
    for task in tasks:
        parent = by_id[task.parent_span_id]
        assert parent.name == "spark.stage"
        assert task.attributes["spark.stage.id"] == parent.attributes["spark.stage.id"]
    return tasks


def _bare_python(folder: Path) -> Path:
    """An environment with what Spark needs, and without us."""
    venv.create(folder, symlinks=True)
    (inside,) = folder.glob("lib/python*/site-packages")
    ours = ("stagewatch", "opentelemetry", "msgspec", "__editable__", "wrapt")
    (here,) = {path for path in map(Path, sys.path) if path.name == "site-packages"}
    for entry in here.iterdir():
        if not entry.name.startswith(ours) and entry.suffix != ".pth":
            (inside / entry.name).symlink_to(entry)
    return folder / "bin" / "python"
