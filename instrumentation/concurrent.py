"""Threads and pools: what they do belongs to the stage that asked for it.

Upstream's instrumentor of threads stands in every traceback and knows nothing of processes; it is
not loaded beside this one. Pools that send work to other hosts are left alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from stagewatch import carrying
from stagewatch.carrying import back, carried, go
from stagewatch.instrumentation._base import (
    UNSEEN,
    Arguments,
    Function,
    Instrumentor,
    Patch,
    beside,
)
from stagewatch.safety import guarded
from stagewatch.stage_calls import drop_first_frame

_PLACE = "_stagewatch_here"
"""Attribute of a thread or an item of a pool that is yet to run."""


def _remember(args: Arguments, _: Any = None) -> None:
    """Where this thread, or item, was asked for."""
    if args:
        args[0].__dict__[_PLACE] = carrying.here()


def _thread_begins(args: Arguments, _: Any) -> None:
    """After the first that a new thread calls, and before the user's code runs in it."""
    go(args[0].__dict__.pop(_PLACE, None))


def _runs(wrapped: Function) -> Function:
    """Of the method that runs it; it catches what the user's code raises."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        tokens = None
        try:
            with guarded:
                tokens = go(vars(args[0]).get(_PLACE))
            return wrapped(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise
        finally:
            back(tokens)
            # What the user's code raised keeps this frame, as the caller of theirs: with the item,
            # which has the exception, that would be a cycle.
            del args, kwargs

    return wrapper


def _send(args: Arguments, _: Any) -> None:
    """An item whose function goes to a worker process."""
    args[0].fn = _sent(args[0].fn)


def _apply(wrapped: Function) -> Function:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if len(args) > 1:
            args = (args[0], _sent(args[1]), *args[2:])
        elif "func" in kwargs:
            kwargs["func"] = _sent(kwargs["func"])
        try:
            return wrapped(*args, **kwargs)
        except BaseException as error:
            drop_first_frame(error)
            raise

    return wrapper


def _generate_tasks(wrapped: Function) -> Function:
    """Of a generator that another thread will run, with what the user iterates over inside."""

    def wrapper(self: Any, job: Any, function: Any, iterable: Any) -> Any:
        tasks = wrapped(self, job, _sent(function), iterable)
        place = carrying.here()
        return tasks if place is None else _from(place, tasks)

    return wrapper


def _from(place: carrying.Here, tasks: Iterator[Any]) -> Iterator[Any]:
    while True:
        tokens = go(place)
        try:
            task = next(tasks)
        except StopIteration:
            return
        except BaseException as error:
            drop_first_frame(error)
            raise
        finally:
            back(tokens)
        yield task
        del task


_from.__code__ = _from.__code__.replace(co_filename=UNSEEN)


def _sent(function: Any) -> Any:
    with guarded:
        if _workers_are_like_us():
            return carried(function)
    return function


def _workers_are_like_us() -> bool:
    """Whether workers can import what we can: not if they are started with another Python."""
    spawn = sys.modules.get("multiprocessing.spawn")
    ours = sys.executable or ""  # None, or empty, where Python is embedded
    return spawn is None or (spawn.get_executable() or "") in (ours, os.fsencode(ours))


class ConcurrentInstrumentor(Instrumentor):
    """Carries the current stage into threads, and into the workers of local pools."""

    library = "threading"
    requires = ()

    def patches(self) -> tuple[Patch, ...]:
        """Internals: what is public stays what users may replace, compare and inspect."""
        remembers, sends = beside(after=_remember), beside(after=_send)
        loky = ("joblib.externals.loky.process_executor", "loky.process_executor")
        return (
            Patch("threading", "Thread.start", beside(_remember)),
            Patch("threading", "Thread._set_ident", beside(after=_thread_begins)),
            Patch("concurrent.futures.thread", "_WorkItem.__init__", remembers),
            Patch("concurrent.futures.thread", "_WorkItem.run", _runs),
            Patch("concurrent.futures.process", "_WorkItem.__init__", sends),
            Patch("multiprocessing.pool", "Pool.apply_async", _apply),
            Patch("multiprocessing.pool", "Pool._guarded_task_generation", _generate_tasks),
            *(Patch(module, "_WorkItem.__init__", sends) for module in loky),
            # joblib hands on the rest of its work from threads of the pool.
            Patch("joblib.parallel", "BatchCompletionCallBack.__init__", remembers),
            Patch("joblib.parallel", "BatchCompletionCallBack.__call__", _runs),
        )
