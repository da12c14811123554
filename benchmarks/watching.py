"""What watching costs: the recorder with one, 20 and 200 jobs, and the job that is watched."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import (
    BENCH,
    DEV,
    JOBS,
    OURS,
    PATIENCE,
    ROOT,
    Row,
    fresh_directory,
    instrumented,
    ours_environment,
    plain_environment,
    receiver,
)
from benchmarks.recorder_process import RecorderProcess, find_recorder, recorder_ends

SECONDS = 20.0
WARM_UP = 5.0
MANY, CROWD = 20, 200
_JOB = JOBS / "watched.py"
_CROWD = """
from tests.recorder_job import Job, os, sys, time
children = []
for _ in range({count}):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        job = Job()
        job.announce()
        while True:
            job.spans(1)
            time.sleep(1)
    children.append(ours)
"""


def measure(bin_directory: Path = OURS) -> list[Row]:
    """The recorder's CPU and memory, and the threads and CPU of an idle job."""
    one, _ = _recorder(bin_directory, 1)
    many, memory = _recorder(bin_directory, MANY)
    crowd = _crowd()
    return [
        Row(
            "recorder, watching one active job: CPU",
            "≤ 0.5 % of a core",
            f"{one:.2%}",
            one <= 0.005,
            f"over {SECONDS:.0f} s; a stage, records 10 times a second, a span a second",
        ),
        Row(
            f"recorder, watching {MANY} active jobs: CPU",
            "≤ 1 % of a core",
            f"{many:.2%}",
            many <= 0.01,
            f"{many / MANY:.3%} each; {memory:.0f} MB",
        ),
        Row(
            f"recorder, watching {CROWD} jobs: memory",
            "≤ 80 MB",
            f"{crowd:.1f} MB",
            crowd <= 80.0,
            "a span a second each",
        ),
        _idle(bin_directory),
    ]


def _recorder(bin_directory: Path, count: int) -> tuple[float, float]:
    """Share of a core and megabytes of the recorder while *count* jobs are active."""
    state = fresh_directory(f"watching-{count}")
    with receiver() as live, recorder_ends(state), ExitStack() as jobs:
        environment = ours_environment(state, live.endpoint)
        command = instrumented(bin_directory, _JOB, "active")
        for _ in range(count):
            jobs.enter_context(_running(command, environment))
        recorder = find_recorder(state)
        time.sleep(WARM_UP)
        return _share(recorder), recorder.rss() / 1e6


def _crowd() -> float:
    """Megabytes of the recorder while it follows `CROWD` journals; they are written by forks."""
    state = fresh_directory("watching-crowd")
    code = f"import sys; sys.argv = ['', {str(state)!r}]\n" + _CROWD.format(count=CROWD)
    code += "print('up', flush=True)\nsys.stdin.read()\nos.killpg(0, 9)\n"
    with receiver() as live, recorder_ends(state):
        environment = ours_environment(state, live.endpoint)
        with _running([str(DEV / "python"), "-c", code], environment):
            recorder = find_recorder(state)
            time.sleep(SECONDS / 2)
            return recorder.peak_rss() / 1e6


def _idle(bin_directory: Path) -> Row:
    """A job that does nothing, with and without us, at the same time."""
    state = fresh_directory("watching-idle")
    with receiver() as live, recorder_ends(state), ExitStack() as jobs:
        environment = ours_environment(state, live.endpoint)
        watched = jobs.enter_context(
            _running(instrumented(bin_directory, _JOB, "idle"), environment)
        )
        bare = jobs.enter_context(
            _running([str(bin_directory / "python"), str(_JOB), "idle"], plain_environment())
        )
        time.sleep(1.0)
        ours, theirs = RecorderProcess(watched), RecorderProcess(bare)
        threads, bare_threads = _threads(watched), _threads(bare)
        before, bare_before = ours.cpu(), theirs.cpu()
        time.sleep(SECONDS / 2)
        used, bare_used = ours.cpu() - before, theirs.cpu() - bare_before
    return Row(
        "idle job that is watched: threads and CPU",
        "as without us",
        f"{threads}, {used * 1000:.1f} ms",
        threads == bare_threads and used <= bare_used + 0.001,
        f"without {bare_threads}, {bare_used * 1000:.1f} ms; over {SECONDS / 2:.0f} s",
    )


def _share(process: RecorderProcess) -> float:
    """Share of a core that a process uses over `SECONDS`."""
    before, since = process.cpu(), time.monotonic()
    time.sleep(SECONDS)
    return (process.cpu() - before) / (time.monotonic() - since)


def _threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


@contextmanager
def _running(command: list[str], environment: dict[str, str]) -> Iterator[int]:
    """A process that has said that it is up; it ends with the block, for its stdin is closed."""
    environment = {**environment, "PYTHONPATH": str(ROOT)} if "-c" in command else environment
    with subprocess.Popen(
        command,
        cwd=BENCH,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        if process.stdout.readline() != b"up\n":
            raise RuntimeError(f"{command} did not come up")
        try:
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(PATIENCE)
