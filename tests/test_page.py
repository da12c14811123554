"""The status page is whole whenever it is read, whatever became of its writer."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewatch.exporters import page as page_module
from stagewatch.exporters.journal import start_ticks
from stagewatch.exporters.page import (
    LAYOUTS,
    SIZE,
    STACK,
    THREADS,
    Cell,
    OpenThread,
    PageReader,
    PageWriter,
    Words,
)


@pytest.fixture(params=[False, True], ids=["mapped", "written"])
def page(request: pytest.FixtureRequest, tmp_path: Path) -> PageWriter:
    """A page on an ordinary file system, and one on a copy-on-write one."""
    return PageWriter(tmp_path / "page", 77, 4026531836, copy_on_write=request.param)


def read(tmp_path: Path) -> PageReader:
    return PageReader((tmp_path / "page").read_bytes())


def made(cell: Cell | None) -> Cell:
    assert cell is not None
    return cell


def test_header_and_words(page: PageWriter, tmp_path: Path) -> None:
    """The page names its process; each word changes by itself."""
    page.set(Words.OVERHEAD, 5)
    page.set(Words.JOURNAL_POSITION, 1 << 40)
    found = read(tmp_path)
    assert (found.pid, found.ticks, found.pid_namespace) == (os.getpid(), 77, 4026531836)
    assert [found.word(number) for number in range(5)] == [1 << 40, 0, 0, 0, 5]


@pytest.mark.parametrize("kind", LAYOUTS)
def test_cells(page: PageWriter, tmp_path: Path, kind: str) -> None:
    """A cell shows what was stored last, and nothing before that."""
    cell = made(page.cell(kind))
    assert read(tmp_path).cell(kind, cell.offset) is None
    for start in (1, 1000):
        values = range(start, start + len(LAYOUTS[kind]))
        cell.store(*values)
        assert read(tmp_path).cell(kind, cell.offset) == dict(
            zip(LAYOUTS[kind], values, strict=True)
        )


def test_run_cell(page: PageWriter, tmp_path: Path) -> None:
    """What belongs to no stage has a cell that needs no definition."""
    made(page.run).store(1, 2, 3, 4, 5, 6, 3)
    assert read(tmp_path).run() == {
        "records_in": 1,
        "records_out": 2,
        "records_rejected": 3,
        "retries": 4,
        "bytes_in": 5,
        "bytes_out": 6,
        "counted": 3,
    }


def test_checksum_tells_of_every_store(page: PageWriter, tmp_path: Path) -> None:
    """It covers all that is in use: words, threads, the run's cell, and the newest cell."""
    seen = [read(tmp_path).checksum()]

    def has_changed() -> bool:
        seen.append(read(tmp_path).checksum())
        return seen[-1] not in seen[:-1]

    page.set(Words.OVERHEAD, 5)
    assert has_changed()
    made(page.thread_slot(1)).show_stages([], 7)
    assert has_changed()
    made(page.run).store(1, 2, 3, 4, 5, 6, 3)
    assert has_changed()
    for _ in range(50):
        cell = made(page.cell("folded_stage"))
        for count in (1, 2):
            cell.store(count, *[0] * (len(LAYOUTS["folded_stage"]) - 2), 9)
            assert has_changed()


def test_released_cell_is_given_again(page: PageWriter, tmp_path: Path) -> None:
    """A cell goes on counting its stores, so that the newer of two owners is what is seen."""
    cell = made(page.cell("stage"))
    cell.store(1, *[0] * 7)
    page.release(cell)
    again = made(page.cell("stage"))
    again.store(2, *[0] * 7)
    found = read(tmp_path).cell("stage", again.offset)
    assert (again.offset, found and found["span_id"]) == (cell.offset, 2)


def test_full_page(page: PageWriter, tmp_path: Path) -> None:
    """A page that is full says so; it holds more than any sane job needs."""
    count = 0
    while page.cell("operation") is not None:
        count += 1
    assert 400 < count < 1000
    slots = [page.thread_slot(thread) for thread in range(THREADS + 1)]
    assert [slot is None for slot in slots] == [False] * THREADS + [True]


def test_threads(tmp_path: Path) -> None:
    """A thread shows its stages, cut at the stack's depth, and its operation."""
    page = PageWriter(tmp_path / "page", 77, 1)
    slot = page.thread_slot(11)
    other = page.thread_slot(22)
    assert slot is not None and other is not None
    slot.show_stages([100, 200], 5)
    slot.operation[0] = 4096 | 3
    other.show_stages(list(range(1, STACK + 3)), 6)
    assert list(read(tmp_path).threads()) == [
        OpenThread(11, (100, 200), 5, 3, 4096),
        OpenThread(22, tuple(range(1, STACK + 1)), 6, 0, 0),
    ]
    slot.show_stages([], 7)
    slot.operation[0] = 0
    found = next(iter(read(tmp_path).threads()))
    assert (found.stages, found.since, found.operation) == ((), 7, 0)


def test_operation_where_stores_are_system_calls(tmp_path: Path) -> None:
    """On a copy-on-write file system stages are shown, operations go nowhere."""
    slot = PageWriter(tmp_path / "page", 77, 1, copy_on_write=True).thread_slot(11)
    assert slot is not None
    slot.show_stages([100], 5)
    slot.operation[0] = 3
    assert list(read(tmp_path).threads()) == [OpenThread(11, (100,), 5, 0, 0)]
    assert read(tmp_path).last_activity() == 5


@pytest.mark.parametrize("content", [b"", b"x" * SIZE, bytes(SIZE)])
def test_no_page(content: bytes) -> None:
    """What is no page is refused in one line."""
    with pytest.raises(ValueError, match="page"):
        PageReader(content)


def test_offsets_outside(page: PageWriter, tmp_path: Path) -> None:
    """A journal that names nonsense gets nothing."""
    for offset in (0, 1, SIZE - 8, SIZE, -5, 1 << 60):
        assert read(tmp_path).cell("operation", offset) is None


def test_checksum_for_weakly_ordered_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where stores may be seen out of order a copy has to fit its checksum too."""
    monkeypatch.setattr(page_module, "_CHECKED", True)
    page = PageWriter(tmp_path / "page", 1, 1)
    cell = made(page.cell("operation"))
    cell.store(1, 2, 3, 4)
    cell.store(5, 6, 7, 8)
    data = bytearray((tmp_path / "page").read_bytes())
    assert PageReader(bytes(data)).cell("operation", cell.offset) == {
        "calls": 5, "nanoseconds": 6, "rows_in": 7, "rows_out": 8
    }  # fmt: skip
    newest = data.index((5).to_bytes(8, sys.byteorder), cell.offset)
    data[newest] = 9
    found = PageReader(bytes(data)).cell("operation", cell.offset)
    assert found is not None and found["calls"] == 1


HOT = """
import sys, threading
from pathlib import Path
from stagewatch.exporters.page import PageWriter, Words
page = PageWriter(Path(sys.argv[1]), 1, 1)
cell, slot = page.cell("operation"), page.thread_slot(1)
print(cell.offset, flush=True)
n = 0
while True:
    n += 1
    cell.store(n, n, n, n)
    slot.show_stages([n] * 8, n)
"""


@pytest.fixture
def hot(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that does nothing but store."""
    with subprocess.Popen(
        [sys.executable, "-c", HOT, str(tmp_path / "page")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def consistent(found: PageReader, offset: int) -> int:
    """How many stores are seen, none of them half."""
    cell = found.cell("operation", offset)
    if cell is None:
        return 0
    assert len(set(cell.values())) == 1, cell
    for thread in found.threads():
        assert set(thread.stages) == {thread.since}, thread
    return cell["calls"]


def test_no_torn_reads(hot: tuple[subprocess.Popen[str], int], tmp_path: Path) -> None:
    """A reader beside a hot writer sees whole values only, and newer and newer ones."""
    import mmap

    process, offset = hot
    with open(tmp_path / "page", "rb") as file:
        found = PageReader(memoryview(mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)))
    seen = 0
    until = time.monotonic() + 1.5
    reads = 0
    while time.monotonic() < until:
        now = consistent(found, offset)
        assert now >= seen
        seen = now
        reads += 1
    assert seen > 1000 and reads > 1000
    assert process.poll() is None


def test_killed_hot_writers(tmp_path: Path) -> None:
    """A writer that is killed inside a store leaves a page that reads as before it."""
    for number in range(60):
        path = tmp_path / f"page{number}"
        pid = os.fork()
        if pid == 0:  # pragma: no cover
            page = PageWriter(path, start_ticks(), 1)
            cell = made(page.cell("operation"))
            slot = page.thread_slot(1)
            assert slot is not None
            (tmp_path / f"ready{number}").write_text(str(cell.offset))
            n = 0
            while True:
                n += 1
                cell.store(n, n, n, n)
                slot.show_stages([n] * STACK, n)
        while not (ready := tmp_path / f"ready{number}").exists() or not ready.read_text():
            time.sleep(0.001)
        time.sleep(random.random() * 0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        consistent(PageReader(path.read_bytes()), int(ready.read_text()))


def test_page_is_read_while_the_gil_is_held(tmp_path: Path) -> None:
    """What a thread shows is there for others while the process does nothing but compute."""
    code = """
import re, sys
from pathlib import Path
from stagewatch.exporters.page import PageWriter, Words
page = PageWriter(Path(sys.argv[1]), 1, 1)
page.set(Words.OVERHEAD, 42)
print("go", flush=True)
re.match(r"(a+)+$", "a" * 40 + "b")
"""
    command = [sys.executable, "-c", code, str(tmp_path / "page")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        assert read(tmp_path).word(Words.OVERHEAD) == 42
        assert process.poll() is None
        process.kill()


def test_cells_are_handed_out_once(page: PageWriter) -> None:
    """No two things share a cell, in whatever order they come and go."""
    cells = [made(page.cell("stage")) for _ in range(50)]
    for cell in cells[::2]:
        page.release(cell)
    again = [made(page.cell("stage")) for _ in range(25)]
    offsets = [cell.offset for cell in cells[1::2] + again]
    assert len(set(offsets)) == len(offsets) == 50
