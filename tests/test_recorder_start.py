"""One recorder for all, started without touching the job, replaced when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from stagewatch import semconv
from stagewatch.database import VERSION, connect
from stagewatch.exporters.recorder import start, take_in_all
from stagewatch.exporters.recorder.spawn import recorder_environment
from stagewatch.history import open_history
from stagewatch.measures import SECOND
from stagewatch.model import Outcome, Run

Found = TypeVar("Found")
JOB = Path(__file__).with_name("recorder_job.py")
DAY = 86400
ANNOUNCED = {"known": True, "started": True, "alone": ""}


def eventually(find: Callable[[], Found | None], seconds: float = 20.0) -> Found:
    """The first thing that *find* finds."""
    until = time.monotonic() + seconds
    while True:
        found = find()
        if found:
            return found
        assert time.monotonic() < until, f"waited {seconds} s in vain"
        time.sleep(0.02)


class Place:
    """A state directory, and the processes that work there."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environ = {**os.environ, "STAGEWATCH_RECORDER_IDLE": "20"}

    @property
    def room(self) -> Path:
        (room,) = (self.state / "rooms").iterdir()
        return room

    def start(self, code: str) -> subprocess.Popen[bytes]:
        """A job that executes *code*."""
        return subprocess.Popen(
            [sys.executable, str(JOB), str(self.state), code],
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, code: str) -> object:
        """Execute *code* in a job; what it printed."""
        output, errors = self.start(code).communicate(timeout=60)
        assert not errors, errors.decode()
        return json.loads(output) if output else None

    def recorders(self, *, keeper: bool = False) -> list[int]:
        """Pids of the recorders of this place, or of their keepers."""
        found = []
        for name in filter(str.isdecimal, os.listdir("/proc")):
            try:
                arguments = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            is_ours = os.fsencode(self.state) in arguments and b"-I" in arguments
            if is_ours and (arguments[0] == b"/bin/sh") == keeper:
                found.append(int(name))
        return found

    def runs(self) -> dict[int, Run]:
        """Runs in the history by pid."""
        if not (self.state / "history.db").exists():
            return {}
        with open_history(self.state) as history:
            return {run.pid: run for run in history.runs(limit=1000)}

    def closed(self, count: int) -> dict[int, Run]:
        """*count* runs, all of them over."""

        def found() -> dict[int, Run] | None:
            runs = self.runs()
            over = len(runs) == count and all(run.outcome for run in runs.values())
            return runs if over else None

        return eventually(found)

    def statuses(self, count: int) -> dict[int, int | None]:
        return {pid: run.wait_status for pid, run in self.closed(count).items()}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path / "state")
    yield place
    for pid in place.recorders(keeper=True):
        os.kill(pid, signal.SIGKILL)
    for pid in place.recorders():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not place.recorders())


def fleet(place: Place, count: int, end: str) -> dict[int, int]:
    found = place.run(f"print_json(fleet({count}, lambda number: {end}))")
    assert isinstance(found, dict)
    return {int(pid): status for pid, status in found.items()}


def spans(place: Place) -> int:
    with open_history(place.state) as history:
        return sum(
            sum(1 for span in history.spans(run.run_id) if span.name.startswith("span "))
            for run in history.runs(limit=1000)
        )


def test_fleet_of_200(place: Place) -> None:
    """200 processes at once have one recorder, which knows all their ends and all their spans."""
    ends = "os._exit(3) if number % 3 == 0 else kill(9) if number % 3 == 1 else None"
    expected = fleet(place, 200, ends)
    assert len(place.recorders()) == 1
    assert place.statuses(200) == expected
    assert spans(place) == 1000
    assert [path for path in place.room.iterdir() if path.name.count(".") > 1] == []


def test_deaths_during_a_cold_start(place: Place) -> None:
    """Of 40 processes that die while the recorder is starting all ends are known."""
    expected = fleet(place, 40, "(time.sleep(number * 0.006), os._exit(number % 5))")
    assert place.statuses(40) == expected


def test_short_job_alone(place: Place) -> None:
    """A job that is long gone when its recorder's Python is up is closed with its true status."""
    assert place.run("print_json(to_dict(Job().announce())); os._exit(7)") == ANNOUNCED
    ((run),) = place.closed(1).values()
    assert (run.outcome, run.error_type) == (Outcome.FAILURE, "exit_7")


def test_job_has_no_child(place: Place) -> None:
    """The user's ``os.wait()`` never sees our processes, neither cold nor with one alive."""
    code = """
Job().announce(); Job().announce()
try:
    print_json(os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print_json("none")
"""
    assert place.run(code) == "none"


@pytest.mark.parametrize(
    "shell", ["out=$({job}); echo $out", "{job} | cat", "{job} 2>&1 9>&1 | cat"]
)
def test_output_ends_with_the_job(place: Place, shell: str) -> None:
    """Whoever reads what the job writes is done when the job is, not when the recorder is."""
    job = shlex.join([sys.executable, str(JOB), str(place.state), "Job().announce(); print(42)"])
    began = time.monotonic()
    done = subprocess.run(
        ["/bin/sh", "-c", shell.format(job=job)],
        env=place.environ,
        capture_output=True,
        timeout=15,
    )
    assert (done.stdout, done.stderr) == (b"42\n", b"")
    assert time.monotonic() - began < 15
    assert len(eventually(place.recorders)) == 1


def test_recorder_holds_nothing_of_the_job(place: Place) -> None:
    """No descriptor but its own, no terminal, no working directory, a session of its own."""
    code = """
os.set_inheritable(os.open(STATE.parent, os.O_RDONLY), True)
os.set_inheritable(os.pipe()[1], True)
Job().announce(); os._exit(0)
"""
    place.run(code)
    place.closed(1)
    (recorder,) = place.recorders()
    (keeper,) = place.recorders(keeper=True)
    for pid in (recorder, keeper):
        links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert links.count("/dev/null") == 3
        assert str(place.state.parent) not in links
        # Of the pipe that wakes it the recorder has both ends; of the job's there was but one.
        pipes = [link for link in links if link.startswith("pipe")]
        assert all(pipes.count(link) == 2 and pid == recorder for link in pipes)
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) != os.getsid(0)
    # Three null devices, the room's socket and the pair of the deposit.
    assert len(os.listdir(f"/proc/{keeper}/fd")) == 6


def test_job_without_standard_streams(place: Place) -> None:
    """A job that was started with 0, 1 and 2 closed gets its recorder like any other."""
    job = shlex.join([sys.executable, str(JOB), str(place.state), "Job().announce(); os._exit(4)"])
    subprocess.run(["/bin/sh", "-c", f"{job} <&- >&- 2>&-"], env=place.environ, timeout=30)
    assert list(place.statuses(1).values()) == [4 << 8]


def test_job_that_closes_all_descriptors(place: Place) -> None:
    """``closerange`` takes nothing from us, and our absence takes no number from the job."""
    code = """
job = Job(); job.announce()
os.closerange(3, 256)
file = os.open(STATE / "own", os.O_CREAT | os.O_RDWR)
job.spans(2000)
print_json([file, os.fstat(file).st_size]); os._exit(5)
"""
    assert place.run(code) == [3, 0]
    assert list(place.statuses(1).values()) == [5 << 8]
    assert spans(place) == 2000


def test_deep_state_directory(tmp_path: Path) -> None:
    """A path longer than a socket's name may be is no obstacle."""
    place = Place(tmp_path / ("d" * 120) / "state")
    place.run("Job().announce(); os._exit(2)")
    assert list(place.statuses(1).values()) == [2 << 8]
    for pid in place.recorders():
        os.kill(pid, signal.SIGTERM)


def test_killed_recorder_is_replaced(place: Place) -> None:
    """SIGKILL of the recorder costs nothing: same spans once, and the true end of the job."""
    job = place.start(
        "job = Job(); job.announce()\n"
        "for _ in range(40): job.spans(75); time.sleep(0.05)\n"
        "os._exit(6)"
    )
    for _ in range(3):
        (recorder,) = eventually(lambda: place.recorders() if start_is_over(place) else None)
        os.kill(recorder, signal.SIGKILL)
        eventually(lambda gone=recorder: place.recorders() and gone not in place.recorders())
    job.communicate(timeout=30)
    assert list(place.statuses(1).values()) == [6 << 8]
    assert spans(place) == 3000


def test_recorder_and_job_killed_at_once(place: Place) -> None:
    """Who dies while no recorder lives has its pidfd with the keeper: the next one knows how."""
    jobs = [
        place.start(f"Job().announce(); sys.stdin.readline(); os._exit({number})")
        for number in range(2)
    ]
    eventually(lambda: len(place.runs()) == 2)
    for job in jobs:
        (recorder,) = eventually(lambda: place.recorders() if start_is_over(place) else None)
        os.kill(recorder, signal.SIGKILL)
        eventually(lambda gone=recorder: gone not in place.recorders())
        job.communicate(b"\n", timeout=30)  # reaped: nothing of it is left in /proc
    assert sorted(place.statuses(2).values(), key=str) == [0, 1 << 8]


def start_is_over(place: Place) -> bool:
    return any((place.state / "rooms").glob("*")) and start.has_living_recorder(place.room)


def test_dead_keeper_and_recorder(place: Place) -> None:
    """With both dead the job starts another at its end, which knows how it ended."""
    job = place.start(
        "job = Job(); job.announce(); sys.stdin.readline(); job.spans(10)\n"
        "start.announce_if_none(job.room, job.key, os.environ, job.state); os._exit(3)"
    )
    eventually(lambda: start_is_over(place))
    for pid in place.recorders(keeper=True) + place.recorders():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not (place.recorders() or place.recorders(keeper=True)))
    job.communicate(b"\n", timeout=30)
    assert list(place.statuses(1).values()) == [3 << 8]
    assert spans(place) == 10


def test_time_that_nobody_watched(place: Place) -> None:
    """With both dead the next start counts for how long a run that still lives was not watched."""
    job = place.start("job = Job(age=100); job.announce(); sys.stdin.readline()")
    seen = eventually(lambda: start_is_over(place) and read(place.room / "seen"))
    for pid in place.recorders(keeper=True) + place.recorders():
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not place.recorders())
    boot, _, at = seen.partition(" ")
    (place.room / "seen").write_text(f"{boot} {int(at) - 60 * SECOND}")
    place.run("Job().announce(); os._exit(0)")
    seconds = eventually(lambda: unwatched(place))
    assert 60 <= seconds < 100
    place.run("Job().announce(); os._exit(0)")
    assert start.ask_to_take_in(place.room, 20.0)
    assert unwatched(place) == seconds
    run = next(run for run in place.runs().values() if run.end is None)
    with open_history(place.state) as history:
        (notice,) = history.notices(run.run_id)
    assert notice.name == semconv.TELEMETRY_GAP
    assert notice.attributes == {semconv.RUN_UNWATCHED: seconds}
    job.communicate(b"\n", timeout=30)


def read(path: Path) -> str:
    """What stands in a file that may not be there yet."""
    return path.read_text() if path.exists() else ""


def unwatched(place: Place) -> float:
    """Seconds, as counted."""
    with contextlib.closing(connect(place.state)) as link:
        found = link.execute(
            "select value from total join instrument on instrument.id = instrument where name = ?",
            (semconv.UNWATCHED.name,),
        ).fetchall()
    return sum(value for (value,) in found)


def test_terminated_recorder_keeps_the_rest(place: Place) -> None:
    """SIGTERM ends the recorder with status 0; the next one goes on where it stopped."""
    job = place.start(
        "job = Job(); job.announce(); job.spans(10); sys.stdin.readline(); job.spans(10)\n"
        "os._exit(3)"
    )
    eventually(lambda: start_is_over(place))
    eventually(lambda: place.runs() and spans(place) == 10)
    (recorder,) = place.recorders()
    os.kill(recorder, signal.SIGTERM)
    eventually(lambda: not place.recorders() and not place.recorders(keeper=True))
    place.run("Job().announce(); os._exit(0)")
    assert start.ask_to_take_in(place.room, 20.0)
    job.communicate(b"\n", timeout=30)
    assert sorted(status or 0 for status in place.statuses(2).values()) == [0, 3 << 8]
    assert spans(place) == 20


def test_terminated_while_asked(place: Place) -> None:
    """SIGTERM and somebody's question at the same moment: it answers, and ends."""
    job = place.start("Job().announce(); sys.stdin.readline(); os._exit(3)")
    eventually(place.runs)
    (recorder,) = place.recorders()
    os.kill(recorder, signal.SIGSTOP)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(place.room / "sock"))
        asking.send(start.SYNC)
        os.kill(recorder, signal.SIGTERM)
        os.kill(recorder, signal.SIGCONT)
        asking.settimeout(20)
        assert asking.recv(len(start.SYNCED)) == start.SYNCED
    eventually(lambda: not place.recorders())
    job.communicate(b"\n", timeout=30)


def test_room_that_was_deleted(place: Place) -> None:
    """A recorder whose room is gone leaves; the run it watched is ended by the next one."""
    job = place.start("Job().announce(); sys.stdin.readline(); os._exit(3)")
    eventually(place.runs)
    shutil.rmtree(place.room)
    eventually(lambda: not place.recorders() and not place.recorders(keeper=True))
    job.communicate(b"\n", timeout=30)
    place.run("Job().announce(); os._exit(0)")
    runs = place.closed(2)
    assert runs[job.pid].error_type == "unknown"
    assert not (place.state / "recorder.log").exists()


def test_history_that_a_newer_version_took_over(place: Place) -> None:
    """A recorder that was upgraded under its feet leaves, and so the next is of the new version."""
    job = place.start("Job().announce(); sys.stdin.readline()")
    eventually(place.runs)
    with contextlib.closing(connect(place.state)) as link:
        link.execute(f"pragma user_version={VERSION + 1}")
    eventually(lambda: not place.recorders() and not place.recorders(keeper=True))
    assert "newer stagewatch" in read(place.state / "recorder.log")
    job.communicate(b"\n", timeout=30)


def test_too_few_descriptors(place: Place) -> None:
    """Who cannot be watched for want of descriptors is taken in later; the recorder lives on."""
    few = (40, 40)
    code = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, {few}); Job().announce()"
    place.run(code)
    place.closed(1)
    (recorder,) = place.recorders()
    job = place.start("print_json(fleet(20, lambda number: sys.stdin.readline()))")
    eventually(lambda: len(os.listdir(f"/proc/{recorder}/fd")) == few[0])
    job.communicate(b"\n", timeout=60)
    assert {run.outcome for run in place.closed(21).values()} <= {Outcome.SUCCESS, Outcome.ERROR}
    assert place.recorders() == [recorder]


def test_leaves_when_idle(place: Place) -> None:
    """A recorder without processes leaves, socket and keeper too; the next job starts another."""
    place.environ["STAGEWATCH_RECORDER_IDLE"] = "0.3"
    place.run("Job().announce(); os._exit(1)")
    place.closed(1)
    eventually(lambda: not place.recorders() and not place.recorders(keeper=True))
    assert not (place.room / "sock").exists()
    assert place.run("print_json(to_dict(Job().announce()))") == ANNOUNCED
    place.closed(2)


def test_leaving_and_coming(place: Place) -> None:
    """Jobs that come just while recorders leave are all closed with their own status."""
    place.environ["STAGEWATCH_RECORDER_IDLE"] = "0.05"
    expected = {}
    for _ in range(4):
        expected |= fleet(place, 4, "(time.sleep(number * 0.05), os._exit(number))")
        time.sleep(0.3)
    assert place.statuses(16) == expected


@pytest.mark.parametrize("clock", [-DAY, DAY])
def test_socket_held_by_a_stranger(place: Place, clock: int) -> None:
    """Who inherited the listening socket in a C-level fork keeps no recorder out for long, whatever
    the clock was set to meanwhile."""
    place.run("Job()")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(place.room / "sock"))
        stranger.listen(10)
        fresh = place.run("print_json(to_dict(Job().announce()))")
        assert fresh == {**ANNOUNCED, "started": False}
        begun = time.time() + clock
        os.utime(place.room / "sock", (begun, begun))
        assert place.run("print_json(to_dict(Job().announce())); os._exit(9)") == ANNOUNCED
    assert 9 << 8 in place.statuses(3).values()


def test_fork_during_a_start(place: Place) -> None:
    """A child forked while the socket is handed over keeps neither socket nor lock."""
    code = """
from stagewatch.exporters.recorder import spawn
genuine, reading = spawn.spawn, os.pipe()
def forking(*given):
    if os.fork() == 0:
        links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")[:-1]]
        os.write(reading[1], repr([l for l in links if "socket" in l or "alive" in l]).encode())
        os._exit(0)
    os.wait()
    genuine(*given)
spawn.spawn = forking
Job().announce()
print_json(os.read(reading[0], 1000).decode()); os._exit(3)
"""
    assert place.run(code) == "[]"
    assert list(place.statuses(1).values()) == [3 << 8]


def test_without_a_shell(place: Place) -> None:
    """Where there is no /bin/sh the recorder detaches itself, and has no keeper."""
    code = """
from stagewatch.exporters.recorder import spawn
spawn._SHELL = "/nowhere/sh"
print_json(to_dict(Job().announce())); os._exit(3)
"""
    assert place.run(code) == ANNOUNCED
    assert list(place.statuses(1).values()) == [3 << 8]
    assert place.recorders(keeper=True) == []


HOLD = """
from selectors import DefaultSelector
from stagewatch.exporters.recorder.door import Door
job = Job(); door = Door(job.room, DefaultSelector())
print(door.try_life(), flush=True); sys.stdin.readline()
"""


def test_start_while_a_reader_holds_the_room(place: Place) -> None:
    """A recorder that is started while a report takes in waits for its turn."""
    reader = place.start(HOLD)
    assert reader.stdout is not None and reader.stdout.readline() == b"True\n"
    assert place.run("print_json(to_dict(Job().announce())); os._exit(3)") == ANNOUNCED
    time.sleep(0.3)
    assert place.runs() == {}
    reader.communicate(b"\n", timeout=10)
    assert sorted(status or 0 for status in place.statuses(2).values()) == [0, 3 << 8]


def test_start_while_a_recorder_changes_its_mind(place: Place) -> None:
    """Who called a recorder that turns out to be one too many is passed on with its pidfd."""
    code = (
        HOLD
        + """
door.reopen()
for _ in range(500):
    callers = door.callers()
    if callers:
        break
    time.sleep(0.02)
print(*(f"{caller.key} {caller.pidfd is not None}" for caller in callers), flush=True)
"""
    )
    staying = place.start(code)
    assert staying.stdout is not None and staying.stdout.readline() == b"True\n"
    key = place.run("job = Job(); job.announce(); print_json(job.key); os._exit(3)")
    eventually(place.recorders)
    time.sleep(0.5)
    output, _ = staying.communicate(b"\n", timeout=20)
    assert output.decode() == f"{key} True\n"
    eventually(lambda: not place.recorders() and not place.recorders(keeper=True))


def test_forked_child_only_says_hello(place: Place) -> None:
    """A child that the user forked is known by its own status, and never starts a recorder."""
    code = """
job = Job()
print_json(to_dict(start.introduce(job.room, job.key, os.environ)))
"""
    assert place.run(code) == {"known": False, "started": False, "alone": ""}
    assert place.recorders() == []
    place.run("Job().announce()")
    assert place.run(code) == {"known": True, "started": False, "alone": ""}


def test_subreaper_ships_itself(place: Place) -> None:
    """Where orphans become the job's children no recorder is started."""
    code = """
import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
print_json(to_dict(Job().announce()))
"""
    assert place.run(code) == {
        "known": False,
        "started": False,
        "alone": "nothing outlives this process",
    }
    assert place.recorders() == []


def test_first_process_of_a_namespace(place: Place) -> None:
    """PID 1 of a container, and its children, ship themselves; in the end all is in the history."""
    code = """
from stagewatch.exporters.recorder import run_in_process
job = Job(final=True); announced = job.announce(); job.spans(10); job.exiting()
run_in_process(job.state, job.room, os.environ, 1.0)
print_json([os.getpid(), bool(announced.alone)])
"""
    if os.geteuid():
        pytest.skip("only root may make a PID namespace")
    command = [sys.executable, str(JOB), str(place.state), code]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", *command],
        env=place.environ,
        capture_output=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == (b"[1, true]\n", b"")
    (run,) = place.runs().values()
    assert (run.outcome, run.error_type) == (Outcome.SUCCESS, None)
    assert spans(place) == 10


def test_asked_recorder_has_read_everything(place: Place) -> None:
    """Whoever asks first reads a history that has all: records and deaths."""
    place.run("Job().announce()")
    for number in range(3):
        place.run("job = Job(); job.announce(); job.spans(10); os._exit(1)")
        assert start.ask_to_take_in(place.room, 20.0)
        assert all(run.outcome for run in place.runs().values())
        assert spans(place) == 10 * (number + 1)


def test_reader_takes_in_where_no_recorder_is(place: Place) -> None:
    """Without a recorder the reader takes in itself, and calls no dead process active."""
    place.run("job = Job(); job.spans(10); os._exit(0)")
    assert not start.ask_to_take_in(place.room, 0.5)
    assert take_in_all(place.state, place.room)
    ((run),) = place.runs().values()
    assert (run.outcome, run.error_type, spans(place)) == (Outcome.ERROR, "unknown", 10)
    assert take_in_all(place.state, place.room)


def test_headers_stay_off_the_disk(place: Place) -> None:
    """Newer header values reach the recorder; no file ever has them."""
    place.environ["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=first-secret"
    place.run("Job().announce(); os._exit(0)")
    place.environ["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=second-secret"
    place.run("Job().announce(); os._exit(0)")
    place.closed(2)
    for path in place.state.rglob("*"):
        if path.is_file():
            assert b"-secret" not in path.read_bytes(), path


def test_recorder_environment() -> None:
    """The recorder is neither instrumented nor part of a run, and finds files by full path."""
    given = {
        "PATH": "/bin",
        "PYTHONPATH": "/evil",
        "OTEL_PYTHON_DISTRO": "x",
        "STAGEWATCH_RUN": "abc",
        "STAGEWATCH_DETAIL_RATIO": "1",
        "TRACEPARENT": "00",
        "TRACESTATE": "a=b",
        "LD_PRELOAD": "x.so",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
    }
    assert recorder_environment(given) == {
        "PATH": "/bin",
        "STAGEWATCH_DETAIL_RATIO": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": os.path.abspath("ca.pem"),
        "MALLOC_ARENA_MAX": "1",
    }


@pytest.mark.internal_errors
def test_read_only_state(tmp_path: Path) -> None:
    """Where nothing can be written the job goes on, and is told once."""
    if os.geteuid():
        pytest.skip("only root may mount")
    room = tmp_path / "room"
    room.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", room])
    if mounted.returncode:
        pytest.skip("no tmpfs here")
    try:
        assert start.announce(room, "1.2.ab", {}, tmp_path) == start.Announced()
        assert start.announce(room / "no", "1.2.ab", {}, tmp_path) == start.Announced()
        assert not start.has_living_recorder(room)
        assert not start.ask_to_take_in(room)
    finally:
        subprocess.run(["umount", "-l", room], check=True)


def test_broken_history_is_no_hot_loop(place: Place) -> None:
    """A history that cannot be read ends the recorder with one line, and costs the job nothing."""
    place.state.mkdir(mode=0o700)
    (place.state / "history.db").write_bytes(b"no database at all" * 1000)
    assert place.run("print_json(to_dict(Job().announce()))") == ANNOUNCED
    eventually(lambda: not place.recorders() and not place.recorders(keeper=True))
    (line,) = (place.state / "recorder.log").read_text().splitlines()
    assert "DatabaseError" in line
