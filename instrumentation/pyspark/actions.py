"""Actions of classic PySpark as operations: what makes Spark work, and the few calls that may.

Two calls into the JVM are all that an action costs its thread; transformations are left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sized
from typing import Any, Final

from stagewatch import clock, semconv
from stagewatch.instrumentation._base import Function, Patch
from stagewatch.instrumentation.pyspark import attaching, contexts
from stagewatch.instrumentation.pyspark.work import Action
from stagewatch.operations import Call, OperationKind, announce, begin, end, end_later
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import drop_first_frame
from stagewatch.tracing import current_stage


class _UnderWay:
    """An action between its call and its return."""

    __slots__ = ("action", "attached", "before", "call")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.attached: attaching.Attached | None = None
        self.action: Action | None = None
        self.before: str | None = None
        """The local property, as the user's thread had it."""


def _begin(kind: OperationKind, lingers: bool) -> _UnderWay | None:
    call = begin(kind)
    if call is None:
        return None
    under_way = _UnderWay(call)
    try:
        if call.span is None:
            return under_way
        call.span.set_attributes(_call_site())
        attached = attaching.here()
        if attached is not None:
            stage = current_stage()
            action = Action(
                call.recording,
                contexts.traceparent(call.span.get_span_context()),
                call.span,
                stage.name if stage is not None else "",
                clock.now(),
                not kind.io,
                lingers,
            )
            under_way.attached, under_way.action = attached, action
            attached.work.begin(action)
            if kind.io:
                announce(call)  # its jobs hang under it, and may be told when its process is dead
            under_way.before = attached.listener.enter(action.context)
    except Exception as fault:
        report(fault)
    return under_way


def _end(under_way: _UnderWay, error: BaseException | None, result: Any = None) -> None:
    attached, action = under_way.attached, under_way.action
    if attached is None or action is None:
        end(under_way.call, error)
        return
    later = end_later(under_way.call, error)
    with guarded:
        if isinstance(result, Sized) and not isinstance(result, str | bytes):
            action.rows_out = len(result)
    attached.work.returned(action, later)
    with guarded:
        attached.listener.leave(under_way.before, action.context)


def _call_site() -> dict[str, str | int]:
    """Where the user's own code called: the first frame outside of PySpark and of this product."""
    frame = sys._getframe(3)
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


def _action(module: str, path: str, name: str, *, may_fold: bool = False) -> Patch:
    kind = OperationKind(name, io=not may_fold, open=True)
    lingers = path.endswith("toLocalIterator")

    def factory(wrapped: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            under_way = None
            try:
                under_way = _begin(kind, lingers)
                result = wrapped(*args, **kwargs)
            except BaseException as error:
                if under_way is not None:
                    _end(under_way, error)
                drop_first_frame(error)
                raise
            if under_way is not None:
                _end(under_way, None, result)
            return result

        return wrapper

    return Patch(module, path, factory)


# --- contexts ---------------------------------------------------------------------------------


def _gateway_ready(wrapped: Function) -> Function:
    """Of what launches the JVM: the listener is compiled while it starts the session."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise
        with guarded:
            attaching.compile_for(args[0]._gateway)  # of the class
        return result

    return wrapper


def _context_ready(wrapped: Function) -> Function:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise
        with guarded:
            attaching.attach(args[0])
        return result

    return wrapper


def _context_over(wrapped: Function) -> Function:
    """What Spark has posted by then it tells all listeners before it stops."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise
        with guarded:
            if args and attaching.is_attached(args[0]):
                attaching.detach()
        return result

    return wrapper


# --- the table --------------------------------------------------------------------------------

_FRAMES: Final = ("pyspark.sql.classic.dataframe", "pyspark.sql.dataframe")
"""Since 4.0, before: there the second holds what Connect has in common with it."""
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
_FORMATS: Final = ("csv", "jdbc", "json", "orc", "parquet", "text", "xml")
_WRITES_V2: Final = (
    "append",
    "create",
    "createOrReplace",
    "overwrite",
    "overwritePartitions",
    "replace",
)


def _classic() -> tuple[Patch, ...]:
    rdd = "pyspark.rdd"
    rdds = ("pyspark.core.rdd", rdd)
    contexts_in = ("pyspark.core.context", "pyspark.context")
    writer, reader, rest = "DataFrameWriter", "DataFrameReader", "pyspark.sql.readwriter"
    return (
        *(Patch(it, "SparkContext._ensure_initialized", _gateway_ready) for it in contexts_in),
        *(Patch(it, "SparkContext._do_init", _context_ready) for it in contexts_in),
        *(Patch(it, "SparkContext.stop", _context_over) for it in contexts_in),
        *(
            _action(it, f"DataFrame.{name}", f"pyspark.{name}")
            for it in _FRAMES
            for name in _FRAME_ACTIONS
        ),
        _action(
            "pyspark.sql.pandas.conversion",
            "PandasConversionMixin.toPandas",
            "pyspark.toPandas",
        ),
        *(
            _action(it, f"RDD.{name}", f"pyspark.rdd.{name}")
            for it in rdds
            for name in _RDD_ACTIONS
        ),
        *(
            _action(it, f"RDD.{name}", f"{rdd}.{name}", may_fold=True)
            for it in rdds
            for name in _MAY_RUN
        ),
        *(_action(it, "SparkContext.runJob", "pyspark.runJob") for it in contexts_in),
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
            _action(rest, f"{reader}.{name}", f"pyspark.read.{name}", may_fold=True)
            for name in ("load", "table", *_FORMATS)
        ),
        _action("pyspark.sql.merge", "MergeIntoWriter.merge", "pyspark.mergeInto"),
        _action("pyspark.sql.session", "SparkSession.sql", "pyspark.sql", may_fold=True),
        _action("pyspark.sql.group", "GroupedData.pivot", "pyspark.pivot", may_fold=True),
        _action("pyspark.ml.base", "Estimator.fit", "pyspark.ml.fit"),
    )


PATCHES: Final = _classic()
