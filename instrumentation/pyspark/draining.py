"""The thread that takes events out of the driver's JVM.

It sleeps between drains, so that a busy Spark costs five calls a second, and ends with its context.
"""

from __future__ import annotations

import atexit
import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from enum import Enum
from typing import Final, Protocol

from stagewatch.instrumentation.pyspark import events
from stagewatch.instrumentation.pyspark.queries import STOPPED
from stagewatch.instrumentation.pyspark.streams import Streams
from stagewatch.instrumentation.pyspark.work import Work
from stagewatch.model import Outcome
from stagewatch.safety import guarded, report

_MOST: Final = 2000
"""Events of one drain."""
_WAIT: Final = 1000
"""Milliseconds that a drain waits for the first one, in the JVM: it holds no lock of Python's."""
_PAUSE: Final = 0.2
_EXIT_PATIENCE: Final = 2.0
"""Seconds that the end of the program waits for what Spark has posted by then: milliseconds,
mostly."""

_logger = logging.getLogger(__name__)


class Teller(Protocol):
    """What tells of a context's events: the listener in its JVM, or what stands in for it."""

    def enter(self, context: str) -> str | None:
        """Jobs of this thread belong to an action from now on; gives what the local property
        was."""

    def leave(self, before: str | None, context: str) -> None:
        """The action is over. Raises `in_jvm.Interrupted` where Spark cannot be told."""

    def left(self, context: str) -> None:
        """`leave`, of one that never entered: its jobs say by a tag whose they are."""

    def drain(self, most: int, wait: int) -> str:
        """At most so many events, as `events.decode` takes them; waits for the first one, so many
        milliseconds at most."""

    def wake(self) -> None:
        """A drain that waits returns, or the next one does not wait."""

    def detach(self) -> None:
        """Tell of nothing that happens from now on."""

    def dropped(self) -> int:
        """Events lost so far."""


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

    def __init__(self, listener: Teller, work: Work, streams: Streams) -> None:
        self._listener = listener
        self._work = work
        self._streams = streams
        self._fate: Fate | None = None
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stagewatch-spark", daemon=True)

    def start(self) -> None:
        atexit.register(self.stop)
        # Of no stage: it works for all of them.
        contextvars.Context().run(self._thread.start)

    def hurry(self, fate: Fate) -> None:
        """Nothing new will happen: take what is there, complete what waits for it, and end."""
        if not self._hurry.is_set():
            self._fate = fate
            self._hurry.set()
            # A JVM that is stopped answers nobody: that is no reason to wait.
            threading.Thread(target=self._wake, name="stagewatch-spark-wake", daemon=True).start()

    def stop(self) -> None:
        """`hurry`, and wait until it has: two seconds at most."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self.hurry(Fate.EXIT)
            self._thread.join(_EXIT_PATIENCE)

    def _wake(self) -> None:
        with suppress(Exception):  # the JVM may be gone, and the thread knows
            self._listener.wake()

    def _run(self) -> None:
        try:
            self._drain()
        except Exception as fault:
            report(fault)
        finally:
            atexit.unregister(self.stop)
            for close in (self._work.close, self._close_streams):
                with guarded:
                    close()

    def _drain(self) -> None:
        until = None
        while True:
            hurries = self._hurry.is_set()
            if hurries and until is None:
                until = time.monotonic() + _EXIT_PATIENCE / 2
            try:
                text = self._listener.drain(_MOST, 10 if hurries else _WAIT)
            except Exception:  # the JVM is gone: there is nothing more to come
                return
            is_empty = len(text) <= 2
            if not is_empty:
                self._take(text)
            for settle in (self._work.settle, self._streams.settle):
                with guarded:
                    settle(is_empty)
            is_settled = is_empty and self._work.is_settled and self._streams.is_settled
            if until is not None and (is_settled or time.monotonic() > until):
                self._say_dropped()
                return
            if not hurries:
                self._hurry.wait(_PAUSE)

    def _close_streams(self) -> None:
        match self._fate:
            case None:
                self._streams.close(Outcome.ERROR, "jvm_gone")
            case Fate.OVER:
                self._streams.close(Outcome.CANCELLATION, STOPPED)
            case Fate.UNWATCHED:
                self._streams.close(Outcome.ERROR, "unknown")
            case Fate.EXIT:
                self._streams.close()

    def _take(self, text: str) -> None:
        for event in _decoded(text):
            for take in (self._work.take, self._streams.take):
                try:
                    take(event)
                except Exception as fault:
                    report(fault)

    def _say_dropped(self) -> None:
        try:
            dropped = self._listener.dropped()
        except Exception:  # the JVM is gone
            return
        if dropped:
            _logger.warning(
                "stagewatch has not heard of %d events of Spark, whose queue was full: figures of "
                "this run are too low (spark.scheduler.listenerbus.eventqueue.capacity)",
                dropped,
            )


def _decoded(text: str) -> Iterator[events.Event]:
    """What is no event, or not one that is known, is left out."""
    body = text.encode("utf-8", "replace")
    try:
        yield from events.decode(body)
    except Exception:
        for one in events.split(body):
            try:
                yield from events.decode(b"[" + one + b"]")
            except Exception as fault:
                report(fault)


def start(listener: Teller, work: Work, streams: Streams) -> Drain:
    """Drain *listener* until its context or the program is over."""
    drain = Drain(listener, work, streams)
    drain.start()
    return drain
