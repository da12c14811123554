"""What the recorder does with journals: each record once, each death once, nothing stops it."""

from __future__ import annotations

import os
import select
import signal
import socket
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from selectors import BaseSelector, DefaultSelector

import msgspec
import pytest

from stagewatch.exporters.journal import (
    FRAME,
    JournalWriter,
    boot_id,
    host_id,
    page_path,
    pid_namespace,
    read_frames,
    segment_path,
    start_ticks,
)
from stagewatch.exporters.page import PageReader, Words
from stagewatch.exporters.recorder.deposit import Deposit
from stagewatch.exporters.recorder.door import Caller, Door, is_key, ready
from stagewatch.exporters.recorder.loop import Recorder
from stagewatch.exporters.recorder.watching import exits, kernel
from stagewatch.exporters.recorder.watching.follow import Follower, Part
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.exporters.recorder.watching.vitals import Sighting
from stagewatch.exporters.recorder.watching.watch import Watch, journals
from stagewatch.records import NameDefined, ProcessStarted, Record

DEAD_PID = 4_000_000
"""More than this kernel ever gives."""
NOBODY = 65534


class FakeIntake:
    """Remembers; fails where `fails` says so."""

    def __init__(self) -> None:
        self.taken: dict[str, list[Record]] = {}
        self.closed: list[tuple[str, int | None, bool]] = []
        self.died_at: list[int | None] = []
        self.positions: dict[str, tuple[int, int]] = {}
        self.finished: list[str] = []
        """Keys of journals whose run is over though the process goes on."""
        self.together: list[int] = []
        """Of how many journals it took in, each time."""
        self.fails: Callable[[Sequence[Record]], Exception | None] = lambda records: None

    def resume(self, key: str) -> tuple[int, int] | None:
        return self.positions.get(key)

    def take(self, *parts: Part) -> None:
        for part in parts:
            if error := self.fails(part.records):
                raise error
        self.together.append(len(parts))
        for part in parts:
            self.taken.setdefault(part.key, []).extend(part.records)
            self.positions[part.key] = (part.segment, part.offset)

    def close(self, key: str, page: PageReader | None, death: Death) -> None:
        if error := self.fails([]):
            raise error
        self.closed.append((key, death.wait_status, death.lost_host))
        self.died_at.append(death.at)
        self.positions[key] = (-1, -1)

    def over(self) -> list[str]:
        return self.finished

    def tick(self, sightings: Mapping[str, Sighting], now: int) -> None: ...

    def note(self, now: int) -> None: ...

    def is_busy(self) -> bool:
        return False

    def is_outdated(self) -> bool:
        return False

    def stop(self, timeout: float) -> None: ...

    def headers(self, environ: dict[str, str]) -> None: ...

    def numbers(self, key: str) -> list[int]:
        return [record.number for record in self.taken[key] if isinstance(record, NameDefined)]


@pytest.fixture
def intake() -> FakeIntake:
    return FakeIntake()


@pytest.fixture
def selector() -> Iterator[BaseSelector]:
    with DefaultSelector() as selector:
        yield selector


@pytest.fixture
def watch(tmp_path: Path, intake: FakeIntake, selector: BaseSelector) -> Iterator[Watch]:
    watch = Watch(tmp_path, intake, selector)
    yield watch
    watch.close()


@pytest.fixture
def door(tmp_path: Path, selector: BaseSelector) -> Iterator[Door]:
    door = Door(tmp_path, selector)
    door.reopen()
    yield door
    door.close()


def started(key: str, *, host: str = "", boot: str = "", opens_run: bool = True) -> ProcessStarted:
    pid, ticks, _ = key.split(".")
    return ProcessStarted(
        key=key,
        pid=int(pid),
        ticks=int(ticks),
        ppid=1,
        host_id=host or host_id(),
        boot_id=boot or boot_id(),
        pid_namespace=pid_namespace(),
        run_id="r",
        trace_id=b"t",
        opens_run=opens_run,
        start=1,
        resource={},
        pipeline="p",
    )


def write(
    room: Path, key: str, numbers: Sequence[int], first: Record | None = None
) -> JournalWriter:
    journal = JournalWriter(room, key, max_bytes=1 << 26)
    journal.page.set(Words.HELD, 0)  # by this process, which lives
    journal.append(first or started(key))
    for number in numbers:
        journal.append(NameDefined(number, f"name {number}"))
    return journal


def of_dead(random: str = "aa") -> str:
    return f"{DEAD_PID}.1.{random}"


def child(end: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:  # pragma: no cover
        try:
            end()
        finally:
            os._exit(99)
    return pid


def left(room: Path) -> list[str]:
    return sorted(path.name for path in room.iterdir())


# --- what the kernel says -----------------------------------------------------------------------


@pytest.mark.parametrize("reaped", [False, True])
@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda: os._exit(0), 0),
        (lambda: os._exit(7), 7 << 8),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), signal.SIGKILL),
    ],
)
def test_wait_status(end: Callable[[], object], status: int, reaped: bool) -> None:
    """The status of a zombie and of a process that was reaped are both to be had."""
    pid = child(end)
    ticks = start_ticks(pid)
    pidfd = os.pidfd_open(pid)
    select.select([pidfd], [], [], 10)
    if reaped:
        os.waitpid(pid, 0)
    try:
        assert kernel.wait_status(pidfd, pid, ticks) == status
    finally:
        os.close(pidfd)
        if not reaped:
            os.waitpid(pid, 0)


def test_status_that_is_not_ours_to_know() -> None:
    """To another group the kernel shows the status of a zombie as 0: that is no success."""
    if os.geteuid():
        pytest.skip("only root may be another user")
    reading, writing = os.pipe()

    def become(group: int) -> None:
        os.setgroups([])
        os.setgid(group)
        os.setuid(NOBODY)

    def parent() -> None:
        become(NOBODY)
        os.write(writing, str(child(lambda: os._exit(3))).encode())
        signal.pause()

    keeping = child(parent)
    pid = int(os.read(reading, 100))
    pidfd = os.pidfd_open(pid)
    select.select([pidfd], [], [], 10)
    ticks = start_ticks(pid)

    def ask() -> None:
        become(NOBODY - 1)
        os._exit(kernel.wait_status(pidfd, pid, ticks) is not None)

    try:
        assert kernel.wait_status(pidfd, pid, ticks) == 3 << 8
        assert os.waitpid(child(ask), 0)[1] == 0
    finally:
        os.kill(keeping, signal.SIGKILL)
        os.waitpid(keeping, 0)
        for descriptor in (pidfd, reading, writing):
            os.close(descriptor)


def test_status_that_this_kernel_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 6.15 nobody can be asked about a reaped process: no reason to wait."""
    monkeypatch.setattr(kernel, "_of_reaped", lambda pidfd: None)
    waits: list[int] = []
    monkeypatch.setattr(kernel, "_wait_for_reaping", waits.append)
    pid = child(lambda: os._exit(3))
    ticks, pidfd = start_ticks(pid), os.pidfd_open(pid)
    os.waitpid(pid, 0)
    assert (kernel.wait_status(pidfd, pid, ticks), waits) == (None, [])
    os.close(pidfd)


def test_pid_given_to_another() -> None:
    """A pid alone names nobody: with other ticks it is another process."""
    ticks = start_ticks()
    assert kernel.is_running(os.getpid(), ticks)
    assert not kernel.is_running(os.getpid(), ticks + 1)
    assert kernel.open_pidfd(os.getpid(), ticks + 1) is None
    assert kernel.open_pidfd(DEAD_PID, 1) is None


# --- deaths -------------------------------------------------------------------------------------


def test_death_by_pidfd(
    tmp_path: Path, watch: Watch, intake: FakeIntake, selector: BaseSelector
) -> None:
    """A process that called is read to its end and closed with its status; no file remains."""
    reading, writing = os.pipe()

    def job() -> None:
        key = f"{os.getpid()}.{start_ticks()}.ab"
        write(tmp_path, key, [1, 2])
        os.write(writing, key.encode())
        time.sleep(0.2)
        os._exit(3)

    pid = child(job)
    key = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    watch.greet(Caller(key, os.pidfd_open(pid)))
    assert watch.read()
    assert intake.numbers(key) == [1, 2]
    assert list(watch.sightings()) == [key]
    (descriptor,) = ready(selector, 10)
    before = time.time_ns()
    watch.died(descriptor)
    os.waitpid(pid, 0)
    assert intake.closed == [(key, 3 << 8, False)]
    assert intake.died_at[0] is not None and intake.died_at[0] >= before
    assert (left(tmp_path), watch.followers, watch.sightings()) == ([], {}, {})


def test_death_of_who_has_lost_its_files(
    tmp_path: Path, watch: Watch, intake: FakeIntake, selector: BaseSelector
) -> None:
    """Somebody cleared the directory: the death is taken in, and wakes nobody again."""
    pid = child(lambda: os._exit(5))
    key = f"{pid}.{start_ticks(pid)}.aa"
    write(tmp_path, key, [1])
    watch.greet(Caller(key, os.pidfd_open(pid)))
    for path in tmp_path.iterdir():
        path.unlink()
    (descriptor,) = ready(selector, 10)
    watch.died(descriptor)
    os.waitpid(pid, 0)
    assert (intake.closed, intake.numbers(key)) == ([(key, 5 << 8, False)], [1])
    assert (ready(selector, 0), watch.followers) == ([], {})


def test_exec_closes_both_journals(
    tmp_path: Path, watch: Watch, intake: FakeIntake, selector: BaseSelector
) -> None:
    """What one process wrote before and after an exec is closed at its death, the opener last."""
    reading, writing = os.pipe()

    def job() -> None:
        own = f"{os.getpid()}.{start_ticks()}"
        write(tmp_path, f"{own}.aa", [1])
        write(tmp_path, f"{own}.bb", [2], started(f"{own}.bb", opens_run=False))
        os.write(writing, own.encode())
        time.sleep(0.1)
        os._exit(0)

    pid = child(job)
    own = os.read(reading, 100).decode()
    os.close(reading)
    os.close(writing)
    watch.greet(Caller(f"{own}.aa", os.pidfd_open(pid)))
    (descriptor,) = ready(selector, 10)
    watch.died(descriptor)
    os.waitpid(pid, 0)
    assert intake.closed == [(f"{own}.bb", 0, False), (f"{own}.aa", 0, False)]
    assert left(tmp_path) == []


def test_descriptor_numbers_are_given_again(
    tmp_path: Path, watch: Watch, intake: FakeIntake, door: Door, selector: BaseSelector
) -> None:
    """A pidfd that gets the number of a connection that just spoke is not taken for a death."""
    recorder = Recorder(tmp_path, intake, door, watch, selector)
    callers = []
    for random in ("aa", "bb", "cc"):
        key = f"{os.getpid()}.{start_ticks()}.{random}"
        write(tmp_path, key, [1])
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(tmp_path / "sock"))
        callers.append((key, connection))
    assert door.callers() == []
    pidfd = os.pidfd_open(os.getpid())
    for key, connection in callers:
        socket.send_fds(connection, [key.encode()], [pidfd])
    connections = ready(selector, 10)
    assert len(connections) == 3
    recorder._attend(connections)
    assert set(connections) & {follower.pidfd for follower in watch.followers.values()}
    assert (intake.closed, len(watch.followers)) == ([], 3)
    os.close(pidfd)
    for _, connection in callers:
        connection.close()


@pytest.mark.internal_errors
def test_dead_that_cannot_be_closed_yet(
    tmp_path: Path, watch: Watch, intake: FakeIntake, selector: BaseSelector
) -> None:
    """A death that the history cannot take yet is kept with its status, and wakes nobody again."""
    pid = child(lambda: os._exit(5))
    key = f"{pid}.{start_ticks(pid)}.aa"
    write(tmp_path, key, [1])
    watch.greet(Caller(key, os.pidfd_open(pid)))
    (descriptor,) = ready(selector, 10)
    intake.fails = lambda records: sqlite3.OperationalError("locked")
    watch.died(descriptor)
    os.waitpid(pid, 0)
    assert ready(selector, 0) == []
    assert (list(watch.followers), watch.sightings()) == ([key], {})
    intake.fails = lambda records: None
    time.sleep(0.6)
    watch.bury()
    assert intake.closed == [(key, 5 << 8, False)]


def test_found_without_a_word(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """A journal without its first record may be another host's: it is judged when it is old."""
    JournalWriter(tmp_path, of_dead(), max_bytes=1 << 20)
    watch.find(journals(tmp_path))
    watch.bury()
    assert (intake.closed, len(left(tmp_path))) == ([], 2)
    os.utime(segment_path(tmp_path, of_dead(), 0), (1, 1))
    watch.find(journals(tmp_path))
    watch.bury()
    assert left(tmp_path) == []


def test_found_dead(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """A process that nobody saw die is closed as unknown, as of its last sign of life."""
    write(tmp_path, of_dead(), [1])
    os.utime(segment_path(tmp_path, of_dead(), 0), ns=(12345, 12345))
    watch.find(journals(tmp_path))
    watch.bury()
    assert (intake.closed, intake.died_at) == ([(of_dead(), None, False)], [12345])
    assert left(tmp_path) == []


def test_found_dead_but_had_called(
    tmp_path: Path, watch: Watch, intake: FakeIntake, selector: BaseSelector
) -> None:
    """A pidfd that comes after the judgement still gives the true status."""
    pid = child(lambda: os._exit(5))
    key = f"{pid}.{start_ticks(pid)}.aa"
    pidfd = os.pidfd_open(pid)
    os.waitpid(pid, 0)
    write(tmp_path, key, [1])
    watch.find(journals(tmp_path))
    watch.greet(Caller(key, pidfd))
    watch.bury()
    assert intake.closed == []
    (descriptor,) = ready(selector, 10)
    watch.died(descriptor)
    assert intake.closed == [(key, 5 << 8, False)]


def test_other_boot_and_other_host(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """Another boot of this host lost its processes; another host's are not ours to judge; another
    container's of this boot are."""
    write(tmp_path, of_dead("aa"), [1], started(of_dead("aa"), boot="another"))
    write(tmp_path, of_dead("bb"), [1], started(of_dead("bb"), host="another", boot="another"))
    write(tmp_path, of_dead("cc"), [1], started(of_dead("cc"), host="another"))
    for _ in range(2):
        watch.find(journals(tmp_path))
        watch.bury()
    assert sorted(intake.closed) == [(of_dead("aa"), None, True), (of_dead("cc"), None, False)]
    assert left(tmp_path) == [f"{of_dead('bb')}.0.journal", f"{of_dead('bb')}.page"]


def test_another_namespace(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """There a pid says nothing: who holds the page lives, who held it is dead, else who knows."""
    living = write(tmp_path, of_dead("aa"), [1])
    dead = write(tmp_path, of_dead("bb"), [1])
    silent = write(tmp_path, of_dead("cc"), [1])
    for journal in (living, dead, silent):
        move(journal, pid_namespace() + 1)
    living.page.set(Words.HELD, 1)
    let_go(dead)
    watch.find(journals(tmp_path))
    watch.bury()
    assert intake.closed == [(dead.key, None, False)]


def test_without_start_ticks(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """Of a process that had no /proc its page tells whether it lives, its pid alone does not."""
    living = write(tmp_path, f"{os.getpid()}.0.aa", [1])
    living.page.set(Words.HELD, 1)
    dead = write(tmp_path, f"{os.getpid()}.0.bb", [1])
    let_go(dead)
    watch.find(journals(tmp_path))
    watch.bury()
    assert intake.closed == [(dead.key, None, False)]
    assert watch.followers[living.key].pidfd is not None


@pytest.mark.parametrize("world", ["boot", "namespace", "no proc", "slow parent"])
def test_word_of_a_death_elsewhere(
    tmp_path: Path,
    watch: Watch,
    intake: FakeIntake,
    monkeypatch: pytest.MonkeyPatch,
    world: str,
) -> None:
    """What `stagewatch run` left counts where no kernel can be asked: its exact status and time."""
    ticks = 0 if world == "no proc" else 1
    key = f"{DEAD_PID}.{ticks}.aa"
    journal = write(tmp_path, key, [1], started(key, boot="another" if world == "boot" else ""))
    let_go(journal)

    def leave(*_: object) -> None:
        exits.leave(str(tmp_path), DEAD_PID, ticks, signal.SIGKILL, 12345, 0, 1.5, 1 << 20)

    if world == "slow parent":  # it may live there, and still be about to say it
        exits.promise(tmp_path, DEAD_PID, ticks, DEAD_PID, 1)
        monkeypatch.setattr(exits.time, "sleep", leave)
    else:
        leave()
    if world in ("namespace", "slow parent"):
        move(journal, pid_namespace() + 1)
    watch.find(journals(tmp_path))
    watch.bury()
    assert intake.closed == [(key, signal.SIGKILL, world == "boot")]
    assert intake.died_at == [12345]
    assert left(tmp_path) == []


def move(journal: JournalWriter, namespace: int) -> None:
    """As if its process were in another PID namespace."""
    with page_path(journal.directory, journal.key).open("r+b") as file:
        file.seek(24)
        file.write(struct.pack("@Q", namespace))


def let_go(journal: JournalWriter) -> None:
    """As if its process, which held its page, were dead."""
    journal.page.set(Words.HELD, 1)
    page = page_path(journal.directory, journal.key)
    page.with_suffix(".copy").write_bytes(page.read_bytes())
    page.with_suffix(".copy").rename(page)  # which nobody holds


def test_our_own_end(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """A process that nothing outlives closes its own journals itself, alive as it is."""
    key = f"{os.getpid()}.{start_ticks()}.aa"
    write(tmp_path, key, [1])
    watch.find(journals(tmp_path))
    watch.end_ours(start_ticks())
    assert intake.closed == [(key, None, False)]


def test_pages_without_journal_are_swept(tmp_path: Path) -> None:
    """A page whose process died before its journal goes away, but not at once."""
    page_path(tmp_path, of_dead()).touch()
    assert journals(tmp_path) == []
    assert left(tmp_path) == [f"{of_dead()}.page"]
    os.utime(page_path(tmp_path, of_dead()), (1, 1))
    journals(tmp_path)
    assert left(tmp_path) == []


def test_keys_are_no_paths() -> None:
    """Nothing that a caller sends leads out of the room."""
    assert [is_key(text) for text in ("1.2.ab", "1.2.", "1.2", "../1.2.ab", "1.2.a/b", "")] == [
        True,
        *[False] * 5,
    ]


# --- without pidfds, and with the keeper's ------------------------------------------------------


@pytest.fixture
def no_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> int:
        raise OSError("no such system call")

    monkeypatch.setattr(os, "pidfd_open", refuse)


@pytest.mark.usefixtures("no_pidfds")
@pytest.mark.parametrize(("is_reaped", "status"), [(False, 5 << 8), (True, None)])
def test_death_without_pidfd(
    tmp_path: Path, watch: Watch, intake: FakeIntake, is_reaped: bool, status: int | None
) -> None:
    """An old kernel or a sandbox: the processes are looked for, and a zombie still tells."""
    reading, writing = os.pipe()
    pid = child(lambda: os._exit(len(os.read(reading, 5))))
    ticks = start_ticks(pid)
    for random in ("aa", "bb"):
        key = f"{pid}.{ticks}.{random}"
        write(tmp_path, key, [1], started(key, opens_run=random == "aa"))
        watch.greet(Caller(key))
    watch.find(journals(tmp_path))
    watch.bury()
    assert len(watch.sightings()) == 2
    assert intake.closed == []
    before = time.time_ns()
    os.write(writing, b"12345")
    os.waitid(os.P_PID, pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))
    watch.find(journals(tmp_path))
    watch.bury()
    if not is_reaped:
        os.waitpid(pid, 0)
    assert intake.closed == [(f"{pid}.{ticks}.{random}", status, False) for random in ("bb", "aa")]
    assert all(at is not None and at >= before for at in intake.died_at)
    os.close(reading)
    os.close(writing)


def test_python_without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python that was built on an old system does not know them, whatever the kernel can."""
    monkeypatch.delattr(os, "pidfd_open")
    assert kernel.open_pidfd(os.getpid(), start_ticks()) is None


def test_deposit() -> None:
    """Who looks takes nothing away; what nobody needs goes, and too much is no error."""
    entrance, exit = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    deposit = Deposit(entrance.detach(), exit.detach())
    pidfd = os.pidfd_open(os.getpid())
    for number in (*range(3000), 0):
        deposit.put(f"{number}.1.aa", pidfd)
    found = deposit.left()
    assert [caller.key for caller in found] == [f"{number}.1.aa" for number in range(len(found))]
    assert 200 < len(found) < 3000
    again = deposit.left()  # as the next recorder would
    assert [caller.key for caller in again] == [caller.key for caller in found]
    for _ in range(40):
        deposit.tidy(lambda key: key in ("3.1.aa", "50.1.aa"))
    kept = deposit.left()
    assert [caller.key for caller in kept] == ["3.1.aa", "50.1.aa"]
    for caller in (*found, *again, *kept):
        assert caller.pidfd is not None
        assert f"Pid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{caller.pidfd}").read_text()
        os.close(caller.pidfd)
    os.close(pidfd)
    deposit.close()


# --- reading ------------------------------------------------------------------------------------


def test_reads_only_news(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """A journal is opened again only when its page says that there is more."""
    journal = write(tmp_path, f"{os.getpid()}.{start_ticks()}.aa", [1])
    watch.find(journals(tmp_path))
    assert [watch.read() > 0, watch.read() > 0] == [True, False]
    journal.append(NameDefined(2, "more"))
    assert [watch.read() > 0, watch.read() > 0] == [True, False]
    assert intake.numbers(journal.key) == [1, 2]


def test_journals_are_taken_in_together(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """What is new in all of them is taken in at once; who has more goes on by itself."""
    keys = [f"{os.getpid()}.{start_ticks()}.{random}" for random in ("aa", "bb", "cc")]
    first, *_ = (write(tmp_path, key, [1]) for key in keys)
    many = write(tmp_path, f"{os.getpid()}.{start_ticks()}.dd", range(20_000))
    watch.find(journals(tmp_path))
    assert watch.read() > 1 << 17
    assert [intake.numbers(key) for key in keys] == [[1]] * 3
    assert intake.numbers(many.key) == list(range(20_000))
    assert intake.together[0] == 4
    assert set(intake.together[1:]) == {1}
    assert watch.read(everything=True) == 0
    first.append(NameDefined(2, "more"))
    assert watch.read()
    assert intake.numbers(first.key) == [1, 2]


@pytest.mark.internal_errors
def test_who_cannot_be_taken_in_holds_nobody_up(
    tmp_path: Path, watch: Watch, intake: FakeIntake
) -> None:
    """One journal with a record that the intake cannot take: all others are taken, and its own."""
    sick, well = (f"{os.getpid()}.{start_ticks()}.{random}" for random in ("aa", "bb"))
    write(tmp_path, sick, [1, 2, 3])
    write(tmp_path, well, [4, 5])
    poison = NameDefined(2, "name 2")
    intake.fails = lambda records: ValueError("poison") if poison in records else None
    watch.find(journals(tmp_path))
    watch.read()
    assert (intake.numbers(sick), intake.numbers(well)) == ([1, 3], [4, 5])
    assert watch.read() == 0


def test_segments_go_away_but_the_first(tmp_path: Path, intake: FakeIntake) -> None:
    """Segments that are taken in are deleted; the first one says who the process is."""
    key = of_dead()
    write(tmp_path, key, range(20_000))
    follower = Follower(tmp_path, key, intake)
    assert follower.read(final=True)
    assert intake.numbers(key) == list(range(20_000))
    segments = sorted(int(name.split(".")[3]) for name in left(tmp_path) if "journal" in name)
    assert segments == [0, intake.positions[key][0]]
    follower.forget()


def test_next_recorder_goes_on(tmp_path: Path, intake: FakeIntake) -> None:
    """A recorder that takes over reads on from the position in the history, in any segment."""
    key = of_dead()
    journal = write(tmp_path, key, range(5000))
    first = Follower(tmp_path, key, intake)
    assert first.read()
    first.forget()
    journal.append(NameDefined(5000, "late"))
    second = Follower(tmp_path, key, intake)
    assert second.started is not None
    assert second.started.key == key
    assert second.read()
    second.forget()
    assert intake.numbers(key) == list(range(5001))


def test_closed_journal_is_only_deleted(tmp_path: Path, watch: Watch, intake: FakeIntake) -> None:
    """A recorder killed between closing and deleting leaves files; the next one deletes them."""
    write(tmp_path, of_dead(), [1])
    intake.positions[of_dead()] = (-1, -1)
    watch.find(journals(tmp_path))
    watch.bury()
    assert (left(tmp_path), intake.taken, intake.closed) == ([], {}, [])


def damage(
    room: Path, key: str, number: int, change: Callable[[bytearray, int, int], None]
) -> None:
    path = segment_path(room, key, 0)
    data = bytearray(path.read_bytes())
    at = 0
    for index, (_, end) in enumerate(read_frames(bytes(data), 0)):
        if index == number:
            change(data, at, end)
            path.write_bytes(data)
            return
        at = end


def test_damaged_record_of_the_dead_is_skipped(tmp_path: Path, intake: FakeIntake) -> None:
    """One record that does not fit its checksum does not take those behind it along."""
    write(tmp_path, of_dead(), [1, 2, 3])

    def flip(data: bytearray, at: int, end: int) -> None:
        data[end - 1] ^= 0xFF

    damage(tmp_path, of_dead(), 2, flip)
    follower = Follower(tmp_path, of_dead(), intake)
    assert follower.read()
    assert intake.numbers(of_dead()) == [1]
    assert follower.read(final=True)
    assert intake.numbers(of_dead()) == [1, 3]
    follower.forget()


@pytest.mark.internal_errors
def test_record_of_another_version_is_skipped(tmp_path: Path, intake: FakeIntake) -> None:
    """A whole frame with a record that nobody knows is passed over, in a live journal too."""
    journal = write(tmp_path, of_dead(), [1])

    class Unknown(msgspec.Struct, array_like=True, tag="?"):
        value: int

    journal.append(Unknown(5))  # type: ignore[arg-type]
    journal.append(NameDefined(2, "known"))
    follower = Follower(tmp_path, of_dead(), intake)
    assert follower.read()
    assert intake.numbers(of_dead()) == [1, 2]
    follower.forget()


@pytest.mark.internal_errors
def test_record_that_the_intake_cannot_take(tmp_path: Path, intake: FakeIntake) -> None:
    """An intake that fails on one record gets all others."""
    write(tmp_path, of_dead(), [1, 2, 3])
    poison = NameDefined(2, "name 2")
    intake.fails = lambda records: ValueError("poison") if poison in records else None
    follower = Follower(tmp_path, of_dead(), intake)
    assert follower.read()
    assert intake.numbers(of_dead()) == [1, 3]
    follower.forget()


@pytest.mark.internal_errors
@pytest.mark.parametrize("error", [sqlite3.OperationalError("locked"), ValueError("broken")])
def test_history_that_fails_for_a_while(
    tmp_path: Path, watch: Watch, intake: FakeIntake, error: Exception
) -> None:
    """Where the history cannot be written nothing is lost, nothing doubled, nothing runs hot."""
    write(tmp_path, of_dead("aa"), [1, 2])
    calls = 0

    def fails(records: Sequence[Record]) -> Exception:
        nonlocal calls
        calls += 1
        return error

    intake.fails = fails
    watch.find(journals(tmp_path))
    for _ in range(50):
        watch.bury()
        watch.read()
    assert calls <= 10
    assert len(left(tmp_path)) == 2
    intake.fails = lambda records: None
    time.sleep(0.6)
    watch.bury()
    assert intake.numbers(of_dead("aa")) == [1, 2]
    assert intake.closed == [(of_dead("aa"), None, False)]


def test_half_a_frame_of_the_dead(tmp_path: Path, intake: FakeIntake) -> None:
    """A frame that its writer could not finish ends the journal."""
    write(tmp_path, of_dead(), [1, 2])
    damage(tmp_path, of_dead(), 2, lambda data, at, end: struct.pack_into("=I", data, at, 0))
    follower = Follower(tmp_path, of_dead(), intake)
    assert follower.read(final=True)
    assert intake.numbers(of_dead()) == [1]
    follower.forget()


def test_record_bigger_than_a_chunk(tmp_path: Path, intake: FakeIntake) -> None:
    """A record that is bigger than what is read at once comes whole."""
    journal = write(tmp_path, of_dead(), [1])
    journal.append(NameDefined(2, "x" * (3 << 20)))
    journal.append(NameDefined(3, "behind"))
    follower = Follower(tmp_path, of_dead(), intake)
    assert follower.read()
    assert intake.numbers(of_dead()) == [1, 2, 3]
    follower.forget()


def test_no_page(tmp_path: Path, intake: FakeIntake) -> None:
    """A journal whose page is gone or damaged is read all the same."""
    write(tmp_path, of_dead(), [1])
    page_path(tmp_path, of_dead()).write_bytes(b"x" * FRAME.size)
    follower = Follower(tmp_path, of_dead(), intake)
    assert follower.news()
    assert follower.read()
    assert (follower.page, intake.numbers(of_dead())) == (None, [1])
    follower.forget()
