"""Processes that record without instrumentation, for the tests of the recorder.

``recorder_job.py STATE CODE`` executes CODE with the names of this module.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from stagewatch import measures
from stagewatch.exporters import state as state_module
from stagewatch.exporters.journal import (
    JournalWriter,
    boot_id,
    host_id,
    new_key,
    oom_kills,
    pid_namespace,
    start_ticks,
)
from stagewatch.exporters.recorder import start
from stagewatch.records import ProcessStarted, RunExiting, RunStarted, SpanEnded

STATE = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()


class Job:
    """One run of this process."""

    def __init__(
        self,
        state: Path = STATE,
        *,
        opens_run: bool = True,
        run_id: str = "",
        final: bool = False,
        age: int = 0,
    ) -> None:
        """*age*: seconds for which it has run by now, as far as its journal goes."""
        self.state = state_module.state_directory(state, is_default=False)
        goal = state_module.destination(os.environ)
        self.room = state_module.room(self.state, goal, pid_namespace())
        self.key = new_key()
        self.run_id = run_id or secrets.token_hex(16)
        self.trace_id = bytes.fromhex(self.run_id)
        self.root = secrets.token_bytes(8)
        self.journal = JournalWriter(self.room, self.key, max_bytes=1 << 26)
        self.journal.append(
            ProcessStarted(
                key=self.key,
                pid=os.getpid(),
                ticks=start_ticks(),
                ppid=os.getppid(),
                host_id=host_id(),
                boot_id=boot_id(),
                pid_namespace=pid_namespace(),
                run_id=self.run_id,
                trace_id=self.trace_id,
                opens_run=opens_run,
                start=time.time_ns(),
                resource={"service.name": "test"},
                pipeline="test",
                final_exit=final,
                uptime=measures.uptime() - age * measures.SECOND,
                oom_kills=oom_kills(),
            )
        )
        if opens_run:
            self.journal.append(
                RunStarted(
                    run_id=self.run_id,
                    trace_id=self.trace_id,
                    span_id=self.root,
                    parent_span_id=b"",
                    pipeline="test",
                    name="test",
                    start=time.time_ns(),
                    sampled=True,
                    attempt=1,
                    scheduled=None,
                    deadline=None,
                    owner=None,
                    version=None,
                    attributes={},
                )
            )

    def announce(self) -> start.Announced:
        return start.announce(self.room, self.key, os.environ, self.state)

    def spans(self, count: int) -> None:
        for number in range(count):
            now = time.time_ns()
            self.journal.append(
                SpanEnded(
                    name=f"span {number}",
                    trace_id=self.trace_id,
                    span_id=secrets.token_bytes(8),
                    parent_span_id=self.root,
                    start=now,
                    end=now,
                    kind=0,
                    status=0,
                    status_description=None,
                    scope=0,
                    attributes=None,
                )
            )

    def exiting(self) -> None:
        self.journal.append(RunExiting(self.run_id, time.time_ns(), None, None, None, None, {}))


def fleet(count: int, end: Callable[[int], object]) -> dict[int, int]:
    """Fork *count* runs, which end with `end(number)`; their wait statuses by pid."""
    for number in range(count):
        if os.fork() == 0:
            job = Job()
            job.announce()
            job.spans(5)
            end(number)
            os._exit(0)
    statuses = {}
    for _ in range(count):
        pid, status = os.wait()
        statuses[pid] = status
    return statuses


def to_dict(announced: start.Announced) -> dict[str, bool]:
    return msgspec.structs.asdict(announced)


def print_json(value: object) -> None:
    print(json.dumps(value), flush=True)


def kill(number: int) -> None:
    os.kill(os.getpid(), number)


if __name__ == "__main__":
    signal.alarm(100)
    exec(sys.argv[2])
