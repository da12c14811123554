"""What this process knows of its end, at its interpreter's; how it really ended, its recorder asks
the kernel. No signal handler and no patched exit."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterable
from typing import Any

from stagewatch import clock, failures, redaction, safety
from stagewatch.attaching import detach
from stagewatch.config import Settings
from stagewatch.exporters.page import Words
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.exporters.spans import plain
from stagewatch.measures import uptime
from stagewatch.model import Outcome
from stagewatch.opened import Opened
from stagewatch.records import RunExiting
from stagewatch.stage_calls import drop_first_frame
from stagewatch.system import LINUX, PEAK_UNIT


def exiting(opened: Opened, children: Iterable[Opened] = ()) -> None:
    """Last of all exit handlers, for it was registered first. *children*: the runs beside its own
    that go on until the process ends."""
    began = time.thread_time_ns()
    is_owner = opened.owner == os.getpid()
    with safety.guarded:
        if is_owner:
            for run in (*children, opened):
                run.journal.append(_run_exiting(run))
    with safety.guarded:
        # A daemon thread dies where it stands, perhaps with a lock of ours, and a finalizer that
        # records would wait for it for ever.
        if len(sys._current_frames()) > 1:
            detach(opened)
    with safety.guarded:
        if opened.overhead:
            spent = opened.overhead + time.thread_time_ns() - began
            opened.journal.page.set(Words.OVERHEAD, spent)
    with safety.guarded:
        if opened.ships_itself:
            from stagewatch.exporters.recorder import run_in_process

            wait = opened.settings.exit_wait
            run_in_process(opened.state_directory, opened.room, os.environ, wait)
        elif is_owner:  # of a child's recorder the opener of the run takes care
            recorder_start.announce_if_none(
                opened.room, opened.journal.key, os.environ, opened.state_directory
            )


def _run_exiting(opened: Opened) -> RunExiting:
    error: BaseException | None = getattr(sys, "last_value", None)
    outcome, error_type = failures.verdict(error)
    code = None if outcome is Outcome.SUCCESS else 1
    if error is None and (_exit_code is not None or _is_script_that_exits()):
        code, error_type = _exit_code, "SystemExit"
    message = _message(error, opened.settings) if error is not None else None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    attributes = getattr(opened.span, "attributes", None) or {}
    return RunExiting(
        run_id=opened.run.run_id,
        end=clock.now(),
        error_type=error_type,
        error_message=message,
        error_place=failures.error_place(error) if error is not None else None,
        exit_code=code,
        attributes=plain(
            redaction.attributes(attributes, messages=opened.settings.exception_messages)
        ),
        cpu_seconds=max(0.0, usage.ru_utime + usage.ru_stime - opened.cpu_before),
        memory_peak=usage.ru_maxrss * PEAK_UNIT,
        uptime=uptime(),
        is_final=opened.ships_itself or not LINUX,  # there nobody can ask the kernel
    )


def _is_script_that_exits() -> bool:
    # Python takes a script's __file__ away, unless SystemExit ended it: with which code it tells
    # nobody but the kernel.
    main = vars(sys.modules["__main__"])
    return "__file__" in main and main.get("__spec__") is None


_exit_code: int | None = None


def learn_exit_code() -> None:
    """Of ``python -m``, where nobody outlives this process who could ask the kernel."""
    import runpy

    genuine = runpy._run_module_as_main  # type: ignore[attr-defined]

    def run_module_as_main(*args: Any, **kwargs: Any) -> Any:
        global _exit_code
        try:
            return genuine(*args, **kwargs)
        except BaseException as error:
            if isinstance(error, SystemExit):
                _exit_code = _as_status(error.code)
            drop_first_frame(error)
            raise

    runpy._run_module_as_main = run_module_as_main  # type: ignore[attr-defined]


def _as_status(code: object) -> int:
    if code is None:
        return 0
    return code & 0xFF if isinstance(code, int) else 1


def _message(error: BaseException, settings: Settings) -> str | None:
    text = failures.error_message(error)
    if text is None or settings.exception_messages:
        return text
    return redaction.message(text)
