"""What is seen of processes from outside: figures, descendants, stillness and its reasons."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from stagewatch import semconv
from stagewatch.config import Settings
from stagewatch.exporters import journal
from stagewatch.exporters.journal import start_ticks
from stagewatch.exporters.page import LAYOUTS, SIZE, PageReader, PageWriter
from stagewatch.exporters.recorder.watching import proc, stack, stillness, with_psutil
from stagewatch.exporters.recorder.watching.kinship import Kinship
from stagewatch.exporters.recorder.watching.observer import Observer, Process, Seen
from stagewatch.exporters.recorder.watching.proc import Reader
from stagewatch.exporters.recorder.watching.stillness import Stillness, waits_for
from stagewatch.model import Notice
from tests.jobs import Jobs, wait_for

READY = "print('ready', flush=True);"
LOCKED = (
    "import threading, time; one, two = threading.Lock(), threading.Lock();"
    "meet = threading.Barrier(2);"
    "take = lambda a, b: (a.acquire(), meet.wait(), b.acquire());"
    "threading.Thread(target=take, args=(two, one), daemon=True).start();"
    f"{READY} take(one, two)"
)
RECEIVES = f"import socket; a, b = socket.socketpair(); {READY} a.recv(1)"


@contextmanager
def python(code: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that executes *code*, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def process_of(pid: int) -> Process:
    return Process(pid, start_ticks(pid))


class Page:
    """A status page and what reads it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.writer = PageWriter(path, 1, 1)

    def read(self) -> PageReader:
        data = self._path.read_bytes()
        assert len(data) == SIZE
        return PageReader(data)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    return Page(tmp_path / "page")


def observer(stuck_after: float = 600.0, *, stack: bool = False) -> Observer:
    """One that may look as often as a test does."""
    return Observer(Settings(watch_interval=0.2, stuck_after=stuck_after, stuck_stack=stack), proc)


# --- figures --------------------------------------------------------------------------------------


def test_proc_and_psutil_agree() -> None:
    """What is read of a process is what psutil reads of it, memory and threads included."""
    code = f"import threading, time; x = bytearray(50_000_000); open('/dev/null', 'wb').write(x); \
[threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(3)]; \
sum(range(3_000_000)); {READY} time.sleep(60)"
    with python(code) as process:
        ours, theirs = proc.read(process.pid), with_psutil.read(process.pid)
        assert ours is not None and theirs is not None
        assert (ours.parent, ours.threads) == (theirs.parent, theirs.threads) == (os.getpid(), 4)
        assert ours.memory == pytest.approx(theirs.memory, rel=0.05)
        assert ours.memory > 50_000_000
        assert ours.cpu_seconds == pytest.approx(theirs.cpu_seconds, abs=0.02)
        assert ours.cpu_seconds > 0.0
        assert ours.ticks == theirs.ticks == start_ticks(process.pid)
        assert ours.ticks == journal._ticks_by_psutil(process.pid)
        for reader in (proc, with_psutil):
            assert reader.is_running(process.pid, ours.ticks)
            assert not reader.is_running(process.pid, ours.ticks + 1)
        assert proc.traffic(process.pid) == with_psutil.traffic(process.pid)
        assert (proc.memory_peak(process.pid) or 0) >= 50_000_000
        parents = proc.parents({})
        assert parents[process.pid] == with_psutil.parents({})[process.pid] == os.getpid()


def test_nobody_there() -> None:
    """Of a process that is gone there is nothing, with either reader."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    readers: list[Reader] = [proc, with_psutil]
    for reader in readers:
        assert reader.read(gone.pid) is None
        assert reader.traffic(gone.pid) is None
        assert reader.memory_peak(gone.pid) is None
        assert not reader.is_running(gone.pid, 1)
        assert gone.pid not in reader.parents({gone.pid: 1})


def test_name_of_a_process_is_no_field(tmp_path: Path) -> None:
    """A program may be called what it likes: ``) Z 1 (`` makes no zombie."""
    program = tmp_path / ") Z 1 ("
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "60"])
    try:
        found = proc.read(process.pid)
        assert found is not None
        assert (found.is_dead, found.parent) == (False, os.getpid())
    finally:
        process.kill()
        process.wait()


def test_zombie_is_read_once_more(page: Page) -> None:
    """The last figures of a dead process are those of the last look, with its CPU to the end."""
    code = (
        f"import sys; x = bytearray(40_000_000); {READY} sys.stdin.read(1); sum(range(9_000_000))"
    )
    eyes = observer()
    with python(code) as process:
        who = process_of(process.pid)
        seen = eyes.look({who: [page.read()]})[who].vitals
        assert seen is not None and seen.cpu_seconds is not None
        assert process.stdin is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        wait_for(lambda: (found := proc.read(process.pid)) is not None and found.is_dead)
        last = eyes.farewell(who)
    assert last is not None and last.cpu_seconds is not None
    assert last.cpu_seconds > seen.cpu_seconds
    assert (last.memory or 0) > 40_000_000
    assert (last.memory_peak or 0) >= 40_000_000
    assert eyes.farewell(who) is None


def test_pid_given_to_another_is_not_looked_at(page: Page) -> None:
    """Vitals are of one process, not of whoever has its pid by now."""
    who = Process(os.getpid(), start_ticks() + 1)
    eyes = observer()
    assert eyes.look({who: [page.read()]}) == {who: Seen()}
    assert eyes.farewell(who) is None


# --- descendants ----------------------------------------------------------------------------------


def test_families_belong_to_the_closest_watched_ancestor() -> None:
    """Every process counts once: for itself if it is watched, else for its closest ancestor."""
    tree = {1: 0, 10: 1, 11: 10, 12: 11, 20: 12, 21: 20, 30: 1, 31: 30}
    kinship = Kinship(lambda known: tree)
    kinship.find([10, 20])
    assert sorted(kinship.family(10)) == [11, 12]
    assert kinship.family(20) == [21]
    assert (kinship.watched_parent(20), kinship.watched_parent(10)) == (10, None)
    assert kinship.family(30) == []


def test_who_lost_its_parent_is_asked_again() -> None:
    """What is known of parents is believed as long as the parent lives."""
    with python(f"import time; {READY} time.sleep(60)") as process:
        gone = subprocess.Popen(["true"])
        gone.wait()
        assert proc.parents({process.pid: gone.pid})[process.pid] == os.getpid()
        assert proc.parents({process.pid: 1})[process.pid] == 1


def test_who_is_no_longer_watched_is_forgotten(page: Page) -> None:
    """Not everybody's death is seen by a look at the process."""
    who = process_of(os.getpid())
    eyes = observer()
    eyes.look({who: [page.read()]})
    assert eyes.knows(who)
    eyes.look({})
    assert not eyes.knows(who)


def test_child_counts_for_its_parent(page: Page) -> None:
    """What a child burns that journals nothing is its parent's; a watched one counts for itself."""
    burning = "sum(range(10**9))"
    code = f"import subprocess, sys, time; \
child = subprocess.Popen([sys.executable, '-c', {burning!r}]); {READY} time.sleep(60)"
    with python(code) as process:
        who = process_of(process.pid)
        (child,) = (pid for pid, parent in proc.parents({}).items() if parent == process.pid)
        wait_for(lambda: (proc.read(child) or pytest.fail("gone")).cpu_seconds > 0.2)
        alone = observer().look({who: [page.read()]})[who].vitals
        assert alone is not None and alone.cpu_seconds is not None
        assert (alone.processes, alone.threads) == (2, 2)
        assert alone.cpu_seconds > 0.2
        both = observer().look({who: [page.read()], process_of(child): [page.read()]})
        parent, own = both[who].vitals, both[process_of(child)].vitals
        assert parent is not None and own is not None
        assert (parent.processes, own.processes) == (1, 1)
        assert (own.cpu_seconds or 0) > 0.2 > (parent.cpu_seconds or 0)


# --- still ----------------------------------------------------------------------------------------


def test_still_is_what_nothing_changes() -> None:
    """Each sign of life begins the time anew; a thousandth of a core is none."""
    life = Stillness(10.0)
    for _ in range(11):
        life.look(1.0, 5.0, "page", 7)
    assert life.is_still
    life.look(1.0, 5.0, "page", 8)
    assert not life.is_still
    for number in range(100):
        life.look(1.0, 5.0 + number * 0.0009, "page", 8)
    assert life.is_still
    life.look(1.0, 5.2, "page", 8)
    assert not life.is_still


def test_a_little_more_than_a_thousandth_is_life() -> None:
    """0.2 % of a core is somebody who works now and then."""
    life = Stillness(10.0)
    for number in range(100):
        life.look(1.0, number * 0.002)
        assert not life.is_still


def test_sleeping_machine_makes_nobody_still(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour without a look counts like a few looks: nobody was there to do anything."""
    with python(f"import time; {READY} time.sleep(60)") as process:
        who = process_of(process.pid)
        eyes = observer(stuck_after=60.0)
        clock = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: clock)
        eyes.look({who: [page.read()]})
        clock += 3600.0
        assert not eyes.look({who: [page.read()]})[who].is_still
        clock += 3600.0
        assert not eyes.look({who: [page.read()]})[who].is_still


def until_still(eyes: Observer, watched: Mapping[Process, list[PageReader]], who: Process) -> Seen:
    seen: Seen = Seen()

    def is_still() -> bool:
        nonlocal seen
        seen = eyes.look(watched)[who]
        return seen.is_still

    wait_for(is_still)
    return seen


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(LOCKED, None, id="deadlock"),
        pytest.param(f"import time; {READY} time.sleep(60)", None, id="sleep"),
        pytest.param(RECEIVES, "socket", id="recv"),
        pytest.param(
            f"import socket; s = socket.create_server(('127.0.0.1', 0)); {READY} s.accept()",
            "socket",
            id="accept",
        ),
        pytest.param(f"import select; e = select.epoll(); {READY} e.poll()", "socket", id="epoll"),
        pytest.param(
            f"import subprocess; {READY} subprocess.run(['sleep', '60'])", "child", id="child"
        ),
        pytest.param(f"import os; r, w = os.pipe(); {READY} os.read(r, 1)", "socket", id="pipe"),
        pytest.param(
            f"import os; terminal, _ = os.openpty(); {READY} os.read(terminal, 1)",
            "unreadable",
            id="terminal",
        ),
        pytest.param(
            f"import os; event = os.eventfd(0); {READY} os.read(event, 8)", "unreadable", id="event"
        ),
        pytest.param(
            "import threading, os; r, w = os.pipe();"
            f"threading.Thread(target=os.read, args=(r, 1)).start(); {READY}",
            "socket",
            id="thread",
        ),
    ],
)
def test_reason_of_being_still(page: Page, code: str, reason: str | None) -> None:
    """A lock or a sleep is stuck; who waits for a socket, a pipe or a child may be well."""
    with python(code) as process:
        who = process_of(process.pid)
        seen = until_still(observer(stuck_after=1.0), {who: [page.read()]}, who)
        assert (seen.waits_for, seen.stack) == (reason, None)


def test_open_operation_is_waited_for(page: Page) -> None:
    """A library's call that is open explains that nothing else happens."""
    with python(LOCKED) as process:
        slot = page.writer.thread_slot(1)
        assert slot is not None
        slot.operation[0] = 123 << 32 | 1
        assert waits_for(process.pid, [page.read()]) == "operation"


@pytest.mark.parametrize(
    "code",
    [
        f"{READY} sum(range(10**12))",
        f"import time; {READY}\nwhile True: open('/dev/null', 'w').write('x'); time.sleep(0.1)",
        f"import subprocess, sys; {READY} \
subprocess.run([sys.executable, '-c', 'sum(range(10**12))'])",
    ],
    ids=["busy", "writes", "busy child"],
)
def test_who_works_is_not_still(page: Page, code: str) -> None:
    """CPU or I/O, of the process or of a child that journals nothing, is life."""
    with python(code) as process, python(f"import time; {READY} time.sleep(60)") as other:
        who, sleeper = process_of(process.pid), process_of(other.pid)
        eyes = observer(stuck_after=1.0)
        watched = {who: [page.read()], sleeper: [page.read()]}
        until_still(eyes, watched, sleeper)
        for _ in range(3):
            assert not eyes.look(watched)[who].is_still


def test_records_are_life(page: Page) -> None:
    """Who counts records is not still, whatever else it does not do."""
    with python(f"import time; {READY} time.sleep(60)") as process, python(LOCKED) as other:
        who, sleeper = process_of(process.pid), process_of(other.pid)
        eyes = observer(stuck_after=1.0)
        count = 0

        def is_other_still() -> bool:
            nonlocal count
            count += 1
            page.writer.run.store(*[count] * len(LAYOUTS["run"]))
            seen = eyes.look({who: [page.read()], sleeper: []})
            assert not seen[who].is_still
            return seen[sleeper].is_still

        wait_for(is_other_still)


def test_watched_child_speaks_for_its_parent(page: Page) -> None:
    """Who waits for a child in a way that shows nothing is as well as that child is."""
    child = "import socket; a, b = socket.socketpair(); print('ready', flush=True); a.recv(1)"
    code = f"import subprocess, sys, time; \
child = subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    with python(code) as process:
        who = process_of(process.pid)
        (pid,) = (pid for pid, parent in proc.parents({}).items() if parent == process.pid)
        alone = until_still(observer(stuck_after=1.0), {who: [page.read()]}, who)
        assert alone.waits_for is None
        watched = {who: [page.read()], process_of(pid): [page.read()]}
        assert until_still(observer(stuck_after=1.0), watched, who).waits_for == "socket"


def test_wait_channels_where_system_calls_are_hidden(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the right to trace, the function of the kernel a thread sleeps in tells as much."""
    read: Callable[[str], str | None] = stillness._read
    monkeypatch.setattr(
        stillness, "_read", lambda path: None if path.endswith("/syscall") else read(path)
    )
    waiting = {
        LOCKED: None,
        RECEIVES: "socket",
        f"import subprocess; {READY} subprocess.run(['sleep', '60'])": "child",
    }
    for code, reason in waiting.items():
        with python(code) as process:
            wait_for(lambda pid=process.pid: read(f"/proc/{pid}/wchan") not in ("0", ""))  # type: ignore[misc]
            wait_for(lambda pid=process.pid, r=reason: waits_for(pid, []) == r)  # type: ignore[misc]


def test_what_cannot_be_read_is_no_proof(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be told of its threads, or of its I/O, nobody is called stuck."""
    with python(LOCKED) as process:
        who = process_of(process.pid)
        with monkeypatch.context() as patched:
            patched.setattr(stillness, "_read", lambda path: None)
            assert waits_for(process.pid, []) == "unreadable"
        monkeypatch.setattr(proc, "traffic", lambda pid: None)
        seen = until_still(observer(stuck_after=1.0), {who: [page.read()]}, who)
        assert seen.waits_for == "unreadable"
        assert seen.vitals is not None and seen.vitals.read_bytes is None


# --- the stack ------------------------------------------------------------------------------------


@pytest.mark.skipif(stack.find_py_spy() is None, reason="py-spy is not installed")
def test_stack_of_who_is_stuck(page: Page) -> None:
    """py-spy reads it from outside, and nothing of the command line comes with it."""
    code = f"def deadlock():\n    exec({LOCKED!r}, globals())\nsecret = 'hunter2'\ndeadlock()"
    with python(code) as process:
        who = process_of(process.pid)
        seen = until_still(observer(stuck_after=1.0, stack=True), {who: [page.read()]}, who)
        assert seen.waits_for is None
        assert seen.stack is not None
        assert seen.stack.startswith("Thread ")
        assert "deadlock (<string>" in seen.stack
        assert "hunter2" not in seen.stack


def test_stack_is_not_asked_for(page: Page) -> None:
    """Nobody is looked into who may be well, nor without the user's word."""
    with python(RECEIVES) as process:
        who = process_of(process.pid)
        eyes = observer(stuck_after=1.0, stack=True)
        assert until_still(eyes, {who: [page.read()]}, who).stack is None


def test_py_spy_that_fails_or_hangs(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stuck is said all the same, once it is clear that there will be no stack; once is enough."""
    calls = tmp_path / "calls"
    fake = tmp_path / "py-spy"
    fake.write_text(f"#!/bin/sh\necho x >> {calls}\nexec sleep 60\n")
    fake.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(stack, "_PATIENCE_SECONDS", 1.0)
    with python(LOCKED) as process:
        who = process_of(process.pid)
        eyes = observer(stuck_after=0.5, stack=True)
        for _ in range(2):
            seen = until_still(eyes, {who: [page.read()]}, who)
            assert (seen.waits_for, seen.stack) == (None, None)
    assert calls.read_text() == "x\n"


def fake_py_spy(directory: Path, output: str) -> str:
    """A py-spy that says *output*."""
    (directory / "output").write_text(output)
    fake = directory / "py-spy"
    fake.write_text(f"#!/bin/sh\nexec cat {directory}/output\n")
    fake.chmod(0o700)
    return str(fake)


def dumped(py_spy: str) -> str | None:
    dump = stack.StackDump(py_spy, os.getpid())
    wait_for(dump.is_done)
    return dump.text()


def test_stack_of_very_many_threads(tmp_path: Path) -> None:
    """More than a pipe holds, and than anybody wants to read: the first threads are enough."""
    threads = "".join(f'Thread {n} (idle): "t"\n    wait (threading.py:{n})\n' for n in range(9999))
    found = dumped(fake_py_spy(tmp_path, f"Process 1: python etl.py\nPython v3.11.7\n\n{threads}"))
    assert found is not None
    assert found.startswith('Thread 0 (idle): "t"\n    wait (threading.py:0)\nThread 1 ')


def test_command_line_that_looks_like_a_stack(tmp_path: Path) -> None:
    """Nothing of it comes with the stack, whatever it says."""
    command = "python etl.py --name Thread pool --password x"
    thread = 'Thread 7 (idle): "MainThread"\n    wait (threading.py:327)'
    output = f"Process 1: {command}\nPython v3.11.7 (/usr/bin/python3)\n\n{thread}\n"
    assert dumped(fake_py_spy(tmp_path, output)) == thread


# --- all of it ------------------------------------------------------------------------------------


@pytest.mark.skipif(stack.find_py_spy() is None, reason="py-spy is not installed")
def test_stuck_job_is_said_with_its_stack(jobs: Jobs) -> None:
    """A deadlock in a stage: one notice, with the line at which it stands."""
    source = """
        import threading, stagewatch
        def take_twice(lock):
            lock.acquire()
            lock.acquire()
        with stagewatch.stage("load"):
            take_twice(threading.Lock())
    """
    settings = {"STAGEWATCH_WATCH_INTERVAL": "0.2s", "STAGEWATCH_STUCK_AFTER": "1s"}
    process = jobs.start("python", jobs.script(source), STAGEWATCH_STUCK_STACK="1", **settings)

    def notices() -> list[Notice]:
        try:
            with jobs.history() as history:
                (run,) = history.active()
                found: list[Notice] = history.notices(run.run_id)
                return found
        except Exception:  # no run yet
            return []

    try:
        wait_for(notices)
        (stuck,) = notices()
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert stuck.name == semconv.RUN_STUCK
    assert stuck.attributes[semconv.RUN_STAGE] == "load"
    stack_lines = stuck.attributes[semconv.STACKTRACE].splitlines()
    assert "take_twice" in stack_lines[1] and "etl.py:5" in stack_lines[1]
    (run,) = jobs.runs()
    assert (run.error_type, run.last_stage) == ("killed", "load")
