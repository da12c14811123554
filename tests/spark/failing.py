"""Everything that can fail in one session, and what Python sees of it.

The tests run it by its path, so that Spark sends its functions to the workers by value.
"""

import os
import re
import threading
import time
import traceback

import pyspark
from pyspark.sql import functions as F
from pyspark.sql.functions import pandas_udf, udf
from pyspark.sql.types import LongType

SCENES = {}
FOUR = not pyspark.__version__.startswith("3.")
try:
    import pyarrow  # noqa: F401
except ImportError:
    ARROW = False
else:
    ARROW = True


def scene(expected, place=None, *, where=True):
    """*expected*: ``error.type``, and function of its place if that is not the caller's."""

    def add(function):
        if where:
            SCENES[function.__name__] = (function, expected, place)
        return function

    return add


class Bad(Exception):
    pass


BAD = f"{__name__}.Bad"


def fail_in_udf(spark, fail):
    @udf(LongType())
    def bad(x):
        if x == 7:
            fail()
        return x

    return spark.range(0, 10, 1, 2).select(bad("id"))


def nothing():
    raise ValueError


def custom():
    raise Bad("of 'Smith': 42")


def chained():
    try:
        {}["a"]
    except KeyError as error:
        raise RuntimeError("outer") from error


def quoting():
    try:
        try:
            {}["a"]
        except KeyError:
            raise OSError("inner")  # noqa: B904
    except OSError:
        text = traceback.format_exc()
    raise RuntimeError("it said\n" + text)


def stop():
    raise StopIteration


@scene(BAD, "custom")
def udf_raises(spark, _):
    fail_in_udf(spark, custom).collect()


@scene("ValueError", "nothing")
def udf_raises_nothing_said(spark, _):
    fail_in_udf(spark, nothing).count()
    fail_in_udf(spark, nothing).collect()


@scene("RuntimeError", "chained")
def udf_raises_because(spark, _):
    fail_in_udf(spark, chained).toPandas()


@scene("RuntimeError", "quoting")
def udf_raises_with_a_traceback_in_its_message(spark, _):
    fail_in_udf(spark, quoting).show()


@scene("STOP_ITERATION_OCCURRED", "stop")
def udf_stops_iteration(spark, _):
    fail_in_udf(spark, stop).collect()


@scene(BAD, "custom")
def udf_raises_in_a_write(spark, folder):
    fail_in_udf(spark, custom).write.parquet(f"{folder}/written")


@scene("ZeroDivisionError", "<lambda>")
def rdd_raises(spark, _):
    spark.sparkContext.parallelize(range(4), 2).map(lambda x: 1 // (x - 3)).count()


@scene(BAD, "each")
def foreach_raises(spark, _):
    def each(row):
        raise Bad

    spark.range(3).foreach(each)


@scene("KeyError", "column", where=ARROW)
def pandas_udf_raises(spark, _):
    import pandas

    @pandas_udf(LongType())
    def column(values: pandas.Series) -> pandas.Series:
        raise KeyError("column")

    spark.range(3).select(column("id")).collect()


@scene("RESULT_ROWS_MISMATCH", where=ARROW and FOUR)
def pandas_udf_returns_too_little(spark, _):
    import pandas

    @pandas_udf(LongType())
    def column(values: pandas.Series) -> pandas.Series:
        return values.head(1)

    spark.range(0, 10, 1, 1).select(column("id")).collect()


@scene("ZeroDivisionError", "each", where=ARROW)
def map_in_pandas_raises(spark, _):
    def each(frames):
        for frame in frames:
            yield frame.assign(id=1 // 0)

    spark.range(3).mapInPandas(each, "id long").collect()


@scene("TABLE_OR_VIEW_NOT_FOUND")
def table_is_missing(spark, _):
    spark.sql("select * from nowhere")


@scene("PATH_ALREADY_EXISTS")
def path_exists(spark, folder):
    spark.range(1).write.parquet(f"{folder}/exists")
    spark.range(1).write.parquet(f"{folder}/exists")


@scene("DIVIDE_BY_ZERO")
def ansi_division(spark, _):
    spark.conf.set("spark.sql.ansi.enabled", "true")
    try:
        spark.range(3).select(F.lit(1) / (F.col("id") - 1)).collect()
    finally:
        spark.conf.unset("spark.sql.ansi.enabled")


# --- cell values that stand in messages without quotes ------------------------------------------


def names(spark):
    return spark.range(0, 1, 1, 1).select(F.concat(F.lit("Smith "), F.col("id")).alias("name"))


RAISED = "USER_RAISED_EXCEPTION" if FOUR else "java.lang.RuntimeException"


@scene(RAISED)
def query_raises(spark, _):
    names(spark).select(F.raise_error(F.col("name"))).collect()


@scene(RAISED)
def query_asserts(spark, _):
    names(spark).select(F.assert_true(F.length("name") < 3, F.col("name"))).collect()


@scene("DUPLICATED_MAP_KEY")
def map_has_a_key_twice(spark, _):
    keys = F.array("name", "name")
    names(spark).select(F.map_from_arrays(keys, keys)).collect()


@scene("MALFORMED_RECORD_IN_PARSING.WITHOUT_SUGGESTION")
def record_is_malformed(spark, _):
    text = F.concat(F.lit('{"a": "'), F.col("name"), F.lit('", "b": "x"}'))
    parsed = F.from_json(text, "a string, b int", {"mode": "FAILFAST"})
    names(spark).select(parsed).collect()


# ------------------------------------------------------------------------------------------------


@scene("python_worker_died")
def worker_dies(spark, _):
    @udf(LongType())
    def die(x):
        os._exit(9)

    spark.range(0, 2, 1, 1).select(die("id")).collect()


# --- cancelled --------------------------------------------------------------------------------


@udf(LongType())
def slowly(x):
    time.sleep(60)
    return x


def interrupted(spark, interrupt, act=None):
    """Act, by default collect, and interrupt once tasks run."""
    context = spark.sparkContext

    def wait():
        tracker = context.statusTracker()
        while not any(
            info.numActiveTasks
            for info in map(tracker.getStageInfo, tracker.getActiveStageIds())
            if info is not None
        ):
            time.sleep(0.05)
        interrupt()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        (act or spark.range(0, 2, 1, 2).select(slowly("id")).collect)()
    finally:
        thread.join()


@scene("cancelled")
def group_is_cancelled(spark, _):
    context = spark.sparkContext
    context.setJobGroup("group", "a group", interruptOnCancel=True)
    try:
        interrupted(spark, lambda: context.cancelJobGroup("group"))
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)


@scene("cancelled")
def tag_is_cancelled(spark, _):
    context = spark.sparkContext
    context.addJobTag("tag")
    try:
        interrupted(spark, lambda: context.cancelJobsWithTag("tag"))
    finally:
        context.removeJobTag("tag")


@scene("cancelled")
def all_are_cancelled(spark, folder):
    frame = spark.range(0, 2, 1, 2).select(slowly("id").alias("id"))
    interrupted(
        spark, spark.sparkContext.cancelAllJobs, lambda: frame.write.parquet(f"{folder}/never")
    )


@scene("cancelled")
def stage_is_cancelled(spark, _):
    context = spark.sparkContext

    def cancel():
        for stage in context.statusTracker().getActiveStageIds():
            context._jsc.sc().cancelStage(stage)

    interrupted(spark, cancel)


@scene("cancelled", where=FOUR)
def session_is_interrupted(spark, _):
    interrupted(spark, spark.interruptAll)


# --- what Python sees -------------------------------------------------------------------------

_DIFFERS = re.compile(
    r"\b(?:o|Job |Stage |stage |Task |task |TID |ID: )\d+(?:\.\d+)?|/tmp[\w./-]*|\#\d+L?"
)


def raised(act, *arguments):
    """What *act* raises; its traceback begins here, whoever asks."""
    try:
        act(*arguments)
    except BaseException as error:
        return error
    return None


def seen(error):
    """Type, attributes, text and traceback, without what differs from run to run."""
    lines = "".join(traceback.format_exception(error)).splitlines(True)
    text = _DIFFERS.sub("…", "".join(line for line in lines if "\tat " not in line))
    return type(error), error.args == (str(error),), [*vars(error)], text
