"""A disk that is full: the recorder stays, and what it was given arrives whole when there is room.

The disk is real: a small tmpfs.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stagewatch.exporters.recorder.start import ask_to_take_in
from stagewatch.model import Outcome
from tests.jobs import Jobs, wait_for

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

JOB = """
    import stagewatch, sys, time
    from pathlib import Path
    with stagewatch.stage("load") as stage:
        stage.records(out=5)
        Path("up").touch()
        while Path("hold").exists():
            time.sleep(0.02)
        for number in range(20):
            with stagewatch.stage("part"):
                pass
    sys.exit(3)
"""
_JOURNAL = 160 << 10
"""Room for page and journal, not for a history."""


class Disk:
    """With a file on it that leaves just so much."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._ballast = place / "ballast"

    def fill(self, left: int = 0) -> None:
        """Leave *left* bytes."""
        with suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(self._ballast, self._ballast.stat().st_size - left)

    def free(self) -> None:
        """Make room."""
        self._ballast.unlink()


@pytest.fixture
def disk(jobs: Jobs) -> Iterator[Disk]:
    """The state of *jobs* lies on it."""
    place = jobs.directory / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs here")
    jobs.state = place / "state"
    jobs.environment["STAGEWATCH_STATE_DIR"] = str(jobs.state)
    yield Disk(place)
    subprocess.run(["umount", "-l", place], check=True)


def begin(jobs: Jobs) -> subprocess.Popen[str]:
    """A job that is held in its stage."""
    (jobs.directory / "hold").touch()
    job = jobs.start("python", jobs.script(JOB))
    wait_for((jobs.directory / "up").exists)
    return job


def end(jobs: Jobs, job: subprocess.Popen[str]) -> None:
    (jobs.directory / "hold").unlink()
    _, errors = job.communicate(timeout=30)
    assert (job.returncode, errors) == (3, "")


def assert_whole(jobs: Jobs) -> None:
    (run,) = jobs.runs()
    assert (run.outcome, run.error_type, run.wait_status) == (Outcome.FAILURE, "exit_3", 3 << 8)
    assert run.records_out == 5
    assert jobs.tree(run) == [{"load": [{"part": []}] * 20}]


def room(jobs: Jobs) -> Path:
    (found,) = (jobs.state / "rooms").iterdir()
    return found


def log(jobs: Jobs) -> list[str]:
    """What the recorder said."""
    return (jobs.state / "recorder.log").read_text().splitlines()


def recorders(jobs: Jobs) -> list[int]:
    """Pids of recorders, not of their keepers."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(jobs.state) in words and words[0] != b"/bin/sh":
                found.append(int(entry.name))
    return found


def test_no_room_for_a_history_to_begin_with(jobs: Jobs, disk: Disk) -> None:
    """The job lives and dies before there is a history; then it is told with its true status."""
    disk.fill(_JOURNAL)
    job = begin(jobs)
    assert not ask_to_take_in(room(jobs), 30)  # it says no, once it has tried
    end(jobs, job)
    assert len(recorders(jobs)) == 1
    disk.free()
    assert_whole(jobs)
    first, second = log(jobs)
    assert "the history cannot be written" in first
    assert "the history can be written again" in second
    wait_for(lambda: not recorders(jobs))


def test_recorder_killed_while_it_waits(jobs: Jobs, disk: Disk) -> None:
    """Its successor has the pidfds of who died in between."""
    disk.fill(_JOURNAL)
    job = begin(jobs)
    assert not ask_to_take_in(room(jobs), 30)  # it says no, once it has tried
    (old,) = recorders(jobs)
    end(jobs, job)
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: recorders(jobs) not in ([], [old]))
    disk.free()
    assert_whole(jobs)


def test_who_waits_for_nobody_leaves(jobs: Jobs, disk: Disk) -> None:
    """Without a journal in the room nothing waits for the history, and the recorder leaves."""
    disk.fill(_JOURNAL)
    job = begin(jobs)
    assert not ask_to_take_in(room(jobs), 30)  # it says no, once it has tried
    end(jobs, job)
    for path in room(jobs).glob("*.journal"):
        path.unlink()
    wait_for(lambda: not recorders(jobs))


def test_recorder_that_waits_can_be_ended(jobs: Jobs, disk: Disk) -> None:
    """SIGTERM ends it and its keeper, with or without a history."""
    disk.fill(_JOURNAL)
    job = begin(jobs)
    assert not ask_to_take_in(room(jobs), 30)  # it says no, once it has tried
    (recorder,) = recorders(jobs)
    os.kill(recorder, signal.SIGTERM)
    wait_for(lambda: not recorders(jobs))
    end(jobs, job)
    disk.free()
    assert_whole(jobs)  # by the recorder that the job starts at its exit


def test_full_while_a_run_is_under_way(jobs: Jobs, disk: Disk) -> None:
    """Not a block is left for the history's log when the run goes on and ends."""
    job = begin(jobs)
    wait_for(lambda: jobs.runs(ended=0))
    disk.fill()
    end(jobs, job)
    ask_to_take_in(room(jobs), 30)
    assert jobs.runs(ended=0)[0].end is None
    disk.free()
    assert_whole(jobs)
