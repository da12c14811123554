"""What is behind an exception: the user's own code in its traceback, an engine's explanation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from stagewatch import failures, safety, stages
from stagewatch.failures import Cause
from stagewatch.instrumentation.pyspark.failures import of_text
from stagewatch.model import Outcome
from stagewatch.records import StageEnded
from tests.recorded import Recorded


class Unreadable(Exception):
    """As those are that ask another process for their text."""

    def __str__(self) -> str:
        raise ConnectionRefusedError


@pytest.fixture
def explained(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[BaseException], Cause | None]]:
    found: list[Callable[[BaseException], Cause | None]] = []
    monkeypatch.setattr(failures, "explanations", found)
    return found


def test_explanation_is_all_that_is_asked(recorded: Recorded, explained: list[object]) -> None:
    """Type, place, outcome and message come from it; the exception's own text may not be there."""
    explained.append(
        lambda error: Cause("KeyError", Outcome.CANCELLATION, "etl.py:3 in f", "bad 'secret'")
    )
    error = Unreadable()
    with pytest.raises(Unreadable), stages.stage("load"):
        raise error
    (ended,) = recorded.of(StageEnded)
    assert (ended.outcome, ended.error_type) == ("cancellation", "KeyError")
    (span,) = recorded.spans()
    ((_, _, event),) = span.events or ()
    assert (span.attributes or {})["stagewatch.error.place"] == "etl.py:3 in f"
    assert event["exception.type"].endswith(".Unreadable")
    assert "test_explanation_is_all" in str(event["exception.stacktrace"])
    assert "secret" not in str(recorded.records())
    assert failures.error_message(error) == "bad 'secret'"


@pytest.mark.internal_errors
def test_explanations_may_fail(explained: list[object]) -> None:
    """The next one is asked, and then the exception."""
    explained += [lambda error: error.nothing, lambda error: None]
    before = safety.swallowed
    assert failures.verdict(KeyError("x")) == (Outcome.FAILURE, "KeyError")
    assert safety.swallowed > before


def test_place_is_where_the_user_called() -> None:
    """Of a library's exception, before it has come out of the library."""
    seen = []
    library = {"__name__": "engine.inside"}
    failures.libraries.add("engine")
    try:
        exec(
            "def act(see):\n try: 1 / 0\n except Exception as error: see(error)",
            library,
        )
        library["act"](lambda error: seen.append(failures.error_place(error)))  # type: ignore[operator]
    finally:
        failures.libraries.discard("engine")
    assert seen[0].startswith(__file__) and seen[0].endswith(
        "in test_place_is_where_the_user_called"
    )


# --- what Spark says ----------------------------------------------------------------------------

UDF = """[PYTHON_EXCEPTION] An exception was thrown from the Python worker: {}
 SQLSTATE: 38000"""
UDF_35 = """
  An exception was thrown from the Python worker. Please see the stack trace below.
{}
"""
RDD_35 = """An error occurred while calling z:org.apache.spark.api.python.PythonRDD.collectAndServe.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 1 in stage 15.0 failed \
1 times, most recent failure: Lost task 1.0 in stage 15.0 (TID 31) (host executor driver): \
org.apache.spark.api.python.PythonException: {}

\tat org.apache.spark.api.python.BasePythonRunner.read(PythonRunner.scala:572)

Driver stacktrace:
\tat org.apache.spark.scheduler.DAGScheduler.failJobAndIndependentStages(DAGScheduler.scala:2898)
Caused by: org.apache.spark.api.python.PythonException: {}

\tat org.apache.spark.api.python.BasePythonRunner.read(PythonRunner.scala:572)
\t... 1 more
"""
STREAM = """[STREAM_FAILED] Query [id = 1, runId = 2] terminated with exception: \
[FOREACH_BATCH_USER_FUNCTION_ERROR] An error occurred in the user provided function in foreach \
batch sink. Reason: An exception was raised by the Python Proxy. Return Message: {}
 SQLSTATE: 39000 SQLSTATE: XXKST
=== Streaming Query ===
Current State: ACTIVE"""
CONNECT = UDF_35.format(UDF)

TRACEBACK = """Traceback (most recent call last):
  File "/opt/spark/python/lib/pyspark.zip/pyspark/worker.py", line 1247, in main
    process()
  File "/app/etl.py", line 5, in parse
    return json.loads(text)
           ^^^^^^^^^^^^^^^^
  File "/usr/lib/python3.10/json/decoder.py", line 355, in raw_decode
    raise JSONDecodeError("Expecting value", s, err.value) from None
{}"""
OTHER = 'Traceback (most recent call last):\n  File "/app/other.py", line 1, in other\n    {}\n'
AGAIN = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
BECAUSE = "\n\nThe above exception was the direct cause of the following exception:\n\n"


@pytest.mark.parametrize("around", [UDF, UDF_35, RDD_35, STREAM, CONNECT])
@pytest.mark.parametrize(
    ("raised", "error_type", "message"),
    [
        ("ValueError: bad row 7", "ValueError", "bad row 7"),
        ("ValueError", "ValueError", ""),
        ("json.decoder.JSONDecodeError: a: b", "json.decoder.JSONDecodeError", "a: b"),
        ("__main__.Bad: x", "Bad", "x"),
        ("shop.errors.Outer.Inner", "shop.errors.Outer.Inner", ""),
        ("etl.make.<locals>.Bad: x", "etl.make.<locals>.Bad", "x"),
        ("<run_path>.Bad: x", "<run_path>.Bad", "x"),
        ("Ungültig: x", "Ungültig", "x"),
        ("ValueError: one\nKeyError: two\n\nthree: x", "ValueError", "one"),
        ("ValueError: one\na note: of the user's", "ValueError", "one"),
        ("KeyError: 'a'" + AGAIN + TRACEBACK.format("RuntimeError: b"), "RuntimeError", "b"),
        ("KeyError: 'a'" + BECAUSE + TRACEBACK.format("RuntimeError: b"), "RuntimeError", "b"),
        (
            "RuntimeError: it said\n" + OTHER + "KeyError: 'a'" + AGAIN + OTHER + "OSError: n",
            "RuntimeError",
            "it said",
        ),
        (
            "pyspark.errors.exceptions.base.PySparkRuntimeError: [RESULT_ROWS_MISMATCH] One row.",
            "RESULT_ROWS_MISMATCH",
            None,
        ),
    ],
)
def test_exception_of_a_python_worker(
    around: str, raised: str, error_type: str, message: str | None
) -> None:
    """The last one of its chain, and none that its message quotes, with the user's line."""
    text = around.replace("{}", TRACEBACK.format(raised))
    assert of_text(text) == Cause(error_type, place="/app/etl.py:5 in parse", message=message)


def test_place_of_an_earlier_exception() -> None:
    """PySpark has its own raised about the user's; the line is that of the user's."""
    last = (
        'Traceback (most recent call last):\n  File "/opt/spark/python/pyspark/util.py", line 85,'
        " in wrapper\n    raise PySparkRuntimeError(\nPySparkRuntimeError: x"
    )
    found = of_text(UDF.format(TRACEBACK.format("StopIteration") + AGAIN + last))
    assert found == Cause("PySparkRuntimeError", place="/app/etl.py:5 in parse", message="x")


def test_exception_group_of_a_python_worker() -> None:
    """Its traceback is indented."""
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/etl.py", line 5, in parse\n  |     raise ExceptionGroup("two", [])\n'
        "  | ExceptionGroup: two (2 sub-exceptions)\n  +-+---------------- 1 ----------------\n"
        "    | ValueError: a\n    +------------------------------------\n"
    )
    for around in (UDF, UDF_35):
        assert of_text(around.format(text)) == Cause(
            "ExceptionGroup", place="/app/etl.py:5 in parse", message="two (2 sub-exceptions)"
        )


def test_hidden_traceback() -> None:
    """Spark can leave it out: the exception is named all the same."""
    for around in (UDF, UDF_35, CONNECT):
        assert of_text(around.format("Bad: x: y")) == Cause("Bad", message="x: y")


JAVA = "An error occurred while calling o1.collectToPython.\n: {}\n\tat org.apache.X.y(X.scala:1)\n"
ABORTED = (
    "org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 1.0 failed "
    "4 times, most recent failure: Lost task 0.3 in stage 1.0 (TID 5) (host executor 3): {}"
)
cancelled = functools.partial(Cause, "cancelled", Outcome.CANCELLATION, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[PATH_ALREADY_EXISTS] Path file:/a already exists. SQLSTATE: 42K04",
            Cause("PATH_ALREADY_EXISTS", message="Path file:/a already exists."),
        ),
        (
            "\n[UNRESOLVED_COLUMN.WITH_SUGGESTION] No `a`.\n'Project ['a]",
            Cause("UNRESOLVED_COLUMN.WITH_SUGGESTION"),
        ),
        (
            JAVA.format(ABORTED.format("org.apache.spark.SparkX: [DIVIDE_BY_ZERO] Zero.")),
            Cause("DIVIDE_BY_ZERO"),
        ),
        (
            JAVA.format("org.apache.spark.SparkException: [SPARK_JOB_CANCELLED] Job 3 cancelled x"),
            cancelled("Job 3 cancelled x"),
        ),
        (
            JAVA.format("org.apache.spark.SparkException: Job 3 cancelled part of group g"),
            cancelled("Job 3 cancelled part of group g"),
        ),
        (
            JAVA.format("org.apache.spark.SparkException: Exception thrown in awaitResult: ")
            + "Caused by: org.apache.spark.SparkException: [SPARK_JOB_CANCELLED] Job 4 cancelled y",
            cancelled("Job 4 cancelled y"),
        ),
        (
            "(org.apache.spark.SparkSQLException) [OPERATION_CANCELED] Canceled. SQLSTATE: HY008",
            cancelled("Canceled."),
        ),
        (
            JAVA.format(
                "org.apache.spark.SparkException: Job 9 cancelled because SparkContext was shut "
                "down"
            ),
            Cause("spark_stopped", message="Job 9 cancelled because SparkContext was shut down"),
        ),
        (
            JAVA.format("java.lang.OutOfMemoryError: Java heap space"),
            Cause("java.lang.OutOfMemoryError", message="Java heap space"),
        ),
        (
            JAVA.format(
                ABORTED.format(
                    "org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)"
                )
            )
            + "Caused by: java.io.EOFException\n",
            Cause("python_worker_died", message="Python worker exited unexpectedly (crashed)"),
        ),
        (
            JAVA.format(ABORTED.format("ExecutorLostFailure (executor 3 exited) Reason: killed")),
            Cause("ExecutorLostFailure", message="executor 3 exited) Reason: killed"),
        ),
        (
            JAVA.format(ABORTED.format("java.lang.RuntimeException: Smith")),
            Cause("java.lang.RuntimeException"),
        ),
        (
            JAVA.format(ABORTED.format("java.io.IOException: no Parquet file")),
            Cause("java.io.IOException", message="no Parquet file"),
        ),
        (
            "[USER_RAISED_EXCEPTION] Smith SQLSTATE: P0001",
            Cause("USER_RAISED_EXCEPTION"),
        ),
        (
            "[STREAM_FAILED] Query [id = 1] terminated with exception: [CAST_INVALID_INPUT] a",
            Cause("CAST_INVALID_INPUT"),
        ),
        (
            "[STREAM_FAILED] Query [id = 1] terminated with exception: odd",
            Cause("STREAM_FAILED", message="Query [id = 1] terminated with exception: odd"),
        ),
        (
            "<_MultiThreadedRendezvous of RPC that terminated with:\n\tstatus = StatusCode.UNKNOWN"
            '\n\tdetails = "Java heap space"\n',
            Cause("java.lang.OutOfMemoryError", message="Java heap space"),
        ),
        (
            "<_InactiveRpcError of RPC that terminated with:\n\tstatus = StatusCode.UNAVAILABLE"
            '\n\tdetails = "connection refused"\n',
            Cause("UNAVAILABLE", message="connection refused"),
        ),
        ("requirement failed: a.b: c", None),
        ("The value 'ValueError: x' of type \"STRING\" cannot be cast", None),
    ],
)
def test_what_java_says(text: str, expected: Cause | None) -> None:
    """A condition, a cancellation, or the class that says most."""
    assert of_text(text) == expected
