"""Spark Connect: what the client has the server execute becomes an operation.

It is named by what the user called, which the stack tells: so every action is covered by the one
place where all of them reach the server. The server tells rows and metrics of operators, but
neither jobs nor stages.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from types import FrameType, GeneratorType
from typing import Any, Final
from weakref import WeakKeyDictionary

from stagewatch import semconv
from stagewatch.instrumentation._base import Function, Patch, argument
from stagewatch.instrumentation.pyspark import plans
from stagewatch.instrumentation.pyspark.contexts import traceparent
from stagewatch.model import Dataset
from stagewatch.operations import Call, OperationKind, begin, end_later, resume, suspend
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import driver, drop_first_frame

TAG: Final = "stagewatch-"
"""Before the `traceparent`, in a tag of the operation: at the server it is part of one of the job
tags, which tasks read in their local property ``spark.job.tags``."""

_CLIENT: Final = "pyspark.sql.connect.client"
_OTHERS: Final = (f"{_CLIENT}.", "stagewatch.")
_PREFIXES: Final[Mapping[str, str]] = {
    "DataFrameWriter": "write.",
    "DataFrameWriterV2": "writeTo.",
    "MergeIntoWriter": "mergeInto.",
}
_TABLES: Final = frozenset({"saveAsTable", "insertInto"})
_HERE: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})

_views: WeakKeyDictionary[Any, dict[str, tuple[plans.Source, ...]]] = WeakKeyDictionary()
"""What the temporary views that a client has made read."""


@functools.cache
def _kind(name: str) -> OperationKind:
    return OperationKind(f"pyspark.{name}", io=True, open=True)


def _around(wrapped: Function) -> Function:
    def executing(*args: Any, **kwargs: Any) -> Any:
        try:
            responses = wrapped(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise
        try:
            if type(responses) is GeneratorType:
                execution = _execution(args, kwargs)
                if execution is not None:
                    return driver(execution, responses)
        except Exception as fault:
            report(fault)
        return responses

    return executing


PATCHES: Final = (
    Patch(f"{_CLIENT}.core", "SparkConnectClient._execute_and_fetch_as_iterator", _around),
)


def _execution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Execution | None:
    client, request = args[0], argument(args, kwargs, 1, "req")
    kind = plans.kind(request.plan)
    if kind == "create_dataframe_view":
        _remember(client, request.plan)
    if not plans.executes(kind):
        return None
    return _Execution(client, request, argument(args, kwargs, 3, "progress"))


def _remember(client: Any, plan: Any) -> None:
    """A temporary view is no dataset: what it reads is."""
    name = plans.view(plan)
    if name is not None:
        views = _views.setdefault(client, {})
        views[name] = views[f"global_temp.{name}"] = plans.reads(plan, views, _is_here(client))


class _Execution:
    """One plan on its way, as its responses are asked for: perhaps never, perhaps not to the end.

    What is done between two of them, by those who want their rows one by one, is not part of it.
    """

    def __init__(self, client: Any, request: Any, progress: Any) -> None:
        self._client = client
        self._request = request
        self._progress = progress
        self._begun = False
        self._call: Call | None = None
        self._tag = ""
        self._attributes: dict[str, Any] = {}
        self._nodes: list[plans.Node] = []
        self._rows = 0
        self._bytes = 0
        self._is_query = False

    def go_on(self) -> None:
        with guarded:
            if not self._begun:
                self._begun = True
                self._begin()
            elif self._call is not None:
                resume(self._call)

    def pause(self, result: Any = None) -> None:
        with guarded:
            if self._call is not None:
                suspend(self._call)
                self._look(result)

    def end(self, error: BaseException | None, result: Any = None) -> None:
        with guarded:
            call, self._call = self._call, None
            if call is not None:
                # Not to be asked for the rest is not failing.
                self._end(call, None if isinstance(error, GeneratorExit) else error)

    def _begin(self) -> None:
        name, place = _asked(sys._getframe(1))
        self._call = begin(_kind(name))
        if self._call is None or self._call.span is None:
            return
        self._attributes.update(place)
        self._attributes[semconv.SPARK_CONNECT_OPERATION_ID] = self._request.operation_id
        self._tag = TAG + traceparent(self._call.span.get_span_context())
        self._request.tags.append(self._tag)

    def _look(self, response: Any) -> None:
        # By name: the classes have moved between Spark's versions.
        match type(response).__name__:
            case "RecordBatch":
                self._rows += response.num_rows
                self._bytes += response.nbytes
            case "PlanMetrics":
                self._nodes.append(plans.node(response))
            case "PlanObservedMetrics":
                self._attributes.update(plans.observed(response))
            case "dict":
                made = response.get("sql_command_result")
                self._is_query = made is not None and made.WhichOneof("rel_type") in _QUERIES

    def _end(self, call: Call, error: BaseException | None) -> None:
        later = end_later(call, error, None if error is None else cause(error))
        request, client = self._request, self._client
        if self._tag in request.tags:
            request.tags.remove(self._tag)  # it is the client's, and may be executed again
        if later is None:
            return
        found: dict[str, Any] = {}
        with guarded:
            found = self._figures(request.plan)
            if error is None and plans.view(request.plan) is not None:
                _remember(client, request.plan)
        later.complete(**found)

    def _figures(self, plan: Any) -> dict[str, Any]:
        """What `Later.complete` takes."""
        kind = plans.kind(plan)
        figures = plans.figures(self._nodes)
        tasks = getattr(self._progress, "_ticks", None)
        if tasks:
            figures[semconv.SPARK_TASKS] = tasks
        if self._bytes and not plans.shows(kind):
            figures[semconv.SPARK_RESULT_BYTES] = self._bytes
        datasets = [] if self._is_query else self._datasets(plan)
        attributes = {**self._attributes, **figures}
        if (fingerprint := plans.fingerprint(plan)) is not None:
            attributes[semconv.SPARK_PLAN_FINGERPRINT] = fingerprint
        inputs = [dataset.uri for dataset in datasets if dataset.direction == "in"]
        if len(inputs) < len(datasets) and inputs:
            attributes[semconv.DATASET_INPUTS] = inputs
        return {
            "rows_out": 0 if plans.shows(kind) else self._rows,
            "reads": figures.get(semconv.SPARK_INPUT_RECORDS, 0)
            if plans.scans(self._nodes)
            else None,
            "writes": figures.get(semconv.SPARK_OUTPUT_RECORDS),
            "bytes_in": figures.get(semconv.SPARK_INPUT_BYTES, 0),
            "bytes_out": figures.get(semconv.SPARK_OUTPUT_BYTES, 0),
            "datasets": datasets,
            "attributes": attributes,
        }

    def _datasets(self, plan: Any) -> list[Dataset]:
        """What it wrote, then what it read; rows and bytes where it is clear whose they are."""
        here = _is_here(self._client)
        written = plans.writes(plan, here)
        read = plans.reads(plan, _views.get(self._client, {}), here)
        found = [Dataset(uri=written.uri, direction="out")] if written is not None else []
        for source in read:
            mine = self._scans_of(source, alone=len(read) == 1)
            rows = sum(int(one.metrics.get("numOutputRows", 0)) for one in mine)
            size = sum(int(one.metrics.get("filesSize", 0)) for one in mine)
            found.append(
                Dataset(
                    uri=source.uri,
                    direction="in",
                    rows=rows if mine else None,
                    bytes=size or None,
                )
            )
        return found

    def _scans_of(self, source: plans.Source, alone: bool) -> list[plans.Node]:
        scans = plans.scans(self._nodes)
        if alone or source.table is None:
            return scans if alone else []
        name = source.table.lower()
        return [one for one in scans if f".{one.name.lower()}".endswith(f".{name}")]


_QUERIES: Final = frozenset({"sql", "with_relations"})
"""What `spark.sql` makes of a statement that is no command: a plan, not executed yet."""


def _is_here(client: Any) -> bool:
    return getattr(client, "host", None) in _HERE


def _asked(frame: FrameType | None) -> tuple[str, dict[str, Any]]:
    """Name of what was called in PySpark, and the attributes of the place that called it."""
    name = "execute"
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if not module.startswith(("pyspark.", "stagewatch.")):
            break
        if not module.startswith(_OTHERS):
            *holders, called = frame.f_code.co_qualname.split(".")
            if not called.startswith(("_", "<")) and "<locals>" not in holders:
                name = called
                if holders and called not in _TABLES:
                    name = _PREFIXES.get(holders[-1], "") + called
        frame = frame.f_back
    if frame is None:
        return name, {}
    place = {
        semconv.CODE_FILE_PATH: frame.f_code.co_filename,
        semconv.CODE_LINE_NUMBER: frame.f_lineno,
    }
    return name, place


_RAISED: Final = re.compile(r"^([A-Za-z_][\w.]*)(?::.*)?$", re.MULTILINE)
_condition: Final[tuple[str, ...]] = ("getCondition", "getErrorClass")


def cause(error: BaseException) -> str:
    """``error.type`` of what the client raised: the user's own exception where a Python function
    of theirs raised it, else Spark's error condition, else the class."""
    message = str(error)
    if type(error).__name__ == "PythonException" and "\n  File " in message:
        raised = _RAISED.search(message.rpartition("\n  File ")[2])
        if raised is not None:
            return raised[1]
    for name in _condition:
        ask: Callable[[], Any] | None = getattr(error, name, None)
        if ask is not None and (condition := ask()):
            return str(condition)
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
