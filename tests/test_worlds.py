"""Containers and odd worlds, made for real: namespaces, cgroups, mounts, limits."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stagewatch import semconv
from stagewatch.model import Outcome, Run
from tests.jobs import BIN, Jobs, wait_for
from tests.otlp_receiver import OtlpReceiver

STAGE = """
    import stagewatch, sys, time
    from pathlib import Path
    me = sys.argv[1]
    with stagewatch.stage("load") as stage:
        stage.records(out=5)
        Path(me + ".up").touch()
        while Path(me + ".hold").exists():
            time.sleep(0.02)
"""
"""A job with a name, which goes on while a file of that name with ``.hold`` is there."""

STAGE_HELD = """
    with stagewatch.stage("load"):
        while Path(me + ".hold").exists():
            time.sleep(0.02)
"""
"""The same in a second stage."""

POOL = """
    import multiprocessing, stagewatch, sys, time
    from pathlib import Path

    def part(number):
        with stagewatch.stage("part") as stage:
            stage.records(out=10)

    with stagewatch.stage("first") as stage:
        stage.records(out=5)
    while not Path("job.pool").exists():
        time.sleep(0.02)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(part, range(4))
        pool.close()
        pool.join()
    while Path("job.hold").exists():
        time.sleep(0.02)
"""

STAY = "; while [ -e staying ]; do sleep 0.05; done"
"""For a shell: the container goes on for a while after its job."""

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces")


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


@pytest.fixture
def sending(jobs: Jobs, receiver: OtlpReceiver) -> Jobs:
    """Jobs that send to *receiver*."""
    jobs.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    return jobs


def container(jobs: Jobs, name: str, shell: str, **environment: str) -> subprocess.Popen[str]:
    """*shell* as PID 1 of a container; who kills what this returns kills the container.

    It shares this host's files and network, and its name is its only id.
    """
    alone = f"mount --bind /dev/null /etc/machine-id 2>/dev/null; hostname {name}; {shell}; :"
    unshare = ["unshare", "--pid", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child"]
    return subprocess.Popen(
        [*unshare, "/bin/sh", "-c", alone],
        cwd=jobs.directory,
        env={**jobs.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(jobs: Jobs, name: str) -> str:
    """The shell command of the job *name*."""
    script = jobs.script(STAGE)
    return shlex.join([str(BIN / "opentelemetry-instrument"), "python", str(script), name])


def held(jobs: Jobs, name: str) -> Path:
    """A file that holds the job *name*, until it is removed."""
    path = jobs.directory / f"{name}.hold"
    path.touch()
    return path


def is_up(jobs: Jobs, name: str) -> bool:
    return (jobs.directory / f"{name}.up").exists()


def total(receiver: OtlpReceiver, metric: str, **attributes: str) -> float | None:
    """What a series stands at by the last word; AssertionError where two senders sent it."""
    points = [
        point
        for point in receiver.metric_points
        if point.name == metric and attributes.items() <= point.attributes.items()
    ]
    assert len({point.resource["service.instance.id"] for point in points}) <= 1
    return points[-1].value if points else None


def recorders(jobs: Jobs) -> list[int]:
    """Pids of the recorders, and keepers, of these jobs."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and str(jobs.state) in (entry / "cmdline").read_text():
                found.append(int(entry.name))
    return found


def names(receiver: OtlpReceiver) -> list[str]:
    """Of the spans that came, sorted; without what is said of runs under way."""
    found = [span.name for span in receiver.spans]
    return sorted(name for name in found if name != semconv.RUN_STARTED)


def by_outcome(runs: list[Run]) -> list[tuple[Outcome | None, str | None]]:
    return sorted(((run.outcome, run.error_type) for run in runs), key=str)


@root
def test_container_killed_whole(sending: Jobs, receiver: OtlpReceiver) -> None:
    """Of two containers on one state directory one is killed: the other's recorder closes its run,
    and the totals of both, from one sender, are exact."""
    holds = {name: held(sending, name) for name in ("one", "two")}
    # A shell between PID 1 and the job: else the job would ship by itself.
    (sending.directory / "staying").touch()
    containers = {
        name: container(sending, name, f"sh -c {shlex.quote(command(sending, name) + STAY)}")
        for name in holds
    }
    for name in holds:
        wait_for(lambda name=name: is_up(sending, name))
    assert len(list((sending.state / "rooms").iterdir())) == 2
    receiver.wait_for(lambda r: total(r, semconv.RUN_ACTIVE.name) == 2, 20)
    containers["one"].kill()
    containers["one"].communicate()
    (run,) = [run for run in sending.runs(ended=1) if run.end is not None]
    assert (run.outcome, run.error_type, run.records_out) == (Outcome.ERROR, "unknown", 5)
    holds["two"].unlink()
    assert by_outcome(sending.runs(ended=2)) == [
        (Outcome.ERROR, "unknown"),
        (Outcome.SUCCESS, None),
    ]
    receiver.wait_for(lambda r: names(r).count("etl") == 2, 20)
    receiver.wait_for(lambda r: total(r, semconv.RUN_ACTIVE.name) == 0, 20)
    assert total(receiver, semconv.RUNS.name, **{semconv.RUN_OUTCOME: "error"}) == 1
    assert total(receiver, semconv.RUNS.name, **{semconv.RUN_OUTCOME: "success"}) == 1
    assert total(receiver, semconv.RECORDS.name, direction="out") == 10
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans)
    (sending.directory / "staying").unlink()
    _, errors = containers["two"].communicate(timeout=30)
    assert errors == ""


@root
def test_container_killed_after_its_command(jobs: Jobs) -> None:
    """What `stagewatch run` left word of there is the exact outcome here, whatever the kernel."""
    hold = held(jobs, "job")
    (jobs.directory / "staying").touch()
    script = f"touch job.up; while [ -e {hold} ]; do sleep 0.02; done; exit 7"
    run = shlex.join([str(BIN / "stagewatch"), "run", "--", "sh", "-c", script])
    killed = container(jobs, "job", f"sh -c {shlex.quote(run + STAY)}")
    wait_for(lambda: is_up(jobs, "job") and jobs.runs(ended=0))
    for pid in recorders(jobs):
        os.kill(pid, signal.SIGSTOP)
    hold.unlink()
    wait_for(lambda: [p for p in jobs.state.glob("rooms/*/*.exit") if "ended" in p.read_text()])
    killed.kill()
    killed.communicate()
    jobs.run("pass", "next.py")
    assert by_outcome(jobs.runs(ended=2)) == [
        (Outcome.FAILURE, "exit_7"),
        (Outcome.SUCCESS, None),
    ]


@root
def test_next_container_closes_the_last(jobs: Jobs) -> None:
    """A container comes after one that was killed whole: with the same pids, and with the same
    PID namespace as far as its number goes, and yet the runs are two."""
    hold = held(jobs, "job")
    (jobs.directory / "staying").touch()
    shell = f"sh -c {shlex.quote(command(jobs, 'job') + STAY)}"
    first = container(jobs, "first", shell)
    wait_for(lambda: is_up(jobs, "job"))
    wait_for(lambda: len(jobs.runs(ended=0)) == 1)
    first.kill()
    first.communicate()
    hold.unlink()
    second = container(jobs, "second", shell)
    runs = jobs.runs(ended=2)
    assert by_outcome(runs) == [(Outcome.ERROR, "unknown"), (Outcome.SUCCESS, None)]
    assert len({run.pid for run in runs}) == 1
    (jobs.directory / "staying").unlink()
    _, errors = second.communicate(timeout=30)
    assert errors == ""


def test_recorder_killed_with_the_job(sending: Jobs, receiver: OtlpReceiver) -> None:
    """Systemd, CI runners and batch systems kill all there is: the next start closes and ships."""
    receiver.refuse()
    held(sending, "job")
    job = sending.start("python", sending.script(STAGE), "job")
    wait_for(lambda: is_up(sending, "job") and len(recorders(sending)) == 2)
    wait_for(lambda: sending.runs(ended=0))
    for pid in (*recorders(sending), job.pid):
        os.kill(pid, signal.SIGKILL)
    job.communicate()
    wait_for(lambda: not recorders(sending))
    receiver.serve()
    sending.run("pass", "next.py")
    assert by_outcome(sending.runs(ended=2)) == [
        (Outcome.ERROR, "unknown"),
        (Outcome.SUCCESS, None),
    ]
    receiver.wait_for(lambda r: names(r) == ["etl", "load", "next"], 20)
    receiver.wait_for(lambda r: total(r, semconv.RUN_ACTIVE.name) == 0, 20)
    assert total(receiver, semconv.RECORDS.name, direction="out") == 5
    assert total(receiver, semconv.RUNS.name, **{semconv.RUN_OUTCOME: "error"}) == 1


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A cgroup (v1) of 64 MB."""
    group = Path("/sys/fs/cgroup/memory", f"stagewatch-{os.getpid()}")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    (group / "memory.limit_in_bytes").write_text(str(64 << 20))
    yield group
    group.rmdir()


@root
def test_little_memory(sending: Jobs, receiver: OtlpReceiver, little_memory: Path) -> None:
    """In 64 MB a job has no recorder beside it: a thread of it sends, and it is said once."""
    hold = held(sending, "job")
    script = sending.script(STAGE.replace('"load"', '"extract"').split("while")[0] + STAGE_HELD)
    shell = f'echo $$ > {little_memory}/cgroup.procs; exec "$0" "$@"'
    job = subprocess.Popen(
        ["/bin/sh", "-c", shell, BIN / "opentelemetry-instrument", "python", script, "job"],
        cwd=sending.directory,
        env=sending.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    receiver.wait_for(lambda r: "extract" in names(r), 30)
    assert recorders(sending) == []
    hold.unlink()
    _, errors = job.communicate(timeout=30)
    assert (job.returncode, errors.count("\n")) == (0, 1), errors
    assert "a limit of 64 MB of memory leaves no room for a recorder" in errors
    receiver.wait_for(lambda r: {"etl", "load"} <= set(names(r)), 20)
    assert by_outcome(sending.runs()) == [(Outcome.SUCCESS, None)]
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans)
    assert total(receiver, semconv.RECORDS.name, direction="out") == 5


@root
def test_first_process_of_a_container(sending: Jobs, receiver: OtlpReceiver) -> None:
    """PID 1 sends while it runs, forks a pool meanwhile, and is killed: the next closes its run."""
    held(sending, "job")
    script = sending.script(POOL)
    job = shlex.join([str(BIN / "opentelemetry-instrument"), "python", str(script), "job"])
    process = container(sending, "alone", f"exec {job}")
    receiver.wait_for(lambda r: "first" in names(r), 30)
    (sending.directory / "job.pool").touch()
    records = {"first": 5, "part": 40}
    receiver.wait_for(
        lambda r: (
            {name: total(r, semconv.RECORDS.name, **{semconv.STAGE_NAME: name}) for name in records}
            == records
        ),
        20,
    )
    assert total(receiver, semconv.RUN_ACTIVE.name) == 1
    process.kill()
    _, errors = process.communicate(timeout=30)
    assert errors == ""
    sending.run("pass", "next.py")
    runs = sending.runs(ended=2)
    assert by_outcome(runs) == [(Outcome.ERROR, "unknown"), (Outcome.SUCCESS, None)]
    receiver.wait_for(lambda r: {"etl", "next"} <= set(names(r)), 20)
    assert names(receiver).count("part") == 4
    assert len({span.span_id for span in receiver.spans}) == len(receiver.spans)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the filter is one for x86-64")
@pytest.mark.parametrize("seconds", ["0", "5"])
def test_no_process_allowed(sending: Jobs, receiver: OtlpReceiver, seconds: str) -> None:
    """Where no process may be started (seccomp) the job sends by itself, at the latest at its
    end, and its own word on how it ended is believed."""
    script = sending.script(
        f"""
        import stagewatch, subprocess, time, weakref
        class Thing: pass
        thing = Thing()
        weakref.finalize(thing, str)  # whose exit handler comes before ours
        try:
            subprocess.run(["true"])
        except PermissionError:
            with stagewatch.stage("alone"):
                time.sleep({seconds})
        """
    )
    sandbox = Path(__file__).with_name("no_processes.py")
    done = subprocess.run(
        [sys.executable, sandbox, BIN / "opentelemetry-instrument", "python", script],
        cwd=sending.directory,
        env={**sending.environment, "PYTHONWARNINGS": "always::ResourceWarning"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1), done.stderr
    assert "no recorder can be started (Operation not permitted)" in done.stderr
    assert names(receiver) == ["alone", "etl"]
    assert by_outcome(sending.runs()) == [(Outcome.SUCCESS, None)]


def without_proc(
    jobs: Jobs, name: str, *arguments: str | Path, **environment: str
) -> subprocess.Popen[str]:
    """The command *name* of ours in a mount namespace that has no /proc."""
    shell = 'umount -l -R /proc; [ -e /proc/self ] && exit 77; exec "$0" "$@"'
    return subprocess.Popen(
        ["unshare", "--mount", "/bin/sh", "-c", shell, BIN / name, *arguments],
        cwd=jobs.directory,
        env={**jobs.environment, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@root
def test_without_proc(sending: Jobs, receiver: OtlpReceiver) -> None:
    """Without /proc a run is recorded like any other: status, stages, children, its killing."""
    script = sending.script(
        """
        import os, stagewatch, subprocess, sys
        with stagewatch.stage("load") as stage:
            stage.records(out=5)
        if not os.fork():
            with stagewatch.stage("forked"): pass
            os._exit(0)
        os.wait()
        if sys.argv[1:] == ["kill"]:
            os.kill(os.getpid(), 9)
        code = "import stagewatch\\nwith stagewatch.stage('child'): pass"
        subprocess.run(["opentelemetry-instrument", "python", "-c", code], check=True)
        sys.exit(3)
        """
    )
    ends = []
    for arguments in ([], ["kill"]):
        process = without_proc(sending, "opentelemetry-instrument", "python", script, *arguments)
        output, errors = process.communicate(timeout=30)
        assert (output, errors) == ("", "")
        ends.append(process.returncode)
    assert ends == [3, -9]
    assert by_outcome(sending.runs(ended=2)) == [
        (Outcome.ERROR, "killed"),
        (Outcome.FAILURE, "exit_3"),
    ]
    expected = ["child", "etl", "etl", "forked", "forked", "load", "load"]
    receiver.wait_for(lambda r: names(r) == expected, 20)
    log = sending.state / "recorder.log"
    assert not log.exists(), log.read_text()


@root
def test_without_proc_at_a_long_path(sending: Jobs, receiver: OtlpReceiver) -> None:
    """Where the socket's path is too long without /proc, the job sends by itself."""
    deep = sending.directory / ("d" * 120)
    sending.environment["STAGEWATCH_STATE_DIR"] = str(deep)
    job = "python", sending.script("pass")
    process = without_proc(sending, "opentelemetry-instrument", *job)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.count("\n")) == (0, 1), errors
    assert "too long for a socket" in errors
    assert names(receiver) == ["etl"]


@root
def test_run_without_proc_and_record(jobs: Jobs) -> None:
    """Where nothing is recorded `stagewatch run` waits for its command, and for nothing else."""
    process = without_proc(jobs, "stagewatch", "run", "--", "true", OTEL_SDK_DISABLED="true")
    try:
        assert process.communicate(timeout=30) == ("", "")
    finally:
        process.kill()
    assert process.returncode == 0


def test_rooms_nobody_comes_to(jobs: Jobs) -> None:
    """Empty rooms of earlier containers are deleted after a while, others stay."""
    jobs.run("pass")
    jobs.runs()
    wait_for(lambda: not recorders(jobs))
    (room,) = (jobs.state / "rooms").iterdir()
    destination = room.name.partition("-")[0]
    old, recent, used, other = (
        room.with_name(name)
        for name in (f"{destination}-1", f"{destination}-2", f"{destination}-3", "else-1")
    )
    for one in (old, recent, used, other):
        one.mkdir()
        (one / "alive").touch()
        (one / "settings").touch()
    (used / "1.2.ab.page").touch()
    for one in (old, used, other):
        os.utime(one, (1, 1))
    wait_for(lambda: not (room / "sock").exists())  # each recorder looks when it comes
    jobs.run("pass")
    wait_for(lambda: not old.exists())
    assert recent.exists() and used.exists() and other.exists()


@root
@pytest.mark.parametrize(
    ("arguments", "end", "code", "verdict"),
    [
        (["{}"], "pass", 0, (Outcome.SUCCESS, None)),
        (["{}"], "sys.exit(7)", 7, (Outcome.ERROR, "unknown")),
        (["{}"], "try: sys.exit(7)\nexcept SystemExit: pass", 0, (Outcome.SUCCESS, None)),
        (["{}"], "raise ValueError('x')", 1, (Outcome.FAILURE, "ValueError")),
        (["-m", "etl"], "sys.exit(7)", 7, (Outcome.FAILURE, "exit_7")),
        (["-m", "etl"], "sys.exit()", 0, (Outcome.SUCCESS, None)),
        (["-m", "etl"], "sys.exit('bad')", 1, (Outcome.FAILURE, "exit_1")),
        (["-m", "etl"], "raise ValueError('x')", 1, (Outcome.FAILURE, "ValueError")),
    ],
)
def test_exit_code_of_the_first_process(
    jobs: Jobs, arguments: list[str], end: str, code: int, verdict: tuple[Outcome, str | None]
) -> None:
    """Nobody outlives PID 1 to ask the kernel: what it cannot tell itself is unknown."""
    script = jobs.script("import sys\n" + end)
    python = [BIN / "opentelemetry-instrument", "python"]
    command = [*python, *(argument.format(script) for argument in arguments)]
    done = {}
    for environment in (jobs.environment, {**jobs.environment, "OTEL_SDK_DISABLED": "true"}):
        done[environment.get("OTEL_SDK_DISABLED")] = subprocess.run(
            [
                "unshare",
                "--pid",
                "--fork",
                "--mount-proc",
                BIN / "opentelemetry-instrument",
                *command,
            ],
            cwd=jobs.directory,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
    with_us, without = done[None], done["true"]
    assert (with_us.returncode, with_us.stdout, with_us.stderr) == (code, "", without.stderr)
    assert by_outcome(jobs.runs()) == [verdict]


READ_ONLY = """
    set -e
    mkdir -p "$STATE"
    mount --bind "$STATE" "$STATE"
    mount -o remount,bind,ro "$STATE"
    exec "$0" "$@"
"""


def read_only(jobs: Jobs, script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A job whose state directory is on a read-only mount."""
    job = [str(BIN / "opentelemetry-instrument"), "python", str(script)]
    return subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", READ_ONLY, *job],
        cwd=jobs.directory,
        env={**jobs.environment, "STATE": str(jobs.state), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@root
def test_state_on_a_read_only_mount(jobs: Jobs, tmp_path: Path) -> None:
    """State goes to a temporary directory, with one warning; the run is recorded there."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = read_only(jobs, jobs.script("import sys; sys.exit(3)"), TMPDIR=str(temporary))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert f"the state directory {jobs.state} cannot be written; using {temporary}" in done.stderr
    jobs.state = temporary / f"stagewatch-{os.getuid()}"
    assert by_outcome(jobs.runs()) == [(Outcome.FAILURE, "exit_3")]


@root
def test_nothing_can_be_written(jobs: Jobs) -> None:
    """Where there is no temporary directory either the job goes on, and one line says so."""
    script = jobs.script("print('done')")
    everything = READ_ONLY.replace("exec", "mount -o remount,bind,ro /; cd /; exec")
    job = [str(BIN / "opentelemetry-instrument"), "python", str(script)]
    done = subprocess.run(
        ["unshare", "--mount", "/bin/sh", "-c", everything, *job],
        env={**jobs.environment, "STATE": str(jobs.state)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "done\n", 1), done.stderr
    assert "stagewatch" in done.stderr
