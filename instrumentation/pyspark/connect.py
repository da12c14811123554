"""Spark Connect: what the client has the server execute becomes an operation.

It is named by what the user called, which the stack tells: so every action is covered by the one
place where all of them reach the server. A server elsewhere tells rows and metrics of operators,
but neither jobs nor stages, and nothing of what was written. One in this process
(``remote("local[2]")``) is listened to as in classic mode, and knows the action by its tag.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from types import FrameType, GeneratorType
from typing import Any, Final
from weakref import WeakKeyDictionary

from stagewatch import clock, semconv
from stagewatch.instrumentation._base import Function, Patch, argument
from stagewatch.instrumentation._datasets import declared
from stagewatch.instrumentation.pyspark import attaching, plans
from stagewatch.instrumentation.pyspark.action import Action
from stagewatch.instrumentation.pyspark.bounded import keep
from stagewatch.instrumentation.pyspark.contexts import traceparent
from stagewatch.model import Dataset
from stagewatch.operations import Call, OperationKind, announce, begin, end_later, resume, suspend
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import driver, drop_first_frame
from stagewatch.tracing import current_stage

TAG: Final = "stagewatch-"
"""Before the `traceparent`, in a tag of the operation: at the server it is the end of one of the
job tags, which ``listener.java`` reads, and tasks, in their local property ``spark.job.tags``."""

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
_MOST_VIEWS: Final = 10_000
"""Of one client."""


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
        found = plans.reads(plan, views, _is_here(client))
        for known_as in (name, f"global_temp.{name}"):
            keep(views, known_as, found, _MOST_VIEWS)


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
        self._action: Action | None = None
        self._attached: attaching.Attached | None = None
        self._tag = ""
        self._attributes: dict[str, Any] = {}
        self._nodes: list[plans.Node] = []
        self._rows = 0
        self._bytes = 0
        self._shows = plans.shows(plans.kind(request.plan))
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
        call = self._call = begin(_kind(name))
        if call is None or call.span is None:
            return
        call.span.set_attributes(
            {**place, semconv.SPARK_CONNECT_OPERATION_ID: self._request.operation_id}
        )
        context = traceparent(call.span.get_span_context())
        self._tag = TAG + context
        self._request.tags.append(self._tag)
        attached = attaching.here() if _serves(self._client) else None
        if attached is not None:
            stage = current_stage()
            of = stage.name if stage is not None else ""
            self._action = Action(
                context, call.span, of, clock.now(), False, False, False, call.recording
            )
            self._attached = attached
            attached.work.begin(self._action)
            announce(call)

    def _look(self, response: Any) -> None:
        # By name: the classes have moved between Spark's versions.
        match type(response).__name__:
            case "RecordBatch":
                if not self._shows:
                    self._rows += response.num_rows
                    self._bytes += response.nbytes
                    self._attributes[semconv.SPARK_RESULT_BYTES] = self._bytes
            case "PlanMetrics":
                self._nodes.append(plans.node(response))
            case "PlanObservedMetrics":
                self._attributes.update(plans.observed(response))
            case "dict":
                made = response.get("sql_command_result")
                self._is_query = made is not None and made.WhichOneof("rel_type") in _QUERIES

    def _end(self, call: Call, error: BaseException | None) -> None:
        later = end_later(call, error)
        plan, tags = self._request.plan, self._request.tags
        if self._tag in tags:
            tags.remove(self._tag)  # the request is the client's, and may be executed again
        if error is None and plans.view(plan) is not None:
            _remember(self._client, plan)
        action, attached = self._action, self._attached
        if action is not None and attached is not None:
            if later is not None:
                later.span.set_attributes(self._attributes)
            action.rows_out = self._rows
            attached.work.returned(action, later)
            try:
                attached.listener.left(action.context)
            except Exception as fault:
                attached.work.give_up(action)
                if not attached.work.is_over:  # else: the JVM is gone
                    report(fault)
        elif later is not None:
            found: dict[str, Any] = {}
            with guarded:
                found = self._figures(plan, error is None)
            later.complete(**found)

    def _figures(self, plan: Any, went_well: bool) -> dict[str, Any]:
        """What `Later.complete` takes."""
        figures = plans.figures(self._nodes)
        tasks = getattr(self._progress, "_ticks", None)
        if tasks:
            figures[semconv.SPARK_TASKS] = tasks
        touches = went_well and not self._is_query and plans.view(plan) is None
        datasets = self._datasets(plan) if touches else []
        attributes = {**self._attributes, **figures}
        if (fingerprint := plans.fingerprint(plan)) is not None:
            attributes[semconv.SPARK_PLAN_FINGERPRINT] = fingerprint
        inputs = [dataset.uri for dataset in datasets if dataset.direction == "in"]
        if len(inputs) < len(datasets) and inputs:
            attributes[semconv.DATASET_INPUTS] = inputs
        return {
            "rows_out": self._rows,
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
        found = [] if written is None else [_written(written.uri)]
        scans = plans.scans(self._nodes)
        for source in read:
            named = [one for one in scans if _names(one, source)]
            mine = named or (scans if len(read) == 1 else [])
            uri = named[0].name.rpartition(" ")[2] if named else source.uri
            rows = sum(int(one.metrics.get("numOutputRows", 0)) for one in mine)
            size = sum(int(one.metrics.get("filesSize", 0)) for one in mine)
            found.append(
                Dataset(
                    uri=uri,
                    direction="in",
                    rows=rows if mine else None,
                    bytes=size or None,
                    declared=declared(uri)[0],
                )
            )
        return found


_QUERIES: Final = frozenset({"sql", "with_relations"})
"""What `spark.sql` makes of a statement that is no command: a plan, not executed yet."""


def _names(scan: plans.Node, source: plans.Source) -> bool:
    """Whether *scan* says, with the table's full name, that it is of *source*."""
    name = f".{scan.name.rpartition(' ')[2]}".lower()
    return source.table is not None and name.endswith(f".{source.table.lower()}")


def _written(uri: str) -> Dataset:
    return Dataset(uri=uri, direction="out", declared=declared(uri)[0])


def _serves(client: Any) -> bool:
    """Whether this process's own JVM is the server of *client*."""
    return "SPARK_LOCAL_REMOTE" in os.environ and _is_here(client)


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
