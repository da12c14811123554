"""Spark Connect: a real server of its own, and one in the job's own process."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import socket
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from stagewatch import safety
from stagewatch.instrumentation.pyspark import PysparkInstrumentor, connect, contexts, plans
from stagewatch.records import DatasetTouched, OperationEnded, SpanEnded
from stagewatch.stages import stage
from tests.jobs import Jobs, wait_for, without_us
from tests.recorded import TRACE, Recorded

if find_spec("grpc_status") is None:
    pytest.skip("this PySpark has no Connect client", allow_module_level=True)

from pyspark.sql import Observation
from pyspark.sql import functions as F

pytestmark = pytest.mark.filterwarnings(
    "ignore:PySpark does not yet fully support pandas:FutureWarning",
    "ignore:Cannot infer the eval type:UserWarning",
    "ignore:The copy keyword is deprecated:DeprecationWarning",
)
PATCHED = "_execute_and_fetch_as_iterator"


@pytest.fixture(scope="module")
def server(
    spark_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of a Connect server in a process of its own."""
    import pyspark

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    command = (
        f"{Path(pyspark.__file__).parent}/bin/spark-submit",
        *("--class", "org.apache.spark.sql.connect.service.SparkConnectServer"),
        *("--conf", f"spark.connect.grpc.binding.port={port}"),
        *("--conf", "spark.connect.grpc.binding.address=127.0.0.1"),
        "spark-internal",
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | spark_environment, stdout=log, stderr=log
        )
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        wait_for(answers, 120)
        yield f"sc://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def session(server: str, spark_environment: dict[str, str]) -> Iterator[Any]:
    """A session there, of a client that is instrumented."""
    from pyspark.sql.connect.session import SparkSession

    ours = PysparkInstrumentor()
    mine = not ours.is_instrumented_by_opentelemetry
    if mine:
        ours.instrument()
    with pytest.MonkeyPatch.context() as environment:
        # As `SparkSession.builder.remote` does: functions are Connect's now.
        environment.setenv("SPARK_CONNECT_MODE_ENABLED", "1")
        found = SparkSession.builder.remote(server).create()
        yield found
        found.stop()
    if mine:
        ours.uninstrument()


@pytest.fixture(autouse=True)
def no_error_of_ours() -> Iterator[None]:
    """An error of ours that was swallowed fails the test."""
    before = safety.swallowed
    yield
    assert safety.swallowed == before


@pytest.fixture
def table(session: Any) -> Iterator[str]:
    """A table of 100 rows, columns ``id`` and ``k``."""
    session.range(0, 100, 1, 2).withColumn("k", F.col("id") % 7).write.saveAsTable("numbers")
    yield "numbers"
    session.sql("drop table numbers")


def _attributes(span: SpanEnded) -> dict[str, Any]:
    """Those that tell of the operation, without its ids and place."""
    known = dict(span.attributes)
    for name in ("pipeline.name", "operation", "stagewatch.span.role", "code.line.number"):
        del known[name]
    assert known.pop("code.file.path") == __file__
    assert len(known.pop("spark.connect.operation.id")) == 36
    return known


def _names(recorded: Recorded) -> list[str]:
    return [span.name for span in recorded.spans()]


def _error(act: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        act()
    return caught.value


def _dont() -> None: ...


# --- every kind of action -----------------------------------------------------------------------

Act = Callable[[Any, str], Any]
ACTIONS: dict[str, Act] = {
    "pyspark.collect": lambda s, _: s.range(5).collect(),
    "pyspark.count": lambda s, _: s.range(5).count(),
    "pyspark.first": lambda s, _: s.range(5).first(),
    "pyspark.head": lambda s, _: s.range(5).head(),
    "pyspark.take": lambda s, _: s.range(5).take(2),
    "pyspark.tail": lambda s, _: s.range(5).tail(2),
    "pyspark.isEmpty": lambda s, _: s.range(5).isEmpty(),
    "pyspark.show": lambda s, _: s.range(5).show(),
    "pyspark.toPandas": lambda s, _: s.range(5).toPandas().to_dict(),
    "pyspark.toArrow": lambda s, _: s.range(5).toArrow().to_pydict(),
    "pyspark.toLocalIterator": lambda s, _: list(s.range(5).toLocalIterator()),
    "pyspark.foreach": lambda s, _: s.range(5).foreach(lambda row: None),
    "pyspark.foreachPartition": lambda s, _: s.range(5).foreachPartition(lambda rows: None),
    "pyspark.approxQuantile": lambda s, _: s.range(5).approxQuantile("id", [0.5], 0.0),
    "pyspark.corr": lambda s, _: s.range(5).withColumn("b", F.col("id")).corr("id", "b"),
    "pyspark.localCheckpoint": lambda s, _: s.range(5).localCheckpoint().schema,
    "pyspark.sql": lambda s, _: s.sql("select 1 as one").schema,
    "pyspark.write.parquet": lambda s, path: s.range(5).write.parquet(path),
    "pyspark.write.csv": lambda s, path: s.range(5).write.csv(path),
    "pyspark.write.save": lambda s, path: s.range(5).write.format("json").save(path),
    "pyspark.saveAsTable": lambda s, _: s.range(5).write.mode("overwrite").saveAsTable("saved"),
    "pyspark.insertInto": lambda s, _: s.range(5).write.insertInto("numbers_1"),
    "pyspark.writeTo.create": lambda s, path: (
        s.range(5).writeTo(Path(path).name).using("parquet").create()
    ),
}
"""What each gives is the same without us; each is one operation, and nothing else."""


@pytest.mark.parametrize("name", ACTIONS)
def test_action_is_operation(
    session: Any, recorded: Recorded, tmp_path: Path, name: str, capfd: Any, monkeypatch: Any
) -> None:
    """One operation named by what was called, with the caller's place; same result and output."""
    act = ACTIONS[name]
    if name == "pyspark.insertInto":
        session.sql("create table if not exists numbers_1 (id bigint) using parquet")
        recorded.records()
    before = len(recorded.spans())
    seen = act(session, str(tmp_path / "seen")), capfd.readouterr()
    operations = recorded.spans()[before:]
    with monkeypatch.context() as bare:
        bare.setattr(type(session.client), PATCHED, getattr(session.client, PATCHED).__wrapped__)
        unseen = act(session, str(tmp_path / "unseen")), capfd.readouterr()
    assert seen == unseen
    assert [span.name for span in operations] == [name]
    assert operations[0].parent_span_id == recorded.run.span.span_id.to_bytes(8, "big")
    assert operations[0].attributes["code.line.number"] in range(
        inspect.getsourcelines(act)[1], inspect.getsourcelines(act)[1] + 3
    )


@pytest.mark.parametrize(
    "act",
    [
        lambda s: s.range(5).schema,
        lambda s: s.range(5).explain(),
        lambda s: s.range(5).filter("id > 3").columns,
        lambda s: s.range(5).createOrReplaceTempView("seen"),
        lambda s: s.range(5).cache().unpersist(),
        lambda s: s.catalog.listTables(),
        lambda s: s.conf.get("spark.sql.shuffle.partitions"),
        lambda s: s.udf.register("same", lambda x: x),
        lambda s: s.createDataFrame([(1, "a")], "a int, b string").select("a"),
    ],
)
def test_what_executes_no_plan_is_none(
    session: Any, recorded: Recorded, act: Callable[[Any], Any]
) -> None:
    """Analysis, configuration, views, catalog and functions are no operations."""
    act(session)
    assert _names(recorded) == []


def test_rows_and_metrics(session: Any, recorded: Recorded, table: str) -> None:
    """A query has rows, bytes and the sums of its operators' metrics; its stage the rows read."""
    with stage("aggregate"):
        rows = session.table(table).groupBy("k").count().collect()
    span = next(span for span in recorded.spans() if span.name == "pyspark.collect")
    found = _attributes(span)
    assert len(found.pop("spark.plan.fingerprint")) == 16
    size = found.pop("spark.input.bytes")
    assert found.pop("spark.shuffle.write.bytes") > 0
    assert found.pop("spark.shuffle.read.bytes", 1) > 0
    assert found == {
        "pipeline.stage.name": "aggregate",
        "pipeline.operation.rows.in": 0,
        "pipeline.operation.rows.out": len(rows),
        "pipeline.dataset.uri": "spark_catalog.default.numbers",
        "pipeline.dataset.direction": "in",
        "pipeline.dataset.rows": 100,
        "pipeline.dataset.bytes": size,
        "spark.input.records": 100,
        "spark.input.files": 2,
        "spark.result.bytes": 2 * 8 * len(rows),
        "spark.shuffle.read.records": 14,
        "spark.shuffle.write.records": 14,
        "spark.tasks": found["spark.tasks"],
    }
    ended = next(span for span in recorded.spans() if span.name == "aggregate")
    assert ended.attributes["pipeline.stage.records.in"] == 100
    assert ended.attributes["pipeline.stage.bytes.in"] == size


def test_datasets(session: Any, table: str, recorded: Recorded, tmp_path: Path) -> None:
    """What was read and written, also through views and SQL; rows where it is clear whose."""
    path = str(tmp_path / "out")
    session.table(table).write.parquet(path)
    session.read.parquet(path).filter("k = 1").createOrReplaceTempView("ones")
    session.sql("create or replace temp view twice as select * from numbers")
    session.sql("insert into numbers select * from ones").collect()
    session.sql("select * from ones join twice using (id)").count()
    session.sql(f"select * from parquet.`{path}`").count()
    uri, name = f"file://{path}", "spark_catalog.default.numbers"
    found = [(d.direction, d.uri, d.rows) for d in recorded.of(DatasetTouched)]
    assert found == [
        ("out", f"file://{path}", None),
        ("in", "numbers", None),
        ("out", "numbers", None),
        ("in", uri, None),
        ("in", uri, None),
        ("in", name, 115),
        ("in", uri, 100),
    ]
    inserted = [s for s in recorded.spans() if s.name == "pyspark.sql"][1]
    assert inserted.attributes["pipeline.dataset.inputs"] == [uri]


def test_nothing_secret(session: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Neither options, literals, values, nor credentials of URLs are anywhere in the journal."""
    frame = session.createDataFrame([("hush_value",)], "a string")
    frame.filter("a = 'hush_literal'").collect()
    seen = frame.observe(Observation("o"), F.max("a").alias("most"), F.max(F.lit("hush_text")))
    seen.collect()
    for act in (
        lambda: session.sql("select 'hush_sql' from nowhere where a = 'hush_where'").collect(),
        lambda: (
            session.read.option("password", "hush_option").parquet("/hush?x=hush_query").count()
        ),
        lambda: frame.select(F.col("a").cast("int")).collect(),
    ):
        _error(act)
    journal = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"TABLE_OR_VIEW_NOT_FOUND" in journal
    words = ("value", "literal", "text", "sql", "where", "option", "query")
    assert [word for word in words if f"hush_{word}".encode() in journal] == []


def test_names_of_sources(session: Any, tmp_path: Path) -> None:
    """Paths, tables and JDBC tables without their secrets; what no client can know is left out."""
    from pyspark.sql.connect.proto import Plan

    client = session.client
    secret = {
        "url": "jdbc:postgresql://hush:hush@db:5432/shop?password=hush",
        "dbtable": "public.people",
        "password": "hush",
    }

    def read(frame: Any) -> list[str]:
        plan = frame._plan.to_proto(client)
        return [source.uri for source in plans.reads(plan, {"v": (plans.Source("x"),)}, here=True)]

    def written(writer: Any, **where: str) -> str | None:
        for name, value in where.items():
            setattr(writer._write, name, value)
        source = plans.writes(Plan(command=writer._write.command(client)), here=True)
        return source.uri if source is not None else None

    def by(statement: str) -> str | None:
        plan = Plan()
        plan.command.sql_command.input.sql.query = statement
        source = plans.writes(plan, here=True)
        return source.uri if source is not None else None

    assert read(session.read.parquet("s3a://key:hush@bucket/a?x=hush", "/not/here")) == [
        "s3a://bucket/a",
        "/not/here",
    ]
    assert read(session.read.format("json").option("path", f"file:{tmp_path}").load()) == [
        f"file://{tmp_path}"
    ]
    assert read(session.read.format("jdbc").options(**secret).load()) == [
        "postgresql://db:5432/shop/public.people"
    ]
    assert read(session.table("a.b").join(session.table("`a`.`b`")).union(session.table("v"))) == [
        "a.b",
        "x",
    ]
    assert read(session.sql("select * from {f} where 'from y' = ''", f=session.range(1))) == []
    assert written(session.range(1).write.format("jdbc").options(**secret)) == (
        "postgresql://db:5432/shop/public.people"
    )
    assert written(session.range(1).write, path=str(tmp_path)) == f"file://{tmp_path}"
    assert by("INSERT OVERWRITE TABLE a.`b` SELECT 1") == "a.b"
    assert by("create or replace table t using parquet as select 1") == "t"
    assert by("merge into t using s on true when matched then delete") == "t"
    assert by("create table t (as_of int)") is None
    assert by("insert overwrite directory '/x' select 1") is None
    assert by("select 'insert into t'") is None


def test_observed_metrics(session: Any, recorded: Recorded) -> None:
    """Numbers that the user had observed under a name of their own; never text, never ours."""
    mine, unnamed = Observation("quality"), Observation()
    frame = session.range(100).observe(
        mine, F.max("id").alias("newest"), F.count(F.lit(1)), F.lit("text").alias("text")
    )
    frame.observe(unnamed, F.avg("id").alias("mean")).collect()
    assert mine.get == {"newest": 99, "count(1)": 100, "text": "text"}
    (span,) = recorded.spans()
    observed = {k: v for k, v in span.attributes.items() if k.startswith("spark.observed.")}
    assert observed == {"spark.observed.quality.newest": 99, "spark.observed.mean": 49.5}


# --- jobs of their own --------------------------------------------------------------------------

JOB = """
import warnings
warnings.simplefilter("ignore")
from pyspark.sql import SparkSession, functions as F

spark = SparkSession.builder.remote("{server}").getOrCreate()


@F.udf("long")
def plus(number):
    return number + 1


@F.udf("long")
def bad(number):
    raise KeyError("hush")


frame = spark.range(0, 4, 1, 2)
print(frame.select(plus("id")).collect())
try:
    frame.select(bad("id")).count()
    frame.select(bad("id")).collect()
except Exception as error:
    print(type(error).__name__, "KeyError" in str(error))


def each(batch, number):
    batch.collect()


for ends in (False, True):
    source = spark.readStream.format("rate").option("rowsPerSecond", 10).load()
    if ends:
        source = source.select(bad("value"))
    query = source.writeStream.foreachBatch(each).queryName("seen").start()
    try:
        while not query.recentProgress:
            query.awaitTermination(1)
    except Exception as error:
        print(type(error).__name__)
    query.stop()
    print(query.name, query.isActive, query.exception() is None)
spark.stop()
"""


@pytest.mark.timeout(600)
def test_job_of_a_server_elsewhere(server: str, spark_jobs: Jobs) -> None:
    """What the client prints is what it prints without us, also of streaming queries, which are not
    seen. Tasks of its functions, which ran on the server, are spans under the operation."""
    script = spark_jobs.script(JOB.format(server=server))
    plain = without_us(spark_jobs, script)
    assert plain.returncode == 0, plain.stderr
    process = spark_jobs.start("python", script, STAGEWATCH_SPARK_EXECUTORS="1")
    out, err = process.communicate(timeout=spark_jobs.patience)
    assert (process.returncode, out) == (0, plain.stdout), err
    assert "stagewatch" not in err
    (run,) = spark_jobs.runs()
    assert (run.pipeline, run.outcome) == ("etl", "success")

    def spans() -> list[Any]:
        with spark_jobs.history() as history:
            return [row for row in history.spans(run.run_id) if row.name == "spark.python.task"]

    wait_for(lambda: len(spans()) >= 4)
    with spark_jobs.history() as history:
        by_id = {row.span_id: row.name for row in history.spans(run.run_id)}
    under = {(by_id[row.parent_span_id], row.attributes.get("error.type")) for row in spans()}
    assert under == {("pyspark.collect", None), ("pyspark.collect", "KeyError")}


# --- laziness -----------------------------------------------------------------------------------


def test_iterator_is_one_operation(session: Any, recorded: Recorded) -> None:
    """Rows one by one: nothing before the first, and what is done between two is beside it."""
    rows = session.range(0, 20_000, 1, 4).toLocalIterator()
    assert inspect.isgenerator(rows)
    assert _names(recorded) == []
    assert next(rows).id == 0
    assert session.range(3).count() == 3
    assert sum(1 for _ in rows) == 19_999
    assert recorded.tree() == [{"pyspark.toLocalIterator": []}, {"pyspark.count": []}]
    iterated = next(s for s in recorded.spans() if s.name == "pyspark.toLocalIterator")
    assert iterated.attributes["pipeline.operation.rows.out"] == 20_000


@pytest.mark.parametrize("leave", [lambda rows: rows.close(), lambda rows: None])
def test_iterator_that_is_left(
    session: Any, recorded: Recorded, leave: Callable[[Any], object]
) -> None:
    """Closed or dropped half-way it is an operation that went well, with the rows it took."""

    def take_one() -> None:
        rows = session.range(0, 40_000, 1, 4).toLocalIterator()
        next(rows)
        leave(rows)

    take_one()
    (span,) = recorded.spans()
    assert span.name == "pyspark.toLocalIterator" and "error.type" not in span.attributes
    assert 0 < span.attributes["pipeline.operation.rows.out"] < 40_000


def test_iterator_goes_on_in_another_thread(session: Any, recorded: Recorded) -> None:
    """A thread that goes on with it has it as its own operation, and leaves nothing open."""
    rows = session.range(0, 20_000, 1, 4).toLocalIterator()
    next(rows)
    left: list[int] = []

    def rest() -> None:
        left.append(sum(1 for _ in rows))
        session.range(3).count()

    thread = threading.Thread(target=rest)
    thread.start()
    thread.join()
    assert left == [19_999]
    assert sorted(_names(recorded)) == ["pyspark.count", "pyspark.toLocalIterator"]


# --- the request --------------------------------------------------------------------------------


def test_context_reaches_the_server(session: Any, recorded: Recorded) -> None:
    """A UDF finds the operation's traceparent in its job's tags, beside the user's own tags."""

    @F.udf("string")
    def tags(_: int) -> str:
        from pyspark import TaskContext

        return str(TaskContext.get().getLocalProperty("spark.job.tags"))

    session.addTag("mine")
    try:
        ((found,),) = session.range(1).select(tags("id")).collect()
        assert session.getTags() == {"mine"}
    finally:
        session.clearTags()
    (span,) = recorded.spans()
    ends = {tag.rpartition("_Tag_")[2] for tag in found.split(",") if "_Tag_" in tag}
    ours = f"stagewatch-00-{TRACE:032x}-{span.span_id.hex()}-01"
    assert ends == {"mine", ours}
    assert contexts.context(ours.removeprefix(connect.TAG)) is not None


def test_request_is_the_clients(session: Any, recorded: Recorded) -> None:
    """After its execution a request is what it was, and can be executed again."""
    client = session.client
    request = client._execute_plan_request_with_metadata()
    request.plan.CopyFrom(session.range(3)._plan.to_proto(client))
    request.tags.append("mine")
    first = client._execute_and_fetch(request, {})[0]
    request.operation_id = str(uuid4())
    assert client._execute_and_fetch(request, {})[0].equals(first)
    assert list(request.tags) == ["mine"]
    assert _names(recorded) == ["pyspark.execute", "pyspark.execute"]


def test_signature(session: Any) -> None:
    """What is patched looks as it did."""
    method = getattr(type(session.client), PATCHED)
    assert inspect.signature(method) == inspect.signature(method.__wrapped__)
    assert method.__name__ == PATCHED and method.__module__ == "pyspark.sql.connect.client.core"
    assert inspect.isgenerator(method(session.client, _request(session), {}))


def _request(session: Any) -> Any:
    request = session.client._execute_plan_request_with_metadata()
    request.plan.CopyFrom(session.range(3)._plan.to_proto(session.client))
    return request


# --- failures -----------------------------------------------------------------------------------


def _failing() -> Any:
    @F.udf("long")
    def fails(value: int) -> int:
        raise ValueError(f"hush {value}")

    return fails


FAILURES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "TABLE_OR_VIEW_NOT_FOUND": ("pyspark.collect", lambda s: s.table("nowhere").collect()),
    "PATH_NOT_FOUND": ("pyspark.count", lambda s: s.read.parquet("/nowhere/at/all").count()),
    "DIVIDE_BY_ZERO": ("pyspark.collect", lambda s: s.range(1).select(F.expr("1 / id")).collect()),
    "USER_RAISED_EXCEPTION": (
        "pyspark.toPandas",
        lambda s: s.range(1).select(F.raise_error(F.lit("x"))).toPandas(),
    ),
    "PARSE_SYNTAX_ERROR": ("pyspark.sql", lambda s: s.sql("selec 1")),
    "ValueError": (
        "pyspark.collect",
        lambda s: s.range(1).select(_failing()("id")).collect(),
    ),
}


@pytest.mark.parametrize("cause", FAILURES)
def test_failure(session: Any, recorded: Recorded, cause: str, monkeypatch: Any) -> None:
    """``error.type`` is Spark's condition or the user's exception; the exception is untouched."""
    name, act = FAILURES[cause]
    seen = _error(lambda: act(session))
    with monkeypatch.context() as bare:
        bare.setattr(type(session.client), PATCHED, getattr(session.client, PATCHED).__wrapped__)
        unseen = _error(lambda: act(session))
    assert type(seen) is type(unseen)
    assert seen.getCondition() == unseen.getCondition()  # type: ignore[attr-defined]
    frames = [frame.f_code.co_qualname for frame, _ in traceback.walk_tb(seen.__traceback__)]
    assert frames == [f.f_code.co_qualname for f, _ in traceback.walk_tb(unseen.__traceback__)]
    (span,) = recorded.spans()
    assert (span.name, span.attributes["error.type"]) == (name, cause)
    assert [(e.name, e.error_type) for e in recorded.of(OperationEnded)] == [(name, cause)]


def test_cancelled(session: Any, recorded: Recorded) -> None:
    """An operation that was interrupted says so."""

    @F.udf("long")
    def slow(value: int) -> int:
        import time

        time.sleep(60)
        return value

    failed: list[BaseException] = []

    def collect() -> None:
        failed.append(_error(lambda: session.range(1).select(slow("id")).collect()))

    thread = threading.Thread(target=collect)
    thread.start()
    wait_for(lambda: session.interruptAll() and not thread.join(0.2), 60)
    thread.join()
    (span,) = recorded.spans()
    assert span.attributes["error.type"] == "cancelled"


def test_keyboard_interrupt(session: Any, recorded: Recorded) -> None:
    """Ctrl-C goes through the client as without us, which tells the server."""

    @F.udf("long")
    def slow(value: int) -> int:
        import time

        time.sleep(60)
        return value

    frame = session.range(1).select(slow("id"))
    timer = threading.Timer(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    error = _error(lambda: frame.collect())
    timer.join()
    assert type(error) is KeyboardInterrupt
    (span,) = recorded.spans()
    assert span.attributes["error.type"] == "KeyboardInterrupt"
    assert session.range(2).count() == 2


def test_views_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client that makes one after the other the last ones are remembered."""
    from pyspark.sql.connect import proto

    class Client:
        host = "localhost"

    monkeypatch.setattr(connect, "_MOST_VIEWS", 4)
    client = Client()
    for name in ("a", "b", "a", "c"):
        plan = proto.Plan()
        plan.command.create_dataframe_view.name = name
        connect._remember(client, plan)
    assert list(connect._views[client]) == ["a", "global_temp.a", "c", "global_temp.c"]
    del client
    gc.collect()
    assert not any(isinstance(one, Client) for one in connect._views)
