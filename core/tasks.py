"""A Python worker of Spark tells of the tasks it works for: a span each, in a journal of its own.

On an executor. `stagewatch.instrumentation.pyspark.executors` ships a call of `begin` with every
function of the user's, and a task ends where the worker itself is done with it. A worker is forked
by Spark's daemon, serves one task after the other, and may be killed whenever it has none; so its
journal is made with the first task, and nothing waits for a later moment.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, TraceFlags

from stagewatch import clock, redaction, semconv
from stagewatch.config import Settings, load_or_default
from stagewatch.exporters import state
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.failures import error_place, error_type
from stagewatch.model import Pipeline
from stagewatch.opened import Opened, new_journal, process_started
from stagewatch.program import ParentRun, parent_run
from stagewatch.recording import Run
from stagewatch.records import Attributes, ScopeDefined, SpanEnded, SpanStarted
from stagewatch.safety import guarded
from stagewatch.task_parents import parent_of_task

_UNSET, _ERROR = 0, 2
_SCOPE = 0
_HUNG_UP = (BrokenPipeError, ConnectionResetError, EOFError)
"""What a worker meets when Spark has seen enough, as after `limit`."""


class Sender(NamedTuple):
    """Who has shipped a function; travels as a plain tuple."""

    run: str
    """``STAGEWATCH_RUN`` of the driver's process."""
    room: str
    """Of the driver."""
    resource: dict[str, Any]
    messages: bool
    """``STAGEWATCH_EXCEPTION_MESSAGES``."""


class _Task(NamedTuple):
    """One that is under way."""

    opened: Opened
    started: SpanStarted
    id: int
    cpu: float
    messages: bool


_task: _Task | None = None
_opened: dict[tuple[int, str], Opened | None] = {}
"""By pid and run; None where it could not be opened."""


@guarded
def begin(sender: tuple[Any, ...]) -> None:
    """A function arrives that is to be called for the task of this worker. Never raises.

    A task's further functions, and what is unpickled where there is no task, count for nothing.
    """
    global _task
    context = getattr(sys.modules.get("pyspark.taskcontext"), "TaskContext", None)
    task = context.get() if context is not None else None
    if task is None:
        return
    known = _task
    if known is not None and known.id == task.taskAttemptId() and _is_own(known):
        return
    _task = None
    from_driver = Sender(*sender)
    parent = parent_run(from_driver.run)
    worker = _worker(sys._getframe())
    if parent is None or worker is None:
        return
    properties = task._localProperties or {}
    above = parent_of_task(properties, task.stageId()) or (
        bytes.fromhex(parent.trace_id),
        bytes.fromhex(parent.span_id),
        parent.sampled,
    )
    trace_id, span_id, sampled = above
    opened = _opening(from_driver, parent) if sampled else None
    if opened is None:
        return
    _watch(worker)
    started = SpanStarted(
        semconv.SPARK_PYTHON_TASK,
        trace_id,
        os.urandom(8),
        span_id,
        clock.now(),
        0,
        _SCOPE,
        {
            semconv.SPAN_ROLE: semconv.ROLE_DETAIL,
            semconv.SPARK_STAGE_ID: task.stageId(),
            semconv.SPARK_PARTITION_ID: task.partitionId(),
            semconv.SPARK_TASK_ID: task.taskAttemptId(),
            semconv.SPARK_TASK_ATTEMPT: task.attemptNumber(),
            semconv.HOST_NAME: os.uname().nodename,
        },
    )
    opened.journal.append(started)
    _task = _Task(opened, started, task.taskAttemptId(), time.process_time(), from_driver.messages)


@guarded
def _end(error: BaseException | None) -> None:
    global _task
    task, _task = _task, None
    if task is None or not _is_own(task):
        return
    started, end = task.started, clock.now()
    attributes: Attributes = {
        **(started.attributes or {}),
        semconv.SPARK_PYTHON_CPU_TIME: time.process_time() - task.cpu,
    }
    failure = None if error is None or _has_hung_up(error) else error
    events: list[tuple[str, int, Attributes | None]] | None = None
    if failure is not None:
        attributes[semconv.ERROR_TYPE] = error_type(failure)
        if place := error_place(failure):
            attributes[semconv.ERROR_PLACE] = place
        events = [("exception", end, _exception(failure, task.messages))]
    task.opened.journal.append(
        SpanEnded(
            started.name,
            started.trace_id,
            started.span_id,
            started.parent_span_id,
            started.start,
            end,
            started.kind,
            _UNSET if failure is None else _ERROR,
            None,
            started.scope,
            attributes,
            events,
        )
    )


def _is_own(task: _Task) -> bool:
    """Not of the process that this one was forked from."""
    return task.opened.journal.key.startswith(f"{os.getpid()}.")


def _has_hung_up(error: BaseException) -> bool:
    """Whether Spark did, and not the user's own pipe."""
    if not isinstance(error, _HUNG_UP):
        return False
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    spark = os.path.dirname(sys.modules["pyspark"].__file__ or "") + os.sep
    return [file for file in files if file != socket.__file__][-1].startswith(spark)


def _exception(error: BaseException, messages: bool) -> Attributes:
    """As the SDK records one."""
    told = traceback.TracebackException.from_exception(error)
    return redaction.attributes(
        {
            "exception.type": error_type(error),
            "exception.message": str(told),
            "exception.stacktrace": "".join(told.format()),
            "exception.escaped": "True",
        },
        messages=messages,
    )


# --- the worker -----------------------------------------------------------------------------------


def _worker(frame: Any) -> dict[str, Any] | None:
    """Globals of ``pyspark.worker``, out of which this is called: a module, or `__main__`."""
    while frame is not None:
        if "report_times" in frame.f_globals:
            return frame.f_globals  # type: ignore[no-any-return]
        frame = frame.f_back
    return None


def _watch(worker: dict[str, Any]) -> None:
    """Be told by the worker's own functions when it is done with a task, and with what."""
    failing = "handle_worker_exception"  # since 4.0; before, all that is written with a length
    for name, hook in (
        ("report_times", _done),
        (failing if failing in worker else "write_with_length", _failed),
    ):
        if not hasattr(worker[name], "stagewatch"):
            worker[name] = hook(worker[name])
            worker[name].stagewatch = True


def _done(report_times: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _end(None)
        return report_times(*args, **kwargs)

    return wrapper


def _failed(tell: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        error = sys.exc_info()[1]
        if error is not None:
            _end(error)
        return tell(*args, **kwargs)

    return wrapper


# --- its journal ----------------------------------------------------------------------------------


def _opening(sender: Sender, parent: ParentRun) -> Opened | None:
    whose = os.getpid(), parent.run_id
    if whose not in _opened:
        _opened[whose] = None  # should it fail, then once
        _opened[whose] = _open(sender, parent)
    return _opened[whose]


def _open(sender: Sender, parent: ParentRun) -> Opened:
    """Journal and page of this worker: beside those of the driver, if it runs on this host; else
    where this host has them."""
    here = Path(sender.room)
    is_with_driver = parent.is_alive and here.is_dir()
    settings = Settings()
    if is_with_driver:
        clock.follow(parent.clock)
        directory, room = here.parent.parent, here
    else:
        settings = load_or_default(os.environ, Path("/"))[0].settings
        directory, room = state.place(settings.state_dir, os.environ)
    journal = new_journal(room, settings)
    span = SpanContext(
        int(parent.trace_id, 16), int(parent.span_id, 16), True, TraceFlags(int(parent.sampled))
    )
    opened = Opened(
        run=Run(parent.run_id, Pipeline(name=parent.pipeline), Context(), span),
        settings=settings,
        journal=journal,
        spans=None,
        state_directory=directory,
        room=room,
        resource=_resource(sender.resource),
        span=None,
        owner=0,
        ships_itself=False,
        elsewhere=False,
    )
    journal.append(process_started(opened))
    journal.append(ScopeDefined(_SCOPE, semconv.SCOPE, None, semconv.SCHEMA_URL))
    if is_with_driver:
        recorder_start.introduce(room, journal.key, os.environ)
    else:  # no function of the user's has run in this worker, so that nobody sees the start
        recorder_start.announce(room, journal.key, os.environ, directory)
    return opened


def _resource(driver: Mapping[str, Any]) -> dict[str, Any]:
    """The driver's, but for what is true of its process and its host alone."""
    return {
        name: value for name, value in driver.items() if not name.startswith(("host.", "process."))
    }
