"""Instrumentation must never break the program it watches."""

from __future__ import annotations

import logging
import signal
from contextlib import ContextDecorator
from types import TracebackType

_logger = logging.getLogger(__name__)
_seen: set[tuple[str, int]] = set()
swallowed = 0
"""Errors of ours so far, in this process; telemetry's own health counts them."""


class _Guarded(ContextDecorator):
    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        if not isinstance(error, Exception) or is_of_a_signal_handler(error):
            return False
        report(error)
        return True


def is_of_a_signal_handler(error: BaseException) -> bool:
    """Whether a signal handler of the user's raised *error*, while our code happened to run."""
    codes = set()
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        codes.add(getattr(getattr(handler, "__func__", handler), "__code__", None))
    codes.discard(None)
    tb = error.__traceback__
    while tb is not None:
        if tb.tb_frame.f_code in codes:
            return True
        tb = tb.tb_next
    return False


def report(error: Exception) -> None:
    """Log an error of ours, once per place, and count it.

    For ``except`` blocks. Raises *error* on, if a signal handler of the user's raised it (say, a
    timeout): it is not ours to swallow.
    """
    global swallowed
    if is_of_a_signal_handler(error):
        raise error
    swallowed += 1
    try:
        tb = error.__traceback__
        while tb is not None and tb.tb_next is not None:
            tb = tb.tb_next
        place = (tb.tb_frame.f_code.co_filename, tb.tb_lineno) if tb else ("", 0)
        if place in _seen:
            return
        _seen.add(place)
        # The type and the place are ours; the message may carry a value of the user's.
        _logger.warning(
            "stagewatch failed (%s at %s:%d); your program goes on without this telemetry",
            type(error).__name__,
            *place,
        )
    except Exception:  # a logging handler of the user's may raise: that is no reason to break them
        pass


guarded = _Guarded()
"""Log, and swallow, an error of ours. Wraps telemetry code only, never a user's call."""
