"""The recorder's work in a thread of the job, where no process can do it.

That is where nothing outlives the job (PID 1 of a container, a subreaper), where no process may
be started, or memory is too short for one. The job journals as everywhere. The thread begins when
the job has lived for some seconds, and works in rounds; in between it holds no lock, no file and
no connection. A fork waits for the end of a round, for a bounded time. It has no entry in
`threading.enumerate`: some programs wait for all threads they find there.
"""

from __future__ import annotations

import _thread
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagewatch.exporters.recorder.limits import memory_left
from stagewatch.exporters.recorder.start import OUTLIVED_BY_NOTHING
from stagewatch.safety import report

if TYPE_CHECKING:
    from stagewatch.exporters.recorder.ingest import Intake
    from stagewatch.exporters.recorder.watching.watch import Watch

_logger = logging.getLogger(__name__)

_FIRST_SECONDS: Final = 3.0
_ROUND_SECONDS: Final = 5.0
_LONGEST_PAUSE: Final = 60.0
_SENDING_SECONDS: Final = 5.0
_IDLE_SHARE: Final = 50.0
"""So many times the CPU of a round is the pause after it."""
_NEEDED_BYTES: Final = 24 << 20
"""Of memory, for the libraries that read journals and send."""
_LOADING_PATIENCE, _PATIENCE = 5.0, 0.5
"""Longest wait of a fork: for imports, whose locks would stay locked in the child, and else."""
_WARNS_OF_THREADS: Final = sys.version_info >= (3, 12)
"""os.fork() warns where there is a thread: there a fork ends ours, and the exit does the rest."""


class Resident:
    """The thread of this process; see `start`."""

    def __init__(self, state: Path, room: Path, environ: Mapping[str, str]) -> None:
        self._state = state
        self._room = room
        self._environ = environ
        self._pid = os.getpid()
        self._reading = _thread.allocate_lock()
        self._sending = _thread.allocate_lock()
        self._asleep = _thread.allocate_lock()
        self._asleep.acquire()
        self._gone = _thread.allocate_lock()
        self._thread = 0
        self._is_over = False
        self.is_loaded = False
        self._pause = _FIRST_SECONDS

    def start(self) -> None:
        """Raises RuntimeError where no thread can be had."""
        self._gone.acquire()
        try:
            _thread.start_new_thread(self._live, ())
        except BaseException:
            self._gone.release()
            raise

    def end(self, timeout: float) -> bool:
        """Let no round begin any more; whether the journals are the caller's to read now."""
        self._is_over = True
        return os.getpid() != self._pid or self._reading.acquire(timeout=timeout)

    def has_sent(self, timeout: float) -> bool:
        """After `end`: whether what the thread was sending is over."""
        return os.getpid() != self._pid or self._sending.acquire(timeout=timeout)

    def before_fork(self) -> None:
        """Wait for the end of a round, and keep the next from beginning."""
        patience = _PATIENCE if self.is_loaded else _LOADING_PATIENCE
        self._held = [lock for lock in self._locks() if lock.acquire(timeout=patience)]
        if _WARNS_OF_THREADS and len(self._held) == 2 and not self._is_over:
            self._is_over = True
            self._asleep.release()
            self._free()
            self._wait_until_gone()

    def after_fork(self) -> None:
        """In the parent."""
        self._free()

    def _wait_until_gone(self) -> None:
        if self._gone.acquire(timeout=_PATIENCE):
            until = time.monotonic() + _PATIENCE
            while os.path.exists(f"/proc/self/task/{self._thread}") and time.monotonic() < until:
                time.sleep(0.0005)  # it needs the interpreter to end

    def _locks(self) -> tuple[_thread.LockType, _thread.LockType]:
        return self._reading, self._sending

    def _free(self) -> None:
        held, self._held = self._held, []
        for lock in held:
            lock.release()

    _held: list[_thread.LockType] = []

    def _live(self) -> None:
        self._thread = _thread.get_native_id()
        try:
            while not self._is_over and not self._asleep.acquire(timeout=self._pause):
                self._round()
        except BaseException:  # nothing of ours may be seen of it
            pass
        finally:
            self._gone.release()

    def _round(self) -> None:
        began = time.thread_time()
        is_taken = True
        try:
            with self._reading:
                if self._is_over or not has_memory():
                    return
                self._read()
                if not self.is_loaded:  # with what it imports
                    is_taken = self._send()
                    self.is_loaded = True
                    began = time.thread_time()
                    return
            with self._sending:
                if not self._is_over:
                    is_taken = self._send()
        except Exception as error:
            report(error)
            is_taken = False
        finally:
            longer = _ROUND_SECONDS if is_taken else min(2 * self._pause, _LONGEST_PAUSE)
            effort = _IDLE_SHARE * (time.thread_time() - began)
            self._pause = max(longer, _ROUND_SECONDS, effort)
            # Who logs is given an entry there.
            threading._active.pop(_thread.get_ident(), None)  # type: ignore[attr-defined]

    def _read(self) -> None:
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        from stagewatch.exporters.recorder.indoors import take_in
        from stagewatch.exporters.state import remember_settings

        with suppress_instrumentation():
            if not self.is_loaded:
                remember_settings(self._room, self._environ)
            take_in(self._state, self._room, self._environ, self._finish)

    def _finish(self, watch: Watch, intake: Intake) -> None:
        now = time.time_ns()
        watch.bury()
        intake.tick(watch.sightings(), now)
        if not self.is_loaded:
            intake.prune(now)

    def _send(self) -> bool:
        from opentelemetry.instrumentation.utils import suppress_instrumentation

        from stagewatch.exporters.recorder.sending.sender import ship
        from stagewatch.exporters.state import destination

        goal = destination(self._environ)
        # gRPC has threads of its own, and a fork may hang in them: what it carries waits for
        # the exit.
        if not goal.protocols or "grpc" in goal.protocols.values():
            return True
        with suppress_instrumentation():
            return not ship(self._state, self._environ, _SENDING_SECONDS).pending


installed: Resident | None = None
"""The one of this process."""


def has_memory() -> bool:
    """Whether what a round takes would not be what the job runs out of memory with."""
    left = memory_left()
    is_loaded = installed is not None and installed.is_loaded
    return left is None or left >= (_NEEDED_BYTES // 4 if is_loaded else _NEEDED_BYTES)


def start(state: Path, room: Path, environ: Mapping[str, str], why: str) -> None:
    """Begin, once; *why* no recorder does it is logged. Never raises.

    Where there is no thread either, all waits for the exit.
    """
    global installed
    if installed is not None:
        return
    # That nothing outlives PID 1 is as it should be; the rest somebody may want to mend.
    level = logging.INFO if why == OUTLIVED_BY_NOTHING else logging.WARNING
    _logger.log(level, "stagewatch: %s; this process sends its telemetry itself", why)
    resident = Resident(state, room, dict(environ))
    try:
        resident.start()
    except RuntimeError:
        return
    installed = resident
    os.register_at_fork(
        before=resident.before_fork,
        after_in_parent=resident.after_fork,
        after_in_child=_forget,
    )


def _forget() -> None:
    global installed
    installed = None
