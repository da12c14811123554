"""Real jobs in flight, as `show`, `report` and `watch` see them; with and without a recorder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.jobs import Jobs, wait_for
from tests.test_cli import stagewatch
from tests.test_live_view import leave, screen

JOB = """
    import pathlib, time
    import stagewatch

    with stagewatch.stage("extract") as s:
        s.records(out=7)
    with stagewatch.stage("load") as s:
        s.records(out=30)
        pathlib.Path("begun").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.02)
"""


@contextmanager
def in_flight(jobs: Jobs) -> Iterator[subprocess.Popen[str]]:
    """A job that is in its stage `load` until it is let go; dead with the block, at the latest."""
    process = jobs.start("python", jobs.script(JOB))
    try:
        wait_for((jobs.directory / "begun").exists)
        yield process
    finally:
        process.kill()
        process.communicate()


def recorders(jobs: Jobs) -> list[int]:
    """Pids of the recorder and its keeper."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(jobs.state).encode() in command and b"stagewatch" in command:
                found.append(int(entry.name))
    return found


def seen(jobs: Jobs, *arguments: str) -> Any:
    """What a command says in JSON."""
    done = stagewatch(jobs.state, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_job_in_flight_is_shown(jobs: Jobs) -> None:
    """Its open stage with the records so far; once it is over nothing of it is active."""
    with in_flight(jobs) as process:
        found = seen(jobs, "show", "last")
        assert found["run"]["active"]
        assert found["run"]["host"] == socket.gethostname()
        (stage,) = found["run"]["live"]["stages"]
        assert (stage["name"], stage["records_out"], stage["pid"]) == ("load", 30, process.pid)
        assert found["run"]["records_out"] == 37
        assert [one["name"] for one in found["spans"]] == ["extract"]
        shown = stagewatch(jobs.state, "show", "last").stdout
        assert "doing    load\n" in shown
        assert "└ load …" in shown
        assert "running in load" in stagewatch(jobs.state, "report").stdout
        once = stagewatch(jobs.state, "watch").stdout.splitlines()
        assert once[0].startswith("1 under way")
        assert once[2].split()[:4] == ["etl", found["run"]["run_id"][:8], "running", "load"]
        (jobs.directory / "go").touch()
        assert process.wait(timeout=30) == 0
        after = seen(jobs, "watch", "--once")
        assert (after["complete"], after["runs"]) == (True, [])
        assert [one["outcome"] for one in after["ended"]] == ["success"]


def test_the_view_follows_a_job(jobs: Jobs) -> None:
    """It is there while it runs; killed, it moves down with where it was."""
    with in_flight(jobs) as process, screen(jobs.state) as shown:
        shown.wait_for("1 under way")
        process.kill()
        shown.wait_for("killed in load")
        assert leave(shown, "q") == 0


def test_a_job_is_shown_without_a_recorder(jobs: Jobs) -> None:
    """Recorder and keeper killed: what is known is taken in here, also that the job has died."""
    with in_flight(jobs) as process, screen(jobs.state) as shown:
        shown.wait_for("1 under way")
        for pid in recorders(jobs):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not recorders(jobs))
        assert [one["active"] for one in seen(jobs, "watch", "--once")["runs"]] == [True]
        assert shown.process.poll() is None
        process.kill()
        process.wait()
        shown.wait_for("just ended")
        assert leave(shown, "q") == 0
        assert "Traceback" not in shown.text
        found = seen(jobs, "report")["runs"]
        assert [(one["active"], one["last_stage"]) for one in found] == [(False, "load")]


def test_a_recorder_that_does_not_answer_is_said(jobs: Jobs) -> None:
    """What may be old is shown all the same, and is called old."""
    with in_flight(jobs):
        assert seen(jobs, "watch", "--once")["complete"]  # so it is up
        pids = recorders(jobs)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            done = stagewatch(jobs.state, "report")
            assert done.returncode == 0
            assert done.stderr == "stagewatch: a recorder does not answer: this may be old\n"
            assert "etl" in done.stdout
            look = stagewatch(jobs.state, "watch", "--once", "--json")
            assert json.loads(look.stdout)["complete"] is False
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def test_dead_is_never_active(jobs: Jobs) -> None:
    """Where a recorder does not answer, a run that died meanwhile is dead, and not taken in yet."""
    with in_flight(jobs) as process:
        seen(jobs, "report")
        stopped = recorders(jobs)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        assert json.loads(stagewatch(jobs.state, "report", "--json").stdout)["runs"][0]["active"]
        process.kill()
        process.wait()
        said = stagewatch(jobs.state, "show", "last")
        assert said.stdout.splitlines()[0] == "etl  dead, not taken in yet"
        assert "doing    load\n" in said.stdout
        assert "so far" not in said.stdout and "running" not in said.stdout
        assert said.stderr == "stagewatch: a recorder does not answer: this may be old\n"
        (run,) = json.loads(stagewatch(jobs.state, "report", "--json").stdout)["runs"]
        assert (run["active"], run["outcome"], run["live"]["doing"]) == (False, None, "dead")
        report = stagewatch(jobs.state, "report").stdout
        assert "etl: 1 run, 1 dead" in report and "dead, not taken in yet in load" in report
        once = stagewatch(jobs.state, "watch").stdout.splitlines()
        assert once[0].startswith("0 under way, 1 dead, not taken in yet")
        assert once[2].split()[2:4] == ["dead", "load"]
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        (found,) = jobs.runs()
        assert (found.error_type, found.wait_status) == ("killed", signal.SIGKILL)
