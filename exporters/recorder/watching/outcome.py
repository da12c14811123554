"""How a process ended, from what the kernel says and what the process itself wrote down."""

from __future__ import annotations

import os
import signal
from typing import Final

from msgspec import Struct

from stagewatch.exporters.recorder.watching.vitals import Vitals
from stagewatch.model import Outcome
from stagewatch.records import RunExiting


class Verdict(Struct, frozen=True):
    """Outcome and cause of a run, or of a stage that its process left open."""

    outcome: Outcome
    error_type: str | None = None
    """``error.type``: a Python class, or a word from a closed set; None after a success."""


class Death(Struct, frozen=True):
    """What is known of a process's end from outside."""

    wait_status: int | None = None
    """As ``wait(2)`` gives it; None where it could not be had."""
    at: int | None = None
    """When it was seen, ns; None if it may be long ago."""
    lost_host: bool = False
    """Another boot of the host has begun since."""
    oom_killed: bool = False
    """Its SIGKILL came for want of memory (decision 11)."""
    vitals: Vitals | None = None
    """At the last look."""
    uptime: int = 0
    """`stagewatch.measures.uptime` at *at*; 0 where that is not known, or of another boot."""

    @property
    def is_violent(self) -> bool:
        """By a signal or with a code that is not 0, as far as is known."""
        return bool(self.wait_status)


HOST_LOST: Final = Verdict(Outcome.ERROR, "host_lost")
UNKNOWN: Final = Verdict(Outcome.ERROR, "unknown")
OOM_KILLED: Final = Verdict(Outcome.ERROR, "oom_killed")
SUCCESS: Final = Verdict(Outcome.SUCCESS)

_SIGNALS: Final[dict[int, Verdict]] = {
    signal.SIGTERM: Verdict(Outcome.CANCELLATION, "terminated"),
    signal.SIGINT: Verdict(Outcome.CANCELLATION, "interrupted"),
    signal.SIGHUP: Verdict(Outcome.CANCELLATION, "hangup"),
    signal.SIGKILL: Verdict(Outcome.ERROR, "killed"),
    signal.SIGSEGV: Verdict(Outcome.ERROR, "segfault"),
    signal.SIGABRT: Verdict(Outcome.ERROR, "abort"),
}
_INTERRUPTED_EXIT: Final = 128 + signal.SIGINT


def judge(
    wait_status: int | None,
    exiting: RunExiting | None,
    final: bool,
    *,
    lost_host: bool = False,
    oom_killed: bool = False,
) -> Verdict:
    """The verdict on a process that is dead.

    *wait_status* (as ``wait(2)`` gives it) has the last word: what was journaled only names the
    cause of a failure. Without it (None) an exception that was journaled is a failure, but an
    orderly end is not yet a success: the process may have crashed or called ``os._exit(3)`` after
    it wrote its last record. Only where that record is *final*, because nobody outlives the
    process, is it believed. *lost_host*: another boot of the host has begun since.
    *oom_killed*: a SIGKILL came for want of memory. Of a run that was over before, nothing but
    what it said counts.
    """
    if exiting is not None and exiting.outcome is not None:
        return Verdict(Outcome(exiting.outcome), exiting.error_type)
    if wait_status is None:
        if lost_host and exiting is None:
            return HOST_LOST
        return _as_journaled(exiting, final)
    if os.WIFSIGNALED(wait_status):
        if oom_killed and os.WTERMSIG(wait_status) == signal.SIGKILL:
            return OOM_KILLED
        return _by_signal(os.WTERMSIG(wait_status), exiting)
    return _by_exit_code(os.WEXITSTATUS(wait_status), exiting)


def _by_signal(number: int, exiting: RunExiting | None) -> Verdict:
    # An interpreter that ends by KeyboardInterrupt kills itself with SIGINT.
    if number == signal.SIGINT and _was_interrupted(exiting):
        return Verdict(Outcome.CANCELLATION, "KeyboardInterrupt")
    return _SIGNALS.get(number) or Verdict(Outcome.ERROR, f"signal_{number}")


def _by_exit_code(code: int, exiting: RunExiting | None) -> Verdict:
    if code == 0:
        return SUCCESS
    if code == _INTERRUPTED_EXIT and _was_interrupted(exiting):
        return Verdict(Outcome.CANCELLATION, "KeyboardInterrupt")
    if exiting is None or exiting.error_type in (None, "SystemExit"):
        return Verdict(Outcome.FAILURE, f"exit_{code}")
    return Verdict(Outcome.FAILURE, exiting.error_type)


def _as_journaled(exiting: RunExiting | None, final: bool) -> Verdict:
    if exiting is None:
        return UNKNOWN
    if _was_interrupted(exiting):
        return Verdict(Outcome.CANCELLATION, "KeyboardInterrupt")
    if exiting.error_type not in (None, "SystemExit"):
        return Verdict(Outcome.FAILURE, exiting.error_type)
    if exiting.exit_code:
        return Verdict(Outcome.FAILURE, f"exit_{exiting.exit_code}")
    has_exited = exiting.error_type == "SystemExit" and exiting.exit_code is None
    return SUCCESS if final and not has_exited else UNKNOWN


def _was_interrupted(exiting: RunExiting | None) -> bool:
    return exiting is not None and exiting.error_type == "KeyboardInterrupt"
