"""A signal handler that raises, as for a timeout, wherever our code is about to call something."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

_LAST = frozenset({"end", "forget"})
"""They end an operation; what comes between their first line and their effect is theirs."""


class Interrupted(Exception):
    """Raised by the handler."""


def everywhere(call: Callable[[], Any], files: set[str]) -> Iterator[int]:
    """Do *call* once for each function that code of *files* calls on the way, with the signal at
    its very beginning; it has to raise `Interrupted`. Yields after each."""
    point = 0
    before = signal.signal(signal.SIGUSR1, _handler)
    try:
        while _interrupt(call, files, point):
            point += 1
            yield point
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert point > 0


def _handler(*_: Any) -> None:
    raise Interrupted


def _interrupt(call: Callable[[], Any], files: set[str], point: int) -> bool:
    left, sent = point, False

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal left, sent
        caller = frame.f_back
        if event != "call" or caller is None or caller.f_code.co_filename not in files:
            return
        code = frame.f_code
        # A generator that is dropped half-way is "called" too, with nobody to raise to.
        if code.co_name in _LAST or code.co_flags & inspect.CO_GENERATOR or sent:
            return
        if left == 0:
            sent = True
            signal.raise_signal(signal.SIGUSR1)
        left -= 1

    sys.setprofile(profile)
    try:
        call()
    except Interrupted:
        assert sent
        return True
    finally:
        sys.setprofile(None)
    if sent:
        pytest.fail(f"the signal at point {point} was swallowed")
    return False
