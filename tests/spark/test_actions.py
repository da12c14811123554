"""Every action is one operation of the current stage, with Spark's own jobs and stages below it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stagewatch
from stagewatch import semconv
from stagewatch.records import OperationEnded
from tests.jobs import wait_for
from tests.recorded import Recorded
from tests.spark.told import (
    children,
    datasets,
    done,
    jobs_below,
    named,
    newest,
    operations,
    settle,
    stages,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
    pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated"),
]

Act = Callable[[Any, Path], Any]
"""Takes the session and a directory."""


def _even(spark: Any) -> Any:
    return spark.range(0, 100, 1, 2)


def _pairs(spark: Any) -> Any:
    return spark.sparkContext.parallelize([(n % 3, n) for n in range(10)], 2)


def _write(spark: Any, path: Path, **options: Any) -> str:
    where = str(path / "written")
    _even(spark).write.options(**options).parquet(where)
    return where


def _checkpoint(spark: Any, path: Path) -> None:
    spark.sparkContext.setCheckpointDir(str(path))
    _even(spark).checkpoint()


def _read_xml(spark: Any, path: Path) -> Any:
    (path / "rows.xml").write_text("<all><row><id>1</id></row><row><id>2</id></row></all>")
    return spark.read.xml(str(path / "rows.xml"), rowTag="row")


def _fit(spark: Any, _: Path) -> None:
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import StandardScaler, VectorAssembler

    assembled = VectorAssembler(inputCols=["id"], outputCol="vector")
    scaled = StandardScaler(inputCol="vector", outputCol="scaled")
    Pipeline(stages=[assembled, scaled]).fit(_even(spark))


FRAMES: dict[str, Act] = {
    "collect": lambda spark, _: _even(spark).collect(),
    "count": lambda spark, _: _even(spark).count(),
    "show": lambda spark, _: _even(spark).show(2),
    "take": lambda spark, _: _even(spark).take(3),
    "head": lambda spark, _: _even(spark).head(),
    "first": lambda spark, _: _even(spark).first(),
    "tail": lambda spark, _: _even(spark).tail(2),
    "isEmpty": lambda spark, _: _even(spark).isEmpty(),
    "toPandas": lambda spark, _: _even(spark).toPandas(),
    "toArrow": lambda spark, _: _even(spark).toArrow(),
    "foreach": lambda spark, _: _even(spark).foreach(lambda row: None),
    "foreachPartition": lambda spark, _: _even(spark).foreachPartition(lambda rows: None),
    "checkpoint": lambda spark, path: _checkpoint(spark, path),
    "localCheckpoint": lambda spark, _: _even(spark).localCheckpoint(),
    "approxQuantile": lambda spark, _: _even(spark).approxQuantile("id", [0.5], 0.1),
    "corr": lambda spark, _: _even(spark).corr("id", "id"),
    "crosstab": lambda spark, _: _even(spark).limit(3).crosstab("id", "id"),
}
WRITERS: dict[str, Act] = {
    **{
        f"write.{name}": lambda spark, path, name=name: getattr(_even(spark).write, name)(  # type: ignore[misc]
            str(path / "out")
        )
        for name in ("csv", "json", "orc", "parquet")
    },
    "write.text": lambda spark, path: (
        _even(spark).selectExpr("cast(id as string)").write.text(str(path / "out"))
    ),
    "write.xml": lambda spark, path: _even(spark).write.xml(str(path / "out"), rowTag="row"),
    "write.save": lambda spark, path: _even(spark).write.format("json").save(str(path / "out")),
    "saveAsTable": lambda spark, _: _even(spark).write.saveAsTable("saved"),
    "insertInto": lambda spark, _: _even(spark).write.insertInto("kept"),
    "writeTo.create": lambda spark, _: _even(spark).writeTo("created").using("parquet").create(),
    "write.jdbc": lambda spark, _: _even(spark).write.jdbc(
        "jdbc:derby:memory:tests;create=true",
        "numbers",
        "overwrite",
        {"driver": "org.apache.derby.jdbc.EmbeddedDriver"},
    ),
}
RDDS: dict[str, Act] = {
    "collect": lambda spark, _: _pairs(spark).collect(),
    "count": lambda spark, _: _pairs(spark).count(),
    "first": lambda spark, _: _pairs(spark).first(),
    "take": lambda spark, _: _pairs(spark).take(2),
    "reduce": lambda spark, _: _pairs(spark).values().reduce(max),
    "fold": lambda spark, _: _pairs(spark).values().fold(0, max),
    "sum": lambda spark, _: _pairs(spark).values().sum(),
    "countByKey": lambda spark, _: _pairs(spark).countByKey(),
    "collectAsMap": lambda spark, _: _pairs(spark).collectAsMap(),
    "lookup": lambda spark, _: _pairs(spark).lookup(1),
    "foreach": lambda spark, _: _pairs(spark).foreach(lambda pair: None),
    "treeReduce": lambda spark, _: _pairs(spark).values().treeReduce(max),
    "takeOrdered": lambda spark, _: _pairs(spark).takeOrdered(2),
    "histogram": lambda spark, _: _pairs(spark).values().histogram(2),
    "isEmpty": lambda spark, _: _pairs(spark).isEmpty(),
    "saveAsTextFile": lambda spark, path: _pairs(spark).saveAsTextFile(str(path / "out")),
    "saveAsPickleFile": lambda spark, path: _pairs(spark).saveAsPickleFile(str(path / "out")),
    "saveAsSequenceFile": lambda spark, path: _pairs(spark).saveAsSequenceFile(str(path / "out")),
    "sortByKey": lambda spark, _: _pairs(spark).sortByKey(),
    "zipWithIndex": lambda spark, _: _pairs(spark).zipWithIndex(),
}
OTHERS: dict[str, Act] = {
    "runJob": lambda spark, _: spark.sparkContext.runJob(_pairs(spark), lambda rows: [1]),
    "pivot": lambda spark, _: _even(spark).limit(3).groupBy("id").pivot("id"),
    "read.xml": _read_xml,
    "ml.fit": _fit,
    "sql": lambda spark, _: spark.sql("INSERT INTO kept SELECT id FROM range(3)"),
}


FOUR_ONLY = {"toArrow", "write.xml", "read.xml"}


def _acts() -> list[Any]:
    acts = FRAMES | WRITERS | {f"rdd.{name}": act for name, act in RDDS.items()} | OTHERS
    return [
        pytest.param(
            f"pyspark.{name}", act, id=name, marks=[pytest.mark.spark4] * (name in FOUR_ONLY)
        )
        for name, act in acts.items()
    ]


@pytest.fixture(scope="module")
def tables(spark: Any) -> Any:
    """A table to insert into; those that the tests make are dropped again."""
    _even(spark).write.mode("overwrite").saveAsTable("kept")
    yield
    for name in ("kept", "saved", "created", "made"):
        spark.sql(f"DROP TABLE IF EXISTS {name}")


@pytest.mark.parametrize(("name", "act"), _acts())
def test_action_is_one_operation(
    spark: Any, tables: None, recorded: Recorded, tmp_path: Path, name: str, act: Act
) -> None:
    """Of the stage, with a span for each of its jobs and stages and the times that Spark gives
    them, inside the action's own."""
    before = newest(spark)
    with stagewatch.stage("load"):
        act(spark, tmp_path)
    settle()
    assert operations(recorded) == [name]
    action = named(recorded, name)
    assert action.parent_span_id == named(recorded, "load").span_id
    ran = done(spark, before)
    assert ran
    assert jobs_below(recorded, action) == ran
    assert action.attributes is not None
    assert action.attributes[semconv.SPARK_JOBS] == len(ran)
    assert action.attributes[semconv.STAGE_NAME] == "load"
    assert action.attributes[semconv.CODE_FILE_PATH] == __file__
    for job in children(recorded, action, semconv.SPARK_JOB):
        assert action.start <= job.start <= job.end <= action.end
        for stage in children(recorded, job, semconv.SPARK_STAGE):
            assert job.start <= stage.start <= stage.end <= job.end


def test_tree_of_an_aggregation(spark: Any, recorded: Recorded) -> None:
    """Adaptive execution runs one job per shuffle, and the last one for the result."""
    with stagewatch.stage("transform"):
        _even(spark).selectExpr("id % 3 AS k").groupBy("k").count().collect()
    settle()
    job = {"spark.job": [{"spark.stage": []}]}
    assert recorded.tree() == [{"transform": [{"pyspark.collect": [job, job]}]}]
    attributes = named(recorded, "pyspark.collect").attributes
    assert attributes is not None
    assert attributes[semconv.SPARK_TASKS] == 3
    assert attributes[semconv.SPARK_SHUFFLE_WRITE_RECORDS] == 6
    assert attributes[semconv.SPARK_SHUFFLE_READ_RECORDS] == 6
    assert attributes[semconv.SPARK_SHUFFLE_READ_BYTES] > 0
    assert attributes[semconv.SPARK_EXECUTOR_RUN_TIME] > 0
    assert attributes[semconv.SPARK_EXECUTOR_CPU_TIME] > 0
    assert attributes[semconv.SPARK_TASK_MEMORY_PEAK] > 0
    assert attributes[semconv.SPARK_TASK_SKEW] >= 1
    assert attributes[semconv.SPARK_PLAN_CHANGES] >= 1
    assert attributes[semconv.ROWS_OUT] == 3


def test_fit_is_one_operation(spark: Any, recorded: Recorded) -> None:
    """What an estimator, and those in its pipeline, have Spark do is the fit's."""
    _fit(spark, Path())
    settle()
    (fit,) = recorded.tree()
    assert fit.keys() == {"pyspark.ml.fit"}
    assert {name for job in fit["pyspark.ml.fit"] for name in job} == {"spark.job"}


@pytest.mark.parametrize(
    ("act", "rows"),
    [
        pytest.param(lambda frame: frame.collect(), 100, id="collect"),
        pytest.param(lambda frame: frame.selectExpr("id", "id AS b").first(), 1, id="first"),
        pytest.param(lambda frame: frame.selectExpr("id", "id AS b").head(), 1, id="head"),
        pytest.param(lambda frame: frame.head(3), 3, id="head(3)"),
        pytest.param(lambda frame: frame.toPandas(), 100, id="toPandas"),
        pytest.param(lambda frame: frame.toArrow(), 100, id="toArrow", marks=pytest.mark.spark4),
        pytest.param(lambda frame: frame.filter("id < 0").first(), 0, id="none"),
        pytest.param(lambda frame: frame.rdd.map(lambda row: [1, 2]).first(), 0, id="element"),
    ],
)
def test_rows_returned(spark: Any, recorded: Recorded, act: Any, rows: int) -> None:
    """Rows are counted of what returns rows; a row is one, whatever its columns."""
    act(_even(spark))
    settle()
    *_, ended = recorded.of(OperationEnded)
    assert ended.rows_out == rows


def test_fingerprint_is_of_the_query(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """The same for the same query on other data, another for another query."""
    for name in ("monday", "tuesday"):
        _even(spark).write.parquet(str(tmp_path / name))
    spark.read.schema("id long").parquet(str(tmp_path / "monday")).filter("id > 1").collect()
    spark.read.schema("id long").parquet(str(tmp_path / "tuesday")).filter("id > 1").collect()
    spark.read.schema("id long").parquet(str(tmp_path / "tuesday")).distinct().collect()
    settle()
    collects = [span for span in recorded.spans() if span.name == "pyspark.collect"]
    first, second, third = (it.attributes[semconv.SPARK_PLAN_FINGERPRINT] for it in collects)
    assert first == second != third


def test_iterator_is_one_operation(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """What it reads while it is consumed, after the call and perhaps after the stage, hangs below
    it and counts for the stage."""
    path = _write(spark, tmp_path)
    before = newest(spark)
    with stagewatch.stage("extract"):
        frame = spark.read.schema("id long").parquet(path)
        rows = frame.toLocalIterator()
        next(rows)
    settle()
    rest = list(rows)
    assert len(rest) == 99
    ran = done(spark, before)
    action = named(recorded, "pyspark.toLocalIterator")
    wait_for(lambda: jobs_below(recorded, action) == ran)
    assert operations(recorded).count("pyspark.toLocalIterator") == 1


def test_transformation_is_nothing(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """No span, no job; SQL that is a query and reads with a known schema are counted only."""
    path = _write(spark, tmp_path)
    settle()
    before, spans = newest(spark), len(recorded.spans())
    frame = spark.read.schema("id long").parquet(path)
    spark.sql("SELECT 1")
    frame.filter("id > 1").groupBy("id").count().join(frame, "id").explain()
    settle()
    assert newest(spark) == before
    assert len(recorded.spans()) == spans


def test_nested_calls_are_one(spark: Any, recorded: Recorded) -> None:
    """PySpark's own calls inside an action are no operations."""
    spark.createDataFrame([(1, "a")], "id int, name string").toPandas()
    settle()
    assert operations(recorded) == ["pyspark.toPandas"]


def test_lineage(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """A write says what was read for it, with rows and bytes on either side."""
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    _even(spark).write.parquet(source)
    settle()
    with stagewatch.stage("load"):
        frame = spark.read.schema("id long").parquet(source)
        frame.selectExpr("id", "id % 2 AS k").write.partitionBy("k").json(target)
    settle()
    assert stages(recorded) == [("load", 100, 100)]
    written = named(recorded, "pyspark.write.json")
    assert written.attributes is not None
    assert written.attributes[semconv.DATASET_URI] == f"file://{target}"
    assert written.attributes[semconv.DATASET_DIRECTION] == "out"
    assert written.attributes[semconv.DATASET_ROWS] == 100
    assert written.attributes[semconv.DATASET_BYTES] > 0
    assert list(written.attributes[semconv.DATASET_INPUTS]) == [f"file://{source}"]


@pytest.mark.spark4
def test_xml(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Rows of both sides; the schema that is looked for first is no reading."""
    where = str(tmp_path / "rows")
    with stagewatch.stage("load"):
        _even(spark).write.xml(where, rowTag="row")
    with stagewatch.stage("extract"):
        assert spark.read.xml(where, rowTag="row").count() == 100
    settle()
    assert operations(recorded) == ["pyspark.write.xml", "pyspark.read.xml", "pyspark.count"]
    uri = f"file://{where}"
    assert datasets(recorded) == [("out", uri, 100), ("in", uri, 100)]
    assert stages(recorded) == [("load", None, 100), ("extract", 100, None)]


def test_table_is_one_dataset(spark: Any, tables: None, recorded: Recorded) -> None:
    """`CREATE TABLE … AS` is one operation that wrote the table, not its files too."""
    with stagewatch.stage("load"):
        spark.sql("CREATE TABLE made USING parquet AS SELECT id FROM range(7)")
        spark.sql("DROP TABLE made")
    settle()
    assert operations(recorded) == ["pyspark.sql", "pyspark.sql"]
    assert datasets(recorded) == [("out", "spark_catalog.default.made", 7)]
    assert stages(recorded) == [("load", None, 7)]


def test_cache_is_read_once(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Filling a cache reads its source; taking out of it reads nothing from the outside."""
    path = _write(spark, tmp_path)
    frame = spark.read.schema("id long").parquet(path).cache()
    settle()
    with stagewatch.stage("fill"):
        frame.count()
    with stagewatch.stage("take"):
        frame.count()
    settle()
    frame.unpersist(blocking=True)
    assert stages(recorded) == [("fill", 100, None), ("take", None, None)]


def test_cached_rdd_is_read_once(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """The same of RDDs."""
    (tmp_path / "lines").write_text("a\nb\n")
    lines = spark.sparkContext.textFile(str(tmp_path / "lines")).cache()
    with stagewatch.stage("fill"):
        lines.count()
    with stagewatch.stage("take"):
        lines.count()
    settle()
    lines.unpersist(blocking=True)
    assert stages(recorded) == [("fill", 2, None), ("take", None, None)]


def test_schema_inference_is_no_reading(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """It is an operation with jobs, but what it looks at the action reads again."""
    (tmp_path / "a.csv").write_text("id,name\n1,a\n2,b\n")
    with stagewatch.stage("extract"):
        frame = spark.read.csv(str(tmp_path / "a.csv"), header=True, inferSchema=True)
        frame.collect()
    settle()
    assert operations(recorded) == ["pyspark.read.csv", "pyspark.collect"]
    assert stages(recorded) == [("extract", 2, None)]
    assert datasets(recorded) == [("in", f"file://{tmp_path}/a.csv", 2)]


def test_jdbc(spark: Any, recorded: Recorded) -> None:
    """Rows of both sides; of the URL what is no secret."""
    where = ("jdbc:derby:memory:pair;create=true;user=me;password=hidden", "T")
    driver = {"driver": "org.apache.derby.jdbc.EmbeddedDriver"}
    with stagewatch.stage("load"):
        _even(spark).write.jdbc(*where, "overwrite", driver)
    with stagewatch.stage("extract"):
        spark.read.jdbc(*where, properties=driver).collect()
    settle()
    assert datasets(recorded) == [
        ("out", "derby:memory:pair/T", 100),
        ("in", "derby:memory:pair/T", 100),
    ]
    assert stages(recorded) == [("load", None, 100), ("extract", 100, None)]


def test_stage_that_ends_before_its_figures(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Its end is told when they are there, with the time at which it was left."""
    with stagewatch.stage("load"):
        _write(spark, tmp_path)
    with stagewatch.stage("next"):
        pass
    settle()
    assert stages(recorded) in (
        [("next", None, None), ("load", None, 100)],
        [("load", None, 100), ("next", None, None)],
    )
    assert named(recorded, "load").end <= named(recorded, "next").start
