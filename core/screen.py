"""A terminal that shows something ever anew until its user has seen enough, and is left clean."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

Pause = Callable[[float], bool]
"""Waits so many seconds; True if the user wants to leave."""

_LEAVING: Final = b"qQ"


def keep_showing(
    console: Console, interval: float, render: Callable[[int], RenderableType]
) -> None:
    """Show what `render` gives for so many lines, every *interval* seconds, until `q` or a signal.

    Fills the screen while it lasts; what was there before is there again afterwards, and as long as
    it is stopped (Ctrl-Z).
    """
    from rich.live import Live

    shown = Live(console=console, screen=True, auto_refresh=False)

    def leave() -> None:
        shown.stop()
        keys.give_back()

    def come_back() -> None:
        keys.take()
        shown.start(refresh=True)

    with _ended_by_signals(), _keys() as keys, shown:
        pause = _stoppable(keys.pause, leave, come_back)
        for _ in repeatedly(interval, pause):
            shown.update(render(console.height), refresh=True)


def repeatedly(interval: float, pause: Pause) -> Iterator[None]:
    """At once and then every *interval* seconds, until `pause` says that it is enough."""
    due = time.monotonic()
    while True:
        yield
        # What took longer than the interval is not made up for.
        due = max(due + interval, time.monotonic() + interval / 10)
        if pause(due - time.monotonic()):
            return


def no_keys(seconds: float) -> bool:
    """A pause that nobody can cut short."""
    time.sleep(seconds)
    return False


class _Keys(NamedTuple):
    pause: Pause
    take: Callable[[], object] = lambda: None
    give_back: Callable[[], object] = lambda: None
    """The terminal reads lines again until `take`."""


@contextmanager
def _keys() -> Iterator[_Keys]:
    """Single keys instead of lines, and no echo, as long as it lasts."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield _Keys(no_keys)
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def give_back() -> None:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

    tty.setcbreak(descriptor)
    try:
        yield _Keys(
            lambda seconds: _is_left(descriptor, seconds),
            lambda: tty.setcbreak(descriptor),
            give_back,
        )
    finally:
        give_back()


def _is_left(descriptor: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while select.select([descriptor], [], [], max(until - time.monotonic(), 0.0))[0]:
        typed = os.read(descriptor, 64)
        if not typed or any(key in typed for key in _LEAVING):  # nothing: the terminal is gone
            return True
    return False


def _stoppable(pause: Pause, leave: Callable[[], object], come_back: Callable[[], object]) -> Pause:
    """*pause*, in which SIGTSTP stops this process: after *leave*, and *come_back* follows.

    Never while something is being written, which *leave* would write into.
    """
    is_pausing = is_asked = False

    def stop() -> None:
        nonlocal is_asked
        is_asked = False
        leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)  # goes on behind this when it is continued
        signal.signal(signal.SIGTSTP, ask)
        come_back()

    def ask(*_: object) -> None:
        nonlocal is_asked
        is_asked = True
        if is_pausing:
            stop()

    def paused(seconds: float) -> bool:
        nonlocal is_pausing
        is_pausing = True
        try:
            if is_asked:
                stop()
            return pause(seconds)
        finally:
            is_pausing = False

    if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
        signal.signal(signal.SIGTSTP, ask)
    return paused


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process by an exception, so that the terminal is put in order."""
    before = {number: signal.signal(number, _end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
