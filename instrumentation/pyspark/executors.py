"""Opt-in: Python that Spark runs on its executors, told of task by task.

What Spark ships of a function is pickled once. Beside the function we put a few lines of source, by
value, which a worker runs when it unpickles that: where stagewatch is installed they say that a
task begins, elsewhere they do nothing. What is unpickled is the function itself. So there is no
frame of ours in a traceback, no other signature, and nothing to do for a row.
"""

from __future__ import annotations

import copy
import os
from operator import itemgetter
from typing import Any, Final

from opentelemetry import trace

from stagewatch import recording
from stagewatch.instrumentation._base import Function, Patch
from stagewatch.recording import Recording
from stagewatch.safety import report
from stagewatch.stage_calls import drop_first_frame

_BEGIN: Final = """
try:
    from stagewatch.tasks import begin
except Exception:
    pass
else:
    begin(sender)
"""


class _Begin:
    """Unpickled, it says that a task begins, and is None."""

    __slots__ = ("_sender",)

    def __init__(self, sender: tuple[Any, ...]) -> None:
        self._sender = sender

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (_BEGIN, {"sender": self._sender})


class _Shipped:
    """Unpickled, it is *function*, which is unpickled after the beginning: it may fail to."""

    __slots__ = ("_begin", "_function")

    def __init__(self, function: Any, begin: _Begin) -> None:
        self._function = function
        self._begin = begin

    def __reduce__(self) -> tuple[Any, ...]:
        return itemgetter(1), ((self._begin, self._function),)


_last: tuple[Recording | None, _Begin | None] = (None, None)


def _begin() -> _Begin | None:
    """None where nothing is recorded, or nobody has opted in.

    The same for all of a run: Spark sees by its bytes that a function is one it has cached.
    """
    global _last
    active = recording.active
    if active is None or not active.settings.spark_executors:
        return None
    if _last[0] is not active:
        resource = getattr(trace.get_tracer_provider(), "resource", None)
        sender = (
            os.environ.get("STAGEWATCH_RUN", ""),
            os.fspath(active.sink.directory),
            dict(resource.attributes) if resource is not None else {},
            active.settings.exception_messages,
        )
        _last = active, _Begin(sender)
    return _last[1]


def _shipped(command: Any) -> Any:
    """*command* with the function in it, the first of a tuple or all there is, as `_Shipped`."""
    try:
        begin = _begin()
        if begin is None:
            return command
        if isinstance(command, tuple):
            return (_Shipped(command[0], begin), *command[1:])
        return _Shipped(command, begin)
    except Exception as error:
        report(error)
        return command


def _preparing(prepare: Function) -> Function:
    """Of classic Spark: all commands for Python workers are pickled there."""

    def wrapper(sc: Any, command: Any) -> Any:
        try:
            return prepare(sc, _shipped(command))
        except BaseException as error:
            drop_first_frame(error)
            raise

    return wrapper


def _planning(to_plan: Function) -> Function:
    """Of Spark Connect: an expression pickles its function when it becomes part of a plan."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return to_plan(_shipping(self), *args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise

    return wrapper


def _shipping(expression: Any) -> Any:
    """A copy of *expression* that ships its function; itself, if there is nothing to ship."""
    function = _shipped(expression._func)
    if function is expression._func:
        return expression
    copied = copy.copy(expression)
    copied._func = function
    return copied


PATCHES: Final = (
    Patch("pyspark.rdd", "_prepare_for_python_RDD", _preparing),  # until 3.5
    Patch("pyspark.core.rdd", "_prepare_for_python_RDD", _preparing),
    Patch("pyspark.sql.connect.expressions", "PythonUDF.to_plan", _planning),
    Patch("pyspark.sql.connect.plan", "PythonUDTF.to_plan", _planning),
)
