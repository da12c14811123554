"""Who was killed for want of memory is told from who was killed by hand."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from selectors import BaseSelector, DefaultSelector

import pytest

from stagewatch.exporters import journal, state
from stagewatch.exporters.journal import VMSTAT, oom_count, oom_counters, oom_kills, pid_namespace
from stagewatch.exporters.page import PageReader
from stagewatch.exporters.recorder.door import ready
from stagewatch.exporters.recorder.watching import shortage as shortage_module
from stagewatch.exporters.recorder.watching.follow import Part
from stagewatch.exporters.recorder.watching.observer import Process
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.exporters.recorder.watching.shortage import Shortage
from stagewatch.exporters.recorder.watching.vitals import Sighting
from stagewatch.exporters.recorder.watching.watch import Watch, journals
from stagewatch.history import open_history
from stagewatch.model import Outcome
from tests.jobs import Jobs, end_recorders, wait_for

KILLED = Death(signal.SIGKILL)
JOB = Path(__file__).with_name("recorder_job.py")
LIMIT = 100 << 20
EATS = "job = Job(); print(job.key, flush=True); sys.stdin.read(1); \
eaten = [b'x' * 5_000_000 for _ in range(100)]"
SLEEPS = "job = Job(); print(job.key, flush=True); time.sleep(60)"


# --- the counters ---------------------------------------------------------------------------------


def test_version_1(tmp_path: Path) -> None:
    """The memory controller's own hierarchy; in a container its root is the container's cgroup."""
    lines = b"4:memory:/system.slice/etl\n1:cpu,cpuacct:/\n0::/\n"
    first, second, *_ = oom_counters(lines, str(tmp_path))
    assert first == f"{tmp_path}/memory/system.slice/etl/memory.oom_control"
    assert second == f"{tmp_path}/memory/memory.oom_control"
    file = tmp_path / "memory.oom_control"
    file.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert oom_count(str(file)) == 3


def test_version_2(tmp_path: Path) -> None:
    """The cgroup's own kills, else those of it and below, else of the next above that counts."""
    found = list(oom_counters(b"0::/user.slice/run-7.scope\n", str(tmp_path)))
    assert found == [
        f"{tmp_path}{place}/memory.events{kind}"
        for place in ("/user.slice/run-7.scope", "/user.slice", "")
        for kind in (".local", "")
    ]
    file = tmp_path / "memory.events.local"
    file.write_text("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert oom_count(str(file)) == 1


def test_no_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a cgroup that counts, the machine's counter has to do; without that, nothing."""
    monkeypatch.setattr(journal, "oom_counters", lambda cgroups: ["/nowhere/memory.events"])
    assert list(oom_kills()) == [VMSTAT]
    monkeypatch.setattr(journal, "VMSTAT", "/nowhere/vmstat")
    assert oom_kills() == {}


# --- the judgement --------------------------------------------------------------------------------


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    file = tmp_path / "memory.events"
    file.write_text("oom_kill 5\n")
    return file


def judge(
    shortage: Shortage, deaths: Mapping[Process, Death], counter: Path, at_start: int
) -> list[Process]:
    judged = shortage.judge(deaths, lambda process: {str(counter): at_start})
    assert list(judged) == list(deaths)
    return [process for process, death in judged.items() if death.oom_killed]


def test_killed_since_the_start(counter: Path) -> None:
    """Who was never looked at is judged by what the process found when it began."""
    one, two = Process(1, 1), Process(2, 1)
    assert judge(Shortage(), {one: KILLED}, counter, at_start=5) == []
    shortage = Shortage()
    assert judge(shortage, {one: KILLED}, counter, at_start=4) == [one]
    assert judge(shortage, {two: KILLED}, counter, at_start=4) == []


def test_only_sigkill_and_only_one(counter: Path) -> None:
    """Another signal is its own cause, and of two killed at once neither can be told apart."""
    one, two = Process(1, 1), Process(2, 1)
    assert judge(Shortage(), {one: Death(signal.SIGTERM)}, counter, at_start=4) == []
    assert judge(Shortage(), {one: Death(None)}, counter, at_start=4) == []
    assert judge(Shortage(), {one: Death(0), two: KILLED}, counter, at_start=4) == [two]
    assert judge(Shortage(), {one: KILLED, two: KILLED}, counter, at_start=4) == []


def test_look_between_the_count_and_the_death(
    counter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts first, and takes its time to end the process: a look may fall between."""
    monkeypatch.setattr(shortage_module, "oom_kills", lambda pid: {str(counter): 5})
    one, shortage = Process(1, 1), Shortage()
    shortage.look([one])
    shortage.look([one])
    counter.write_text("oom_kill 6\n")
    shortage.look([one])
    assert judge(shortage, {one: KILLED}, counter, at_start=0) == [one]


def test_kill_long_ago(counter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the counter showed two looks ago killed somebody else."""
    monkeypatch.setattr(shortage_module, "oom_kills", lambda pid: {str(counter): 5})
    one, shortage = Process(1, 1), Shortage()
    for _ in range(2):
        shortage.look([one])
    assert judge(shortage, {one: KILLED}, counter, at_start=0) == []


# --- real cgroups ---------------------------------------------------------------------------------


class Deaths:
    """An intake that only notes how processes died."""

    def __init__(self) -> None:
        self.seen: dict[str, Death] = {}

    def resume(self, key: str) -> tuple[int, int] | None:
        return None

    def take(self, *parts: Part) -> None: ...

    def close(self, key: str, page: PageReader | None, death: Death) -> None:
        self.seen[key] = death

    def over(self) -> list[str]:
        return []

    def tick(self, sightings: Mapping[str, Sighting], now: int) -> None: ...

    def is_busy(self) -> bool:
        return False

    def is_outdated(self) -> bool:
        return False

    def stop(self, timeout: float) -> None: ...

    def headers(self, environ: dict[str, str]) -> None: ...


def limits(cgroup: Path) -> list[Path]:
    """Files that may set its limit: of version 1 and 2."""
    return [cgroup / "memory.limit_in_bytes", cgroup / "memory.max"]


def inside(cgroup: Path, command: list[str]) -> list[str]:
    """*command*, which enters the cgroup before anything else."""
    return ["/bin/sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh", *command]


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of `LIMIT` bytes below our own."""
    (ours,) = oom_kills() or ("",)
    made = Path(ours).parent / f"stagewatch-test-{os.getpid()}"
    try:
        made.mkdir()
        (limit,) = (path for path in limits(made) if path.exists())
        limit.write_text(str(LIMIT))
    except (OSError, ValueError) as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    try:
        yield made
    finally:
        wait_for(lambda: not (made / "cgroup.procs").read_text())
        made.rmdir()


class Bench:
    """Jobs in a room that is watched from here."""

    def __init__(self, directory: Path, selector: BaseSelector) -> None:
        self.intake = Deaths()
        self._state = directory
        self._selector = selector
        self._started: list[subprocess.Popen[str]] = []
        room = state.room(directory, state.destination({}), pid_namespace())
        self._room = room
        self.watch = Watch(room, self.intake, selector)

    def start(self, code: str, cgroup: Path | None = None) -> tuple[subprocess.Popen[str], str]:
        """A job that executes *code*, and its key."""
        command = [sys.executable, str(JOB), str(self._state), code]
        if cgroup is not None:
            command = inside(cgroup, command)
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={}
        )
        self._started.append(process)
        assert process.stdout is not None
        key = process.stdout.readline().strip()
        self.watch.find(journals(self._room))
        assert key in self.watch.followers
        return process, key

    def death(self, key: str) -> Death:
        """How it died, once it has."""

        def is_dead() -> bool:
            self.watch.died(*ready(self._selector, 0.1))
            return key in self.intake.seen

        wait_for(is_dead)
        return self.intake.seen[key]

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.communicate()
        self.watch.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with DefaultSelector() as selector:
        made = Bench(state.state_directory(tmp_path / "state", is_default=False), selector)
        yield made
        made.close()


def eat(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("x")
    process.stdin.flush()


@pytest.mark.parametrize("is_looked_at", [False, True])
def test_out_of_memory(bench: Bench, cgroup: Path, is_looked_at: bool) -> None:
    """Killed by its cgroup's limit, looked at before or not."""
    process, key = bench.start(EATS, cgroup)
    for _ in range(3 * is_looked_at):
        assert key in bench.watch.sightings()
    eat(process)
    death = bench.death(key)
    assert (death.wait_status, death.oom_killed) == (signal.SIGKILL, True)
    assert death.vitals is not None and death.vitals.cpu_seconds is not None
    if is_looked_at:
        assert LIMIT > (death.vitals.memory_peak or 0) > 10_000_000


def test_killed_by_hand_beside(bench: Bench, cgroup: Path) -> None:
    """Memory ran out in another cgroup; who was killed by hand at that moment was killed."""
    eater, eaten = bench.start(EATS, cgroup)
    sleeper, slept = bench.start(SLEEPS)
    bench.watch.sightings()
    eat(eater)
    eater.wait()
    sleeper.kill()
    sleeper.wait()
    assert bench.death(eaten).oom_killed
    death = bench.death(slept)
    assert (death.wait_status, death.oom_killed) == (signal.SIGKILL, False)


def test_killed_by_hand_within(bench: Bench, cgroup: Path) -> None:
    """Whose cgroup has a limit may still be killed by hand."""
    process, key = bench.start(SLEEPS, cgroup)
    bench.watch.sightings()
    process.kill()
    assert (bench.death(key).wait_status, bench.death(key).oom_killed) == (signal.SIGKILL, False)


def test_recorder_in_the_same_cgroup(jobs: Jobs, cgroup: Path) -> None:
    """The recorder is killed first, the job next; what died, and of what, is known all the same."""
    (limit,) = (path for path in limits(cgroup) if path.exists())
    limit.write_text(str(2 * LIMIT))
    script = jobs.script(
        """
        import stagewatch
        with stagewatch.stage("load") as stage:
            stage.records(in_=7)
            eaten = [b"x" * 5_000_000 for _ in range(100)]
        """
    )
    command = inside(cgroup, ["opentelemetry-instrument", "python", str(script)])
    died = subprocess.run(command, env=jobs.environment, cwd=jobs.directory, timeout=60)
    (run,) = jobs.runs()
    assert (died.returncode, run.outcome) == (-signal.SIGKILL, Outcome.ERROR)
    assert (run.error_type, run.last_stage, run.records_in) == ("oom_killed", "load", 7)
    end_recorders(jobs)


def test_figures_where_the_recorder_died_with_the_job(jobs: Jobs, cgroup: Path) -> None:
    """Those it wrote down last, on the run and on its stage; and that the run died late."""
    (limit,) = (path for path in limits(cgroup) if path.exists())
    limit.write_text(str(2 * LIMIT))
    (jobs.directory / "stagewatch.yaml").write_text(
        "pipelines: {etl: {match: {script: '*'}, sla: {max_duration: 10ms}}}"
    )
    script = jobs.script(
        """
        import sys, stagewatch
        with stagewatch.stage("load"):
            sum(range(10_000_000))
            sys.stdin.readline()
            eaten = [b"x" * 5_000_000 for _ in range(100)]
        """
    )
    command = inside(cgroup, ["opentelemetry-instrument", "python", str(script)])
    job = subprocess.Popen(
        command, env=jobs.environment, cwd=jobs.directory, stdin=subprocess.PIPE, text=True
    )

    def was_looked_at() -> bool:
        with suppress(sqlite3.Error), open_history(jobs.state, readonly=True) as history:
            seen = [history.live(run.run_id) for run in history.active()]
            stages = [stage for one in seen if one is not None for stage in one.stages]
            return any(stage.memory_peak and stage.cpu_seconds for stage in stages)
        return False

    wait_for(was_looked_at)
    job.communicate("\n", timeout=60)
    (run,) = jobs.runs()
    assert (run.error_type, run.last_stage) == ("oom_killed", "load")
    with open_history(jobs.state, readonly=True) as history:
        (stage,) = history.stages(run.run_id)
        said = [notice.name for notice in history.notices(run.run_id)]
    assert (run.memory_peak or 0) >= (stage.memory_peak or 0) > 10_000_000
    assert run.cpu_seconds is not None
    assert stage.cpu_seconds is not None
    assert said == ["run late"]
    end_recorders(jobs)
