"""Actions of classic PySpark as operations: what makes Spark work, and the few calls that may.

Two calls into the JVM are all that an action costs its thread; transformations are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sized
from typing import Any, Final

from stagewatch import clock, semconv
from stagewatch.instrumentation._base import Arguments, Function, Patch, beside
from stagewatch.instrumentation.pyspark import attaching, contexts, failures
from stagewatch.instrumentation.pyspark.action import Action
from stagewatch.instrumentation.pyspark.in_jvm import Interrupted
from stagewatch.operations import Call, OperationKind, announce, begin, end, end_later
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import drop_first_frame
from stagewatch.tracing import current_stage


class _UnderWay:
    """An action between its call and its return."""

    __slots__ = ("action", "attached", "before", "call")

    def __init__(self) -> None:
        self.call: Call | None = None
        self.attached: attaching.Attached | None = None
        """None where nothing tells of its jobs."""
        self.action: Action | None = None
        self.before: str | None = None
        """The local property, as the user's thread had it."""

    def begin(self, kind: OperationKind, *, lingers: bool, peeks: bool) -> None:
        """What a signal handler raises in here is raised; `end` undoes what was done by then."""
        self.call = call = begin(kind)
        if call is None or call.span is None:
            return
        try:
            call.span.set_attributes(_call_site())
            attached = attaching.here()
            if attached is None:
                return
            stage = current_stage()
            self.action = action = Action(
                contexts.traceparent(call.span.get_span_context()),
                call.span,
                stage.name if stage is not None else "",
                clock.now(),
                not kind.io,
                lingers,
                peeks,
                call.recording,
            )
            if kind.io:
                announce(call)  # its jobs hang under it, and may be told when its process is dead
            attached.work.begin(action)
            self.attached = attached
            self.before = attached.listener.enter(action.context)
        except Exception as fault:
            self._report(fault)

    def end(self, error: BaseException | None, rows_out: int = 0) -> None:
        call, attached, action = self.call, self.attached, self.action
        if call is None:
            return
        if attached is None or action is None:
            end(call, error, rows_out=rows_out)
            return
        action.rows_out = rows_out
        try:
            with guarded:
                attached.work.returned(action, end_later(call, error))
        finally:
            try:
                attached.listener.leave(self.before, action.context)
            except Interrupted:
                attached.work.give_up(action)
            except Exception as fault:
                attached.work.give_up(action)
                self._report(fault)

    def _report(self, fault: Exception) -> None:
        """Of a call into the JVM; that it is gone is no fault of ours."""
        is_over = self.attached is not None and self.attached.work.is_over
        if not (is_over or failures.is_of_lost_jvm(fault)):
            report(fault)


def _call_site() -> dict[str, str | int]:
    """Where the user's own code called: the first frame outside of PySpark and of this product."""
    frame = sys._getframe(3)  # of who called the wrapper
    while frame is not None:
        code = frame.f_code
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("pyspark.", "stagewatch.", "py4j.")):
            return {
                semconv.CODE_FILE_PATH: code.co_filename,
                semconv.CODE_LINE_NUMBER: frame.f_lineno,
            }
        frame = frame.f_back  # type: ignore[assignment]
    return {}


def _action(
    module: str, path: str, name: str, *, may_fold: bool = False, peeks: bool = False
) -> Patch:
    """*may_fold*: it often does nothing in Spark. *peeks*: as in `Action`; these may fold too."""
    may_fold = may_fold or peeks
    kind = OperationKind(name, io=not may_fold, open=True)
    lingers = path.endswith(".toLocalIterator")
    gives_rows = path in _GIVE_ROWS

    def factory(wrapped: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            under_way = _UnderWay()
            try:
                under_way.begin(kind, lingers=lingers, peeks=peeks)
                result = wrapped(*args, **kwargs)
            except BaseException as error:
                under_way.end(error)
                drop_first_frame(error)
                raise
            under_way.end(None, _rows(result) if gives_rows else 0)
            return result

        return wrapper

    return Patch(module, path, factory)


def _rows(result: Any) -> int:
    """Of a list, a dict, a frame of pandas or a table of Arrow; a row is one, and is a tuple."""
    if isinstance(result, tuple):
        return 1
    return len(result) if isinstance(result, Sized) else 0


# --- contexts ---------------------------------------------------------------------------------


def _gateway_ready(args: Arguments, _: Any) -> None:
    """The JVM is launched: the listener is compiled while it starts the session."""
    attaching.compile_for(args[0]._gateway)  # of the class


def _context_ready(args: Arguments, _: Any) -> None:
    attaching.attach(args[0])


def _context_over(args: Arguments, _: Any) -> None:
    """What Spark has posted by then it has told all listeners."""
    if args and attaching.is_attached(args[0]):
        attaching.detach()


# --- the table --------------------------------------------------------------------------------

_FRAME_ACTIONS: Final = (
    "approxQuantile",
    "checkpoint",
    "collect",
    "corr",
    "count",
    "cov",
    "crosstab",
    "first",
    "foreach",
    "foreachPartition",
    "head",
    "isEmpty",
    "localCheckpoint",
    "show",
    "tail",
    "take",
    "toArrow",
    "toLocalIterator",
    "toPandas",
)
_RDD_ACTIONS: Final = (
    "aggregate",
    "collect",
    "collectAsMap",
    "collectWithJobGroup",
    "count",
    "countApprox",
    "countApproxDistinct",
    "countByKey",
    "countByValue",
    "first",
    "fold",
    "foreach",
    "foreachPartition",
    "histogram",
    "isEmpty",
    "lookup",
    "max",
    "mean",
    "meanApprox",
    "min",
    "reduce",
    "reduceByKeyLocally",
    "saveAsHadoopDataset",
    "saveAsHadoopFile",
    "saveAsNewAPIHadoopDataset",
    "saveAsNewAPIHadoopFile",
    "saveAsPickleFile",
    "saveAsSequenceFile",
    "saveAsTextFile",
    "stats",
    "stdev",
    "sum",
    "sumApprox",
    "take",
    "takeOrdered",
    "takeSample",
    "toLocalIterator",
    "top",
    "treeAggregate",
    "treeReduce",
    "variance",
)
_MAY_RUN: Final = ("sortBy", "sortByKey", "zipWithIndex")
"""Transformations that sample or count their input at once."""
_GIVE_ROWS: Final = frozenset(
    {
        *(
            f"DataFrame.{name}"
            for name in ("collect", "first", "head", "tail", "take", "toArrow", "toPandas")
        ),
        *(
            f"RDD.{name}"
            for name in ("collect", "collectAsMap", "lookup", "take", "takeOrdered", "takeSample")
        ),
        "PandasConversionMixin.toPandas",
        "RDD.top",
    }
)
"""What they return are rows."""
_FORMATS: Final = ("csv", "jdbc", "json", "orc", "parquet", "text", "xml")
_WRITES_V2: Final = (
    "append",
    "create",
    "createOrReplace",
    "overwrite",
    "overwritePartitions",
    "replace",
)


def patches(release: tuple[int, int]) -> tuple[Patch, ...]:
    """The table for one release of PySpark: 4.0 moved what is not in Connect too."""
    is_four = release >= (4, 0)
    frame = "pyspark.sql.classic.dataframe" if is_four else "pyspark.sql.dataframe"
    rdd = "pyspark.core.rdd" if is_four else "pyspark.rdd"
    context = "pyspark.core.context" if is_four else "pyspark.context"
    conversion = "pyspark.sql.pandas.conversion"
    rest = "pyspark.sql.readwriter"
    writer, reader = "DataFrameWriter", "DataFrameReader"
    return (
        Patch(context, "SparkContext._ensure_initialized", beside(after=_gateway_ready)),
        Patch(context, "SparkContext._do_init", beside(after=_context_ready)),
        Patch(context, "SparkContext.stop", beside(after=_context_over)),
        _action(context, "SparkContext.runJob", "pyspark.runJob"),
        *(_action(frame, f"DataFrame.{name}", f"pyspark.{name}") for name in _FRAME_ACTIONS),
        _action(conversion, "PandasConversionMixin.toPandas", "pyspark.toPandas"),  # of 3.5
        _action(frame, "DataFrame.rdd", "pyspark.rdd", may_fold=True),  # adaptive plans run
        *(_action(rdd, f"RDD.{name}", f"pyspark.rdd.{name}") for name in _RDD_ACTIONS),
        *(_action(rdd, f"RDD.{name}", f"pyspark.rdd.{name}", peeks=True) for name in _MAY_RUN),
        *(
            _action(rest, f"{writer}.{name}", f"pyspark.write.{name}")
            for name in ("save", *_FORMATS)
        ),
        *(
            _action(rest, f"{writer}.{name}", f"pyspark.{name}")
            for name in ("insertInto", "saveAsTable")
        ),
        *(_action(rest, f"{writer}V2.{name}", f"pyspark.writeTo.{name}") for name in _WRITES_V2),
        *(
            _action(rest, f"{reader}.{name}", f"pyspark.read.{name}", peeks=True)
            for name in ("load", "table", *_FORMATS)
        ),
        _action("pyspark.sql.merge", "MergeIntoWriter.merge", "pyspark.mergeInto"),
        _action("pyspark.sql.session", "SparkSession.sql", "pyspark.sql", may_fold=True),
        _action("pyspark.sql.group", "GroupedData.pivot", "pyspark.pivot", peeks=True),
        _action("pyspark.ml.base", "Estimator.fit", "pyspark.ml.fit"),
    )
