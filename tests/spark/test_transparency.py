"""PySpark under us is what it is without us."""

from __future__ import annotations

import inspect
import re
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry import trace

import stagewatch
from stagewatch import semconv
from stagewatch.instrumentation.pyspark import (
    PysparkInstrumentor,
    about,
    actions,
    attaching,
    compiling,
    contexts,
    work,
)
from stagewatch.instrumentation.pyspark.status_store import StatusStore
from tests.jobs import wait_for
from tests.recorded import Recorded
from tests.spark.told import done, named, newest, operations, settle, stages, unwatched

pytestmark = [
    pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
    pytest.mark.filterwarnings("ignore:distutils Version classes are deprecated"),
]


def _properties(spark: Any) -> str:
    return str(spark.sparkContext._jsc.sc().getLocalProperties().toString())


def _fails(spark: Any) -> None:
    spark.range(2).selectExpr("raise_error('no')").collect()


def _frames(error: BaseException) -> list[tuple[str, str]]:
    return [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]


def _without_numbers(error: BaseException) -> str:
    """The first line: stages and the gateway's objects are numbered."""
    return re.sub(r"\d+", "N", str(error).partition("\n")[0])


def _raised(act: Callable[[], Any]) -> BaseException:
    with pytest.raises(Exception) as raised:
        act()
    return raised.value


def test_exception_is_the_same(spark: Any, recorded: Recorded) -> None:
    """Type, message and traceback, whether Spark or Python raises it."""

    def raise_both() -> list[Any]:
        errors = [
            _raised(lambda: _fails(spark)),
            _raised(lambda: spark.sql("SELECT nothing FROM nowhere")),
            _raised(lambda: spark.range(1).write.parquet(None)),
            _raised(lambda: spark.sparkContext.parallelize([], 1).first()),
        ]
        return [(type(it), _without_numbers(it), _frames(it)) for it in errors]

    ours = raise_both()
    with unwatched():
        theirs = raise_both()
    assert ours == theirs


@pytest.mark.spark4
def test_merge_into(spark: Any, recorded: Recorded) -> None:
    """None of the tables that Spark has without a connector can be merged into: its own error comes
    through, and the operation has it."""
    spark.range(3).write.mode("overwrite").saveAsTable("merged")

    def merge() -> BaseException:
        writer = spark.range(2).alias("new").mergeInto("merged", col("new.id") == col("merged.id"))
        return _raised(lambda: writer.whenMatched().delete().merge())

    from pyspark.sql.functions import col

    try:
        ours = merge()
        settle()
        with unwatched():
            theirs = merge()
    finally:
        spark.sql("DROP TABLE merged")
    assert (type(ours), str(ours), _frames(ours)) == (type(theirs), str(theirs), _frames(theirs))
    merging = named(recorded, "pyspark.mergeInto").attributes
    assert merging is not None
    assert merging[semconv.ERROR_TYPE] == "UNSUPPORTED_FEATURE.TABLE_OPERATION"


def test_jobs_are_the_same(spark: Any, recorded: Recorded, tmp_path: Path) -> None:
    """Their number, the call sites that the UI shows, and what warnings name as their place."""

    def act(name: str) -> tuple[list[str], list[tuple[str, int]]]:
        before = newest(spark)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for once in (
                lambda: spark.range(3).collect(),
                lambda: spark.range(3).toPandas(),
                lambda: spark.range(3).groupBy("id").count().count(),
                lambda: spark.range(3).write.csv(str(tmp_path / name)),
                lambda: spark.sparkContext.parallelize([3, 1], 2).sortBy(abs).collect(),
                lambda: spark.sparkContext.parallelize([3, 1], 2).sum(),
            ):
                once()
        after = newest(spark)
        assert after > before
        store = spark.sparkContext._jsc.sc().statusStore()
        names = [store.job(number).name() for number in range(before + 1, after + 1)]
        # An execution's plan may be another object, but what it is called is the same.
        return names, [
            (warning.filename, warning.lineno)
            for warning in warned
            if warning.category is not ResourceWarning
        ]

    ours = act("ours")
    with unwatched():
        theirs = act("theirs")
    assert ours == theirs
    assert any(Path(__file__).name in name for name in ours[0])


def test_local_properties_are_put_back(spark: Any, recorded: Recorded) -> None:
    """After an action that went well, one that failed, and one inside another's call."""
    context = spark.sparkContext
    context.setLocalProperty("mine", "kept")
    context.setLocalProperty(contexts.PROPERTY, "00-outer")
    try:
        before = _properties(spark)
        spark.range(3).collect()
        assert _properties(spark) == before
        _raised(lambda: _fails(spark))
        assert _properties(spark) == before
        spark.range(3).toPandas()
        assert _properties(spark) == before
        assert "00-outer" in before
    finally:
        context.setLocalProperty("mine", None)
        context.setLocalProperty(contexts.PROPERTY, None)
        settle()


def test_functions_look_the_same(spark: Any) -> None:
    """Name, signature, module and documentation of all that is wrapped."""
    from pyspark import RDD
    from pyspark.sql import DataFrame, DataFrameReader, DataFrameWriter, SparkSession

    seen = 0
    for owner in (type(spark.range(1)), RDD, DataFrame, DataFrameWriter, DataFrameReader):
        for name, member in vars(owner).items():
            original = getattr(member, "__wrapped__", None)
            code = getattr(member, "__code__", None)
            if original is None or code is None or "stagewatch" not in code.co_filename:
                continue
            seen += 1
            assert inspect.signature(member) == inspect.signature(original), name
            for attribute in ("__doc__", "__module__", "__name__", "__qualname__"):
                assert getattr(member, attribute) == getattr(original, attribute), name
    assert seen > 50
    assert SparkSession.sql.__wrapped__


def test_no_function_is_wrapped_twice(spark: Any) -> None:
    """Neither at first nor after having been taken off and put on again."""
    with unwatched():
        assert not hasattr(type(spark.range(1)).collect, "__wrapped__")
    for function in (type(spark.range(1)).collect, type(spark.sparkContext).runJob):
        assert not hasattr(function.__wrapped__, "__wrapped__")


def test_session_that_is_there_already(spark: Any, recorded: Recorded) -> None:
    """It is listened to from when we are loaded, its first action included."""
    with unwatched():
        spark.range(1).collect()
    before = newest(spark)
    with stagewatch.stage("late"):
        spark.range(3).collect()
    settle()
    assert operations(recorded) == ["pyspark.collect"]
    action = named(recorded, "pyspark.collect")
    assert action.attributes is not None
    assert action.attributes[semconv.SPARK_JOBS] == len(done(spark, before))


def test_run_says_its_application(spark: Any, recorded: Recorded) -> None:
    """Id and master; no UI where there is none."""
    about.describe(spark.sparkContext)
    span: Any = trace.get_current_span(recorded.run.context)
    assert span.attributes == {
        semconv.SPARK_APPLICATION_ID: spark.sparkContext.applicationId,
        semconv.SPARK_MASTER: "local[2]",
    }


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["here", "enter", "leave"])
def test_interrupted_in_our_code(
    spark: Any, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Ctrl-C is the user's wherever it strikes, and the next action is counted."""
    attached = attaching.current
    assert attached is not None
    with monkeypatch.context() as patch:
        if moment == "here":
            patch.setattr(attaching, "here", _interrupt)
        else:

            class Interrupted:
                """The listener, but for one call."""

                def __getattr__(self, name: str) -> Any:
                    return _interrupt if name == moment else getattr(listener, name)

            listener = attached.listener
            patch.setattr(attached, "listener", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            spark.range(3).collect()
    monkeypatch.setattr(work, "_LOST", 0.0)
    with stagewatch.stage("next"):
        spark.range(3).collect()
    settle()
    assert operations(recorded).count("pyspark.collect") == 2
    assert [name for name, *_ in stages(recorded)] == ["next"]


def test_lost_mark_holds_no_stage(
    spark: Any, recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Spark's queue dropped it, the action is complete without it."""
    attached = attaching.current
    assert attached is not None
    monkeypatch.setattr(work, "_LOST", 0.0)

    class Forgetful:
        """The listener, but it posts nothing at the end."""

        def leave(self, before: str | None, context: str) -> None:
            spark.sparkContext.setLocalProperty(contexts.PROPERTY, before)

        def __getattr__(self, name: str) -> Any:
            return getattr(listener, name)

    listener = attached.listener
    with monkeypatch.context() as patch:
        patch.setattr(attached, "listener", Forgetful())
        with stagewatch.stage("load"):
            spark.range(3).collect()
    settle()
    assert operations(recorded) == ["pyspark.collect"]
    assert [name for name, *_ in stages(recorded)] == ["load"]


def test_actions_of_threads(spark: Any, recorded: Recorded) -> None:
    """At once, in plain threads and in those that inherit: each has its own jobs, and no others."""
    from pyspark import InheritableThread

    before = newest(spark)
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def act(rows: int) -> None:
        try:
            barrier.wait(60)
            spark.range(rows).groupBy("id").count().collect()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=act, args=(n,)) for n in (1, 2)]
    threads += [InheritableThread(target=act, args=(n,)) for n in (3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle()
    assert not errors
    ours = [span for span in recorded.spans() if span.name == "pyspark.collect"]
    rows = [span.attributes[semconv.ROWS_OUT] for span in ours if span.attributes]
    assert sorted(rows) == [1, 2, 3, 4]
    executions = {span.attributes[semconv.SPARK_EXECUTION_ID] for span in ours if span.attributes}
    assert len(executions) == 4
    below = [span for span in recorded.spans() if span.name == semconv.SPARK_JOB]
    assert {span.parent_span_id for span in below} == {span.span_id for span in ours}
    assert len(below) == len(done(spark, before))


@pytest.mark.pandas2
@pytest.mark.filterwarnings("ignore")
def test_pandas_on_spark(spark: Any, recorded: Recorded) -> None:
    """What it calls for one of its own calls are the operations; the property is put back."""
    before = spark.sparkContext.getLocalProperty(contexts.PROPERTY)  # a signal may have left one
    frame = spark.range(3).pandas_api()
    assert frame["id"].sum() == 3
    assert spark.sparkContext.getLocalProperty(contexts.PROPERTY) == before
    settle()
    assert "pyspark.toPandas" in operations(recorded)
    jobs = [span for span in recorded.spans() if span.name == semconv.SPARK_JOB]
    actions_ = {span.span_id for span in recorded.spans() if span.name.startswith("pyspark.")}
    assert jobs
    assert {span.parent_span_id for span in jobs} <= actions_


@pytest.mark.parametrize(
    ("master", "shown"),
    [
        ("local[2]", "local[2]"),
        ("local-cluster[2,1,1024]", "local-cluster[2,1,1024]"),
        ("yarn", "yarn"),
        ("spark://one:7077,two:7077", "spark://one:7077,two:7077"),
        ("k8s://https://me:secret@api:6443?token=x", "k8s://"),
    ],
)
def test_master_without_secrets(recorded: Recorded, master: str, shown: str) -> None:
    """Nor the URLs of the UI; of the history where there is one."""
    context: Any = SimpleNamespace(
        applicationId="app-1",
        master=master,
        uiWebUrl="http://driver:4040",
        getConf=lambda: {"spark.yarn.historyServer.address": "history:18080"},
    )
    about.describe(context)
    span: Any = trace.get_current_span(recorded.run.context)
    assert "secret" not in span.attributes[semconv.SPARK_MASTER]
    assert span.attributes[semconv.SPARK_MASTER].startswith(shown)
    assert span.attributes[semconv.SPARK_UI_URL] == "http://history:18080/history/app-1"


def test_one_thread_of_ours(spark: Any, recorded: Recorded) -> None:
    """It drains; those that prepare are gone."""
    spark.range(3).collect()
    settle()
    ours = [it.name for it in threading.enumerate() if it.name.startswith("stagewatch")]
    assert ours == ["stagewatch-spark"]


def test_nothing_is_kept(spark: Any, recorded: Recorded) -> None:
    """Of actions that are over, failed ones included."""
    attached = attaching.current
    assert attached is not None
    for _ in range(5):
        spark.range(3).collect()
        _raised(lambda: _fails(spark))
    settle()
    done(spark, -1)
    kept = attached.work
    assert not (kept._actions or kept._jobs or kept._stages or kept._executions._open)


def test_restricted_jvm(
    spark: Any, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Where janino may not be used, jobs and stages come from the status store, and it is said;
    where that may not be used either, actions are recorded alone, and that is said."""

    def refuse(*_: Any) -> Any:
        from py4j.protocol import Py4JError

        raise Py4JError("org.codehaus.janino.SimpleCompiler is not whitelisted")

    monkeypatch.setattr(compiling, "constructor", refuse)
    monkeypatch.setattr(attaching, "_making", None)
    with unwatched():
        pass
    before = newest(spark)
    with stagewatch.stage("load"):
        spark.range(0, 100, 1, 2).groupBy("id").count().collect()
    settle()
    assert attaching.current is not None
    assert isinstance(attaching.current.listener, StatusStore)
    assert len(caplog.messages) == 1
    assert "status store" in caplog.messages[0]
    action = named(recorded, "pyspark.collect")
    assert action.attributes is not None
    assert action.attributes[semconv.SPARK_JOBS] == len(done(spark, before))
    assert action.attributes[semconv.SPARK_TASKS] == 2

    PysparkInstrumentor().uninstrument()
    monkeypatch.setattr(attaching, "StatusStore", refuse)
    PysparkInstrumentor().instrument()
    spark.range(3).count()
    wait_for(lambda: len(caplog.messages) == 2)
    assert "without their jobs" in caplog.messages[1]
    assert operations(recorded) == ["pyspark.collect", "pyspark.count"]
    monkeypatch.undo()
    with unwatched():
        pass


def test_patches_are_for_one_release() -> None:
    """No function stands in the table twice."""
    for release in ((3, 5), (4, 3)):
        names = [(patch.module, patch.path) for patch in actions.patches(release)]
        assert len(names) == len(set(names))
