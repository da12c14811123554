"""The thread that takes events out of the driver's JVM.

It sleeps between drains, so that a busy Spark costs ten calls a second, and ends with its context.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import threading
import time
from contextlib import suppress
from enum import Enum
from typing import Any, Final

from stagewatch.instrumentation.pyspark import events
from stagewatch.instrumentation.pyspark.streams import STOPPED, Streams
from stagewatch.instrumentation.pyspark.work import Work
from stagewatch.model import Outcome
from stagewatch.safety import report

_MOST: Final = 2000
"""Events of one drain."""
_WAIT: Final = 1000
"""Milliseconds that a drain waits for the first one, in the JVM: it holds no lock of Python's."""
_PAUSE: Final = 0.1
_EXIT_PATIENCE: Final = 2.0
"""Seconds that the end of the program waits for what Spark has posted by then: milliseconds,
mostly."""

_logger = logging.getLogger(__name__)


class Fate(Enum):
    """Why there is nothing more to come of a context."""

    EXIT = 0
    """The program ends; what becomes of its queries is its own end's to say."""
    OVER = 1
    """It was stopped."""
    UNWATCHED = 2
    """It goes on without us."""


class Drain:
    """Hands every event to *work* and *streams*, in order, from a thread of its own."""

    def __init__(self, listener: Any, work: Work, streams: Streams) -> None:
        self._listener = listener
        self._streams = streams
        self._consumers: tuple[Work | Streams, ...] = (work, streams)
        self._fate: Fate | None = None
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stagewatch-spark", daemon=True)

    def start(self) -> None:
        atexit.register(self.stop)
        # Of no stage: it works for all of them.
        contextvars.Context().run(self._thread.start)

    def hurry(self, fate: Fate) -> None:
        """Nothing new will happen: take what is there, complete what waits for it, and end."""
        atexit.unregister(self.stop)
        self._fate = fate
        self._hurry.set()
        with suppress(Exception):  # the JVM may be gone, and the thread knows
            self._listener.wake()

    def stop(self, fate: Fate = Fate.EXIT) -> None:
        """`hurry`, and wait until it has: two seconds at most."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self.hurry(fate)
            self._thread.join(_EXIT_PATIENCE)

    def _run(self) -> None:
        until = None
        while True:
            hurries = self._hurry.is_set()
            if hurries and until is None:
                until = time.monotonic() + _EXIT_PATIENCE / 2
            try:
                text = self._listener.drain(_MOST, 10 if hurries else _WAIT)
            except Exception:  # the JVM is gone: there is nothing more to come
                break
            if len(text) > 2:
                self._take(text)
            self._settle()
            is_settled = all(consumer.is_settled for consumer in self._consumers)
            if until is not None and (is_settled or time.monotonic() > until):
                break
            if not hurries:
                self._hurry.wait(_PAUSE)
        self._settle(at_once=True)
        try:
            self._end_queries()
        except Exception as fault:
            report(fault)
        self._say_dropped()

    def _settle(self, *, at_once: bool = False) -> None:
        for consumer in self._consumers:
            try:
                consumer.settle(at_once=at_once)
            except Exception as fault:
                report(fault)

    def _end_queries(self) -> None:
        match self._fate:
            case None:
                self._streams.close(Outcome.ERROR, "jvm_gone")
            case Fate.OVER:
                self._streams.close(Outcome.CANCELLATION, STOPPED)
            case Fate.UNWATCHED:
                self._streams.close(Outcome.ERROR, "unknown")
            case Fate.EXIT:
                pass

    def _take(self, text: str) -> None:
        try:
            found = events.decode(text.encode("utf-8", "surrogatepass"))
        except Exception as fault:
            report(fault)
            return
        for event in found:
            for consumer in self._consumers:
                try:
                    consumer.take(event)
                except Exception as fault:
                    report(fault)

    def _say_dropped(self) -> None:
        try:
            dropped = self._listener.dropped()
        except Exception:
            return
        if dropped:
            _logger.warning(
                "stagewatch has not heard of %d events of Spark, whose queue was full: figures of "
                "this run are too low (spark.scheduler.listenerbus.eventqueue.capacity)",
                dropped,
            )


def start(listener: Any, work: Work, streams: Streams) -> Drain:
    """Drain *listener* until its context or the program is over."""
    drain = Drain(listener, work, streams)
    drain.start()
    return drain
