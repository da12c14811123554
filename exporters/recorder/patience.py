"""A recorder whose history cannot be opened, on a full disk, say: it stays, and tries again.

It is there for those who call meanwhile: their pidfds keep how they end, however long it takes.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from selectors import BaseSelector
from typing import TypeVar

from stagewatch.exporters.recorder.deposit import Deposit
from stagewatch.exporters.recorder.door import Caller, Door
from stagewatch.exporters.recorder.watching.watch import journals

_logger = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0

Opened = TypeVar("Opened")


def open_patiently(
    opening: Callable[[], Opened], room: Path, door: Door, selector: BaseSelector, deposit: Deposit,
    callers: list[Caller], idle_seconds: float,
) -> Opened | None:  # fmt: skip
    """What *opening* returns, as soon as it raises no sqlite3.OperationalError or OSError any more.

    Who calls until then joins *callers*. None if for *idle_seconds* no journal was there to be
    taken in: then the door is left.
    """
    pause = _FIRST_PAUSE
    began = busy = time.monotonic()
    while True:
        try:
            opened = opening()
        except (sqlite3.OperationalError, OSError) as error:
            if pause == _FIRST_PAUSE:
                _say("the history cannot be written (%s): all waits in the journals", error)
        else:
            if pause > _FIRST_PAUSE:
                _say("the history can be written again, after %.1f s", time.monotonic() - began)
            return opened
        until = time.monotonic() + pause
        pause = min(2 * pause, _LONGEST_PAUSE)
        while (left := until - time.monotonic()) > 0:
            selector.select(left)
            callers += _held(door.callers(), deposit)
        if _is_needed(room):
            busy = time.monotonic()
        elif time.monotonic() - busy >= idle_seconds and not door.has_visitors():
            callers += _held(door.leave(), deposit)
            if not (_is_needed(room) or door.has_visitors()):
                return None
            callers += _held(door.reopen(), deposit)


def _held(callers: list[Caller], deposit: Deposit) -> list[Caller]:
    found = []
    for caller in callers:
        if caller.asks is not None:
            caller.asks.close()  # there is no answer, and it need not wait for one
            continue
        if caller.key and caller.pidfd is not None:
            deposit.put(caller.key, caller.pidfd)
        found.append(caller)
    return found


def _is_needed(room: Path) -> bool:
    try:
        return bool(journals(room))
    except OSError:  # it was deleted
        return False


def _say(words: str, what: object) -> None:
    with suppress(OSError):  # the log may lie on the same disk
        _logger.warning(f"stagewatch: {words}", what)
