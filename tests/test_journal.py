"""The journal survives any death of its writer, a full disk and its own re-entrancy."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewatch.exporters import journal as journal_module
from stagewatch.exporters.journal import (
    FIRST_SEGMENT,
    FRAME,
    ROLLED,
    JournalWriter,
    is_rolled,
    new_key,
    page_path,
    read_frames,
    segment_path,
    start_ticks,
)
from stagewatch.exporters.page import PageReader, Words
from stagewatch.records import NameDefined, decode


def records(directory: Path, key: str) -> list[NameDefined]:
    """Everything in the journal, over all segments."""
    found: list[NameDefined] = []
    number = 0
    while True:
        data = segment_path(directory, key, number).read_bytes()
        at = 0
        for body, end in read_frames(data, 0):
            record = decode(body)
            assert isinstance(record, NameDefined)
            found.append(record)
            at = end
        if not is_rolled(data, at):
            return found
        number += 1


def writer(directory: Path, max_bytes: int = 1 << 26, *, cow: bool = False) -> JournalWriter:
    return JournalWriter(directory, new_key(), max_bytes=max_bytes, copy_on_write=cow)


def page(of: JournalWriter) -> PageReader:
    return PageReader(page_path(of.directory, of.key).read_bytes())


@pytest.mark.parametrize("cow", [False, True])
def test_round_trip_over_segments(tmp_path: Path, cow: bool) -> None:
    """Records of all sizes come back in order, across segments, whatever the file system."""
    chance = random.Random(1)
    expected = [NameDefined(n, "x" * chance.choice([0, 5, 300, 9000])) for n in range(400)]
    journal = writer(tmp_path, cow=cow)
    for record in expected:
        journal.append(record)
    assert records(tmp_path, journal.key) == expected
    assert segment_path(tmp_path, journal.key, 2).exists()
    lengths = sum(len(journal_module.encode(record)) + FRAME.size for record in expected)
    assert page(journal).word(Words.JOURNAL_POSITION) == lengths


def test_record_bigger_than_any_segment(tmp_path: Path) -> None:
    """A record that no usual segment holds gets one that does."""
    expected = [NameDefined(1, "a"), NameDefined(2, "b" * (5 << 20)), NameDefined(3, "c")]
    journal = writer(tmp_path)
    for record in expected:
        journal.append(record)
    assert records(tmp_path, journal.key) == expected


def test_files_are_private(tmp_path: Path) -> None:
    """Nobody else may read what a job records."""
    journal = writer(tmp_path)
    for path in (page_path(tmp_path, journal.key), segment_path(tmp_path, journal.key, 0)):
        assert path.stat().st_mode & 0o777 == 0o600


def test_no_descriptor_is_held(tmp_path: Path) -> None:
    """A job that closes every descriptor goes on recording, and its own files stay its own."""
    before = set(os.listdir("/proc/self/fd"))
    journal = writer(tmp_path)
    assert set(os.listdir("/proc/self/fd")) == before
    journal.append(NameDefined(1, "a"))
    assert records(tmp_path, journal.key) == [NameDefined(1, "a")]


def test_cap_drops_and_counts(tmp_path: Path) -> None:
    """Over the cap nothing is written, everything is counted, and what is taken in makes room."""
    journal = writer(tmp_path, FIRST_SEGMENT * 3)
    for number in range(40):
        journal.append(NameDefined(number, "x" * 9000))
    kept = records(tmp_path, journal.key)
    dropped = page(journal).word(Words.DROPPED_CAP)
    assert (len(kept) + dropped, dropped > 0) == (40, True)
    held = sum(path.stat().st_size for path in tmp_path.glob("*.journal"))
    assert held <= FIRST_SEGMENT * 3
    segment_path(tmp_path, journal.key, 1).unlink()
    segment_path(tmp_path, journal.key, 0).unlink()
    journal._max_bytes = FIRST_SEGMENT * 8
    journal._refused_until = 0.0
    journal.append(NameDefined(99, "again" * 2000))
    data = segment_path(tmp_path, journal.key, 2).read_bytes()
    assert [decode(body) for body, _ in read_frames(data, 0)] == [NameDefined(99, "again" * 2000)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no tmpfs here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture(params=[True, False], ids=["fallocate", "zeros"])
def preallocation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and, as on macOS, without posix_fallocate(3)."""
    if not request.param:
        monkeypatch.delattr(os, "posix_fallocate")


@pytest.mark.usefixtures("preallocation")
def test_full_disk_counts_and_recovers(small_disk: Path) -> None:
    """A full disk raises nothing, kills nothing, is counted, and is over when there is space."""
    journal = writer(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (1 << 16))
    for number in range(30):
        journal.append(NameDefined(number, "x" * 9000))
    dropped = page(journal).word(Words.DROPPED_DISK)
    assert dropped > 0
    ballast.unlink()
    journal._refused_until = 0.0
    journal.append(NameDefined(30, "y"))
    assert len(records(small_disk, journal.key)) == 31 - dropped
    assert records(small_disk, journal.key)[-1] == NameDefined(30, "y")


@pytest.mark.usefixtures("preallocation")
def test_no_space_to_begin_with(small_disk: Path) -> None:
    """Where not even the page fits, the error comes at once and leaves no file."""
    (small_disk / "ballast").write_bytes(b"x" * (220 << 10))
    with pytest.raises(OSError, match="No space"):
        writer(small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("cow", [False, True])
def test_files_no_larger_than_allowed(tmp_path: Path, cow: bool) -> None:
    """What the limit on files forbids is counted, and not tried: the kernel would send SIGXFSZ."""
    received: list[int] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, lambda number, _: received.append(number))
    journal = writer(tmp_path, cow=cow)
    journal.append(NameDefined(1, "x" * 9000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FIRST_SEGMENT // 4, before[1]))
    try:
        for number in range(2, 10):
            journal.append(NameDefined(number, "x" * 9000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert received == []
    dropped = page(journal).word(Words.DROPPED_DISK)
    assert len(records(tmp_path, journal.key)) + dropped == 9
    assert dropped > 0


def test_appends_of_signal_handlers(tmp_path: Path) -> None:
    """A handler that records while an append or a roll is under way loses and breaks nothing."""
    journal = writer(tmp_path)
    handled = 0

    def handler(*_: object) -> None:
        nonlocal handled
        handled += 1
        journal.append(NameDefined(-handled, "handler" * 200))

    previous = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for number in range(6000):
            journal.append(NameDefined(number, "x" * 150))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    found = [record.number for record in records(tmp_path, journal.key)]
    dropped = sum(page(journal).word(word) for word in (1, 2, 3))
    assert handled > 10
    assert [number for number in found if number >= 0] == list(range(6000))
    assert len(found) + dropped == 6000 + handled


def test_handlers_that_raise_leave_no_gap(tmp_path: Path) -> None:
    """An exception out of a signal handler costs at most the record it hit, never others."""

    class Timeout(Exception):
        pass

    def handler(*_: object) -> None:
        raise Timeout

    journal = writer(tmp_path)
    interrupted = number = 0
    previous = signal.signal(signal.SIGALRM, handler)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 1e-3))
            while time.monotonic() < until:
                number += 1
                journal.append(NameDefined(number, "x" * 60))
        except Timeout:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    journal.append(NameDefined(0, "last"))
    found = records(tmp_path, journal.key)
    assert interrupted > 20
    assert found[-1] == NameDefined(0, "last")
    assert number - interrupted <= len(found) <= number + 1


def test_threads_share_a_journal(tmp_path: Path) -> None:
    """Records of several threads are all there and whole."""
    journal = writer(tmp_path)

    def write(thread: int) -> None:
        for number in range(500):
            journal.append(NameDefined(thread * 1000 + number, "t" * 50))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = sorted(record.number for record in records(tmp_path, journal.key))
    assert found == [t * 1000 + n for t in range(4) for n in range(500)]


def test_killed_in_the_middle(tmp_path: Path) -> None:
    """Of a writer that is killed anywhere, every record but perhaps the last is there."""
    for _ in range(15):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            try:
                journal = writer(tmp_path)
                os.write(writing, journal.key.encode())
                number = 0
                while True:
                    number += 1
                    journal.append(NameDefined(number, "x" * (number % 700)))
            finally:
                os._exit(1)
        os.close(writing)
        key = os.read(reading, 100).decode()
        os.close(reading)
        time.sleep(random.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = [record.number for record in records(tmp_path, key)]
        assert found == list(range(1, len(found) + 1))
        position = PageReader(page_path(tmp_path, key).read_bytes()).word(Words.JOURNAL_POSITION)
        sizes = [
            len(journal_module.encode(NameDefined(n, "x" * (n % 700)))) + FRAME.size for n in found
        ]
        assert sum(sizes[:-1]) <= position <= sum(sizes)


def test_half_a_frame_is_none(tmp_path: Path) -> None:
    """What a dying writer left half written is not read, however far it got."""
    journal = writer(tmp_path)
    journal.append(NameDefined(1, "whole"))
    data = bytearray(segment_path(tmp_path, journal.key, 0).read_bytes())
    ((_, end),) = read_frames(data, 0)
    journal.append(NameDefined(2, "half"))
    full = segment_path(tmp_path, journal.key, 0).read_bytes()
    for cut in range(end, end + 8 + len(journal_module.encode(NameDefined(2, "half")))):
        partial = full[:cut] + bytes(len(full) - cut)
        assert len(list(read_frames(partial, 0))) == 1
    FRAME.pack_into(data, end, ROLLED, 0)
    assert [is_rolled(data, end), is_rolled(data, 0)] == [True, False]


def test_key_names_the_process() -> None:
    """A key begins with what the kernel identifies a process by, and is never given twice."""
    pid, ticks, _ = new_key().split(".")
    assert (int(pid), int(ticks)) == (os.getpid(), start_ticks())
    assert new_key() != new_key()
