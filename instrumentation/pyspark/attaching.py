"""The listener in the driver's JVM: made there while the session starts, attached to its context.

No JVM calls back into Python.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any, Final

from msgspec import Struct

from stagewatch import recording
from stagewatch.instrumentation.pyspark import about, compiling, contexts, draining
from stagewatch.instrumentation.pyspark.draining import Fate
from stagewatch.instrumentation.pyspark.in_jvm import InJvm
from stagewatch.instrumentation.pyspark.status_store import StatusStore
from stagewatch.instrumentation.pyspark.streams import Streams
from stagewatch.instrumentation.pyspark.work import Work
from stagewatch.safety import guarded

_CAPACITY: Final = 100_000
"""Events that wait in the JVM for Python: 30 MB at most."""
_QUEUE: Final = "stagewatch"
_PATIENCE: Final = 0.2
"""Seconds that the start of a session waits for the compiler, which takes less than the start."""

_logger = logging.getLogger(__name__)
_guard = threading.Lock()
os.register_at_fork(after_in_child=_guard._at_fork_reinit)  # type: ignore[attr-defined]


class Attached(Struct):
    """A context that is listened to."""

    context: Any
    """`pyspark.SparkContext`."""
    listener: draining.Teller
    work: Work
    streams: Streams
    drain: draining.Drain
    pid: int


class _Making(threading.Thread):
    """One per JVM."""

    def __init__(self, gateway: Any) -> None:
        super().__init__(name="stagewatch-spark-compile", daemon=True)
        self.gateway = gateway
        self.constructor: Any = None
        self.is_over = False

    def run(self) -> None:
        try:
            watching = recording.active
            state = watching.settings.state_dir if watching is not None else None
            self.constructor = compiling.constructor(self.gateway, state)
        except Exception as fault:
            _logger.warning(
                "stagewatch cannot put its listener into the driver's JVM (%s): it reads Spark's "
                "status store instead, which does not tell datasets, skew or plans",
                type(fault).__name__,
            )
        finally:
            self.is_over = True


_making: _Making | None = None
_wanted: Any = None
"""The context that is listened to, or is going to be if that can be had."""
current: Attached | None = None
"""The one context that a process can have."""


def compile_for(gateway: Any) -> None:
    """Begin to make the listener in the JVM behind *gateway*; returns at once."""
    global _making
    with _guard:
        if gateway is not None and (_making is None or _making.gateway is not gateway):
            _making = _Making(gateway)
            _making.start()


def attach(context: Any, patience: float = _PATIENCE) -> None:
    """Listen to a `SparkContext` from now on, or from when the compiler is done."""
    global _wanted
    _wanted = context
    about.describe(context)
    compile_for(context._gateway)
    making = _making
    if making is None:
        return
    making.join(patience)
    if making.is_over:
        _attach(context, making)
    else:
        threading.Thread(
            target=_attach_later, args=(context, making), name="stagewatch-spark", daemon=True
        ).start()


@guarded
def detach() -> None:
    """Listen no more; what has been told by then is recorded."""
    global current, _wanted
    attached, current, _wanted = current, None, None
    if attached is not None and attached.pid == os.getpid():
        with guarded:
            attached.listener.detach()
        is_over = attached.context._jsc is None
        attached.drain.hurry(Fate.OVER if is_over else Fate.UNWATCHED)


def here() -> Attached | None:
    """What listens to the context of this process, if something does."""
    attached = current
    if attached is None:
        find()
        return current
    return attached if attached.pid == os.getpid() and not attached.work.is_over else None


def find() -> None:
    """Listen to a context that was there before us, as soon as that can be had."""
    context = getattr(sys.modules.get("pyspark"), "SparkContext", None)
    context = getattr(context, "_active_spark_context", None)
    if context is not None and context is not _wanted:
        attach(context, 0)


def is_attached(context: Any) -> bool:
    """Whether it is *context* that is listened to."""
    return current is not None and current.context is context


@guarded
def _attach_later(context: Any, making: _Making) -> None:
    making.join()
    _attach(context, making)


@guarded
def _attach(context: Any, making: _Making) -> None:
    global current
    with _guard:
        if context is not _wanted or is_attached(context) or context._jsc is None:
            return
        if current is not None:
            current.drain.hurry(Fate.OVER)
            current = None
        listener = _listener(context, making.constructor)
        if listener is None:
            return
        work = Work()
        streams = Streams(work.runs)
        drain = draining.start(listener, work, streams)
        current = Attached(context, listener, work, streams, drain, os.getpid())


def _listener(context: Any, constructor: Any) -> draining.Teller | None:
    if constructor is None:
        try:
            return StatusStore(context)
        except Exception as fault:
            _logger.warning(
                "stagewatch does not see inside Spark (%s): actions are recorded without their "
                "jobs and stages",
                type(fault).__name__,
            )
            return None
    gateway = context._gateway
    arguments = gateway.new_array(gateway.jvm.java.lang.Object, 2)
    arguments[0], arguments[1] = contexts.PROPERTY, _CAPACITY
    listener = constructor.newInstance(arguments)
    listener.attach(context._jsc.sc(), _QUEUE)
    return InJvm(listener)
