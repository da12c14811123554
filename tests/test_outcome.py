"""Every way a process ends, and what it is called."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from stagewatch.exporters.recorder.watching.outcome import Verdict, judge
from stagewatch.model import Outcome
from stagewatch.records import RunExiting


def exiting(error_type: str | None = None, exit_code: int | None = 0) -> RunExiting:
    return RunExiting("run", 1, error_type, None, None, exit_code, {})


def exited(code: int) -> int:
    return code << 8


SUCCESS = Verdict(Outcome.SUCCESS)
UNKNOWN = Verdict(Outcome.ERROR, "unknown")
INTERRUPTED = Verdict(Outcome.CANCELLATION, "KeyboardInterrupt")
VALUE_ERROR = Verdict(Outcome.FAILURE, "ValueError")
RAISED = exiting("ValueError", 1)
INTERRUPT = exiting("KeyboardInterrupt", 130)


@pytest.mark.parametrize(
    ("status", "journaled", "final", "expected"),
    [
        (exited(0), exiting(), False, SUCCESS),
        (exited(0), None, False, SUCCESS),
        (exited(0), RAISED, False, SUCCESS),
        (exited(1), RAISED, False, VALUE_ERROR),
        (exited(3), RAISED, False, VALUE_ERROR),
        (exited(1), None, False, Verdict(Outcome.FAILURE, "exit_1")),
        (exited(3), exiting(), False, Verdict(Outcome.FAILURE, "exit_3")),
        (exited(3), exiting("SystemExit", 3), False, Verdict(Outcome.FAILURE, "exit_3")),
        (exited(130), INTERRUPT, False, INTERRUPTED),
        (exited(130), None, False, Verdict(Outcome.FAILURE, "exit_130")),
        (exited(1), INTERRUPT, False, Verdict(Outcome.FAILURE, "KeyboardInterrupt")),
        (signal.SIGINT, INTERRUPT, False, INTERRUPTED),
        (signal.SIGINT, None, False, Verdict(Outcome.CANCELLATION, "interrupted")),
        (signal.SIGTERM, None, False, Verdict(Outcome.CANCELLATION, "terminated")),
        (signal.SIGTERM, RAISED, False, Verdict(Outcome.CANCELLATION, "terminated")),
        (signal.SIGHUP, None, False, Verdict(Outcome.CANCELLATION, "hangup")),
        (signal.SIGKILL, None, False, Verdict(Outcome.ERROR, "killed")),
        (signal.SIGKILL, exiting(), False, Verdict(Outcome.ERROR, "killed")),
        (signal.SIGSEGV, None, False, Verdict(Outcome.ERROR, "segfault")),
        (signal.SIGSEGV | 0x80, None, False, Verdict(Outcome.ERROR, "segfault")),
        (signal.SIGABRT | 0x80, None, False, Verdict(Outcome.ERROR, "abort")),
        (signal.SIGBUS, None, False, Verdict(Outcome.ERROR, "signal_7")),
        (signal.SIGRTMIN + 3, None, False, Verdict(Outcome.ERROR, "signal_37")),
        (None, None, False, UNKNOWN),
        (None, None, True, UNKNOWN),
        (None, exiting(), False, UNKNOWN),
        (None, exiting(), True, SUCCESS),
        (None, exiting(exit_code=None), True, SUCCESS),
        (None, exiting(exit_code=3), False, Verdict(Outcome.FAILURE, "exit_3")),
        (None, exiting("SystemExit", 3), True, Verdict(Outcome.FAILURE, "exit_3")),
        (None, exiting("SystemExit", 0), True, SUCCESS),
        (None, exiting("SystemExit", None), True, UNKNOWN),
        (None, RAISED, False, VALUE_ERROR),
        (None, INTERRUPT, True, INTERRUPTED),
    ],
)
def test_verdict(
    status: int | None, journaled: RunExiting | None, final: bool, expected: Verdict
) -> None:
    """The wait status has the last word, the journal names the cause, and nobody guesses."""
    assert judge(status, journaled, final) == expected


def test_lost_host() -> None:
    """A reboot is the cause unless the process had ended by itself before."""
    assert judge(None, None, False, lost_host=True) == Verdict(Outcome.ERROR, "host_lost")
    assert judge(None, RAISED, False, lost_host=True) == VALUE_ERROR


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", SUCCESS),
        ("raise SystemExit(3)", Verdict(Outcome.FAILURE, "exit_3")),
        ("import os; os.abort()", Verdict(Outcome.ERROR, "abort")),
        ("import os; os.kill(os.getpid(), 9)", Verdict(Outcome.ERROR, "killed")),
        ("import os; os.kill(os.getpid(), 15)", Verdict(Outcome.CANCELLATION, "terminated")),
    ],
)
def test_real_status(code: str, expected: Verdict) -> None:
    """The kernel's own statuses mean what the table says."""
    command = [sys.executable, "-S", "-c", code]
    pid = os.posix_spawn(sys.executable, command, os.environ)
    _, status = os.waitpid(pid, 0)
    assert judge(status, None, False) == expected


def test_want_of_memory() -> None:
    """It is what a SIGKILL came for, and no other end."""
    found = [judge(status, None, False, oom_killed=True) for status in (signal.SIGKILL, exited(0))]
    assert found == [Verdict(Outcome.ERROR, "oom_killed"), SUCCESS]
