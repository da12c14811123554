"""The status page: one small shared-memory file per process, which survives its death.

A store costs no system call, and the recorder reads it while the job holds the GIL. Everything
that has more than one word stands there twice, written in turn between two equal sequence
numbers, so that one copy is whole even if the writer dies inside the other.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from stagewatch.exporters import life
from stagewatch.exporters.memory import Memory
from stagewatch.measures import DURATION_BUCKETS
from stagewatch.records import NAME_MASK

SIZE: Final = 1 << 16
MAGIC: Final = b"SWPAGE1\0"

# "@" packs an aligned word in one store, "<" byte by byte.
_HEADER: Final = Struct("@8sQQQ")  # magic, pid, start ticks, PID namespace
_WORD: Final = Struct("@Q")
_WORDS_AT: Final = 64
THREADS: Final = 16
STACK: Final = 8
_THREAD: Final = Struct("@" + "Q" * (STACK + 6))
_OPERATION: Final = _WORD  # start and number of the name in one word: in one store
_THREADS_AT: Final = 256
_OPERATIONS_AT: Final = _THREADS_AT + THREADS * 2 * _THREAD.size
_NOBODY: Final = memoryview(bytearray(_OPERATION.size)).cast("Q")
_RUN_CELL_AT: Final = 6144
_DEAD_AFTER: Final = 20
"""Looks at a half-written copy until it is clear that nobody goes on with it."""

MOST_BUCKETS: Final = 16
"""Of a histogram of another library's that has a cell."""

LAYOUTS: Final[dict[str, tuple[str, ...]]] = {
    "run": (
        "records_in",
        "records_out",
        "records_rejected",
        "retries",
        "bytes_in",
        "bytes_out",
        "counted",
    ),
    "stage": (
        "span_id",
        "records_in",
        "records_out",
        "records_rejected",
        "retries",
        "bytes_in",
        "bytes_out",
        "counted",
    ),
    "operation": ("calls", "nanoseconds", "rows_in", "rows_out"),
    "folded_stage": (
        "calls",
        "failed",
        "nanoseconds",
        "active_nanoseconds",
        "cpu_nanoseconds",
        "memory_peak",
        "records_in",
        "records_out",
        "records_rejected",
        "retries",
        "bytes_in",
        "bytes_out",
        "counted",
        *(f"bucket_{number}" for number in range(len(DURATION_BUCKETS) + 1)),
    ),
    "number": ("number", "is_double", "value"),
    "distribution": (
        "number",
        "sum",
        "count",
        "least",
        "most",
        *(f"bucket_{number}" for number in range(MOST_BUCKETS)),
    ),
}
"""Fields of a cell, all unsigned. ``counted``: bit 0 = ``records_in`` is known, bit 1 =
``records_out``; a count that nobody made is not 0; bits 2 and 3 = they are rows of frames. The
last two: see `stagewatch.exporters.measurements`; ``value`` is signed or a double, as are ``sum``,
``least`` and ``most``."""

# A strongly ordered machine shows the stores in their order, and the sequence numbers suffice.
_CHECKED: Final = os.uname().machine not in {"x86_64", "AMD64", "i386", "i686"}
_STRUCTS: Final = {kind: Struct("@" + "Q" * (len(names) + 3)) for kind, names in LAYOUTS.items()}


class Words:
    """Numbers of the single words in the header, each changed by one store."""

    JOURNAL_POSITION: Final = 0
    """Bytes appended to the journal so far; the recorder polls this instead of the file."""
    DROPPED_DISK: Final = 1
    DROPPED_CAP: Final = 2
    DROPPED_ERROR: Final = 3
    OVERHEAD: Final = 4
    """Nanoseconds of CPU that our start-up and our exit handler took."""
    HELD: Final = 5
    """1: the process holds its page (`stagewatch.exporters.life`) for as long as it lives."""
    USED: Final = 6
    """Bytes of the page, from its begin, in which anything is ever stored; 0: any."""


class Cell:
    """Counters of one thing. `store` is called under the writer's lock."""

    __slots__ = (
        "_memory",
        "_size",
        "buffer",
        "is_plain",
        "kind",
        "number",
        "offset",
        "pack",
        "places",
    )

    def __init__(self, memory: Memory, kind: str, offset: int) -> None:
        layout = _STRUCTS[kind]
        self.kind = kind
        self.offset = offset
        self._memory = memory
        self._size = layout.size
        self.number = 0
        self.places = (offset, offset + layout.size)
        self.buffer = memory.buffer
        self.pack = layout.pack_into
        self.is_plain = not (_CHECKED or memory.copy_on_write)
        """All that `store` does here is to pack: who counts much does so itself."""

    def store(self, *values: int) -> None:
        """Replace all fields, in the order of `LAYOUTS`."""
        number = self.number = self.number + 1
        at = self.places[number & 1]
        check = _checksum(values) if _CHECKED else 0
        self.pack(self.buffer, at, number, *values, check, number)
        if self._memory.copy_on_write:
            self._memory.publish(at, at + self._size)


class ThreadSlot:
    """What one thread is doing."""

    __slots__ = ("_at", "_left", "_memory", "_number", "operation", "thread")

    def __init__(self, memory: Memory, index: int, thread: int, left: list[ThreadSlot]) -> None:
        self._memory = memory
        self._left = left
        self.thread = thread
        self._at = _THREADS_AT + index * 2 * _THREAD.size
        self._number = 0
        at = _OPERATIONS_AT + index * _OPERATION.size
        self.operation: memoryview = (
            _NOBODY if memory.copy_on_write else memory.buffer[at : at + _OPERATION.size].cast("Q")
        )
        """One word: the open operation's start on the monotonic clock, with the number of its name
        in the bits of `NAME_MASK`; 0 if none is open. Written in place by `stagewatch.operations`,
        because a call would cost as much as all the rest; not where a store is a system call."""

    def show_stages(self, cells: list[int], now: int) -> None:
        """Offsets of the cells of the open stages, outermost first."""
        number = self._number = self._number + 1
        at = self._at + _THREAD.size * (number & 1)
        shown = (cells + [0] * STACK)[:STACK]
        values = (self.thread, len(cells), now, *shown)
        check = _checksum(values) if _CHECKED else 0
        _THREAD.pack_into(self._memory.buffer, at, number, *values, check, number)
        if self._memory.copy_on_write:
            self._memory.publish(at, at + _THREAD.size)

    def leave(self) -> None:
        """The thread is over, and the next may have the slot. For finalizers: takes no lock, and
        leaves the page as it is."""
        self._left.append(self)


class PageWriter:
    """The page of this process. Raises OSError where the file cannot be made."""

    def __init__(
        self, path: Path, ticks: int, pid_namespace: int, *, copy_on_write: bool = False
    ) -> None:
        self._memory = Memory(path, SIZE, copy_on_write=copy_on_write)
        self._buffer = self._memory.buffer
        _HEADER.pack_into(self._buffer, 0, MAGIC, os.getpid(), ticks, pid_namespace)
        if copy_on_write:
            self._memory.publish(0, _HEADER.size)
        self.position = self._buffer[_WORDS_AT : _WORDS_AT + 8].cast("Q")
        """The word ``JOURNAL_POSITION``, for who sets it all the time and knows of `publish`."""
        self._held = life.hold(path)
        self.set(Words.HELD, int(self._held != 0))
        self._free: dict[str, list[Cell]] = {}
        self._slots = 0
        self._left: list[ThreadSlot] = []
        self.run = Cell(self._memory, "run", _RUN_CELL_AT)
        self._use(_RUN_CELL_AT + 2 * _STRUCTS["run"].size)

    def cell(self, kind: str) -> Cell | None:
        """A cell for *kind*, or None when the page is full."""
        free = self._free.get(kind)
        if free:
            return free.pop()
        size = 2 * _STRUCTS[kind].size
        if self._end + size > SIZE:
            return None
        offset = self._end
        self._use(offset + size)
        return Cell(self._memory, kind, offset)

    def release(self, cell: Cell) -> None:
        """Give *cell* to the next of its kind; what it shows is named by its ``span_id``."""
        self._free.setdefault(cell.kind, []).append(cell)

    def close(self) -> None:
        """Let go of the page; what stores into a cell or a slot of it still may. In the process
        that has made it."""
        if self._held:
            life.let_go(self._held)
            self._held = 0
        self._memory.release()
        self._buffer = self._memory.buffer
        self.run = Cell(self._memory, "run", 0)
        self._free.clear()
        self._left.clear()
        self.position = memoryview(bytearray(_WORD.size)).cast("Q")

    def _use(self, end: int) -> None:
        self._end = end
        self.set(Words.USED, end)

    def thread_slot(self, thread: int) -> ThreadSlot | None:
        """A slot for a thread, or None when as many threads live as there are slots."""
        if self._left:
            slot = self._left.pop()
            slot.thread = thread
            return slot
        if self._slots == THREADS:
            return None
        self._slots += 1
        return ThreadSlot(self._memory, self._slots - 1, thread, self._left)

    def set(self, word: int, value: int) -> None:
        """Change one of `Words`."""
        at = _WORDS_AT + 8 * word
        _WORD.pack_into(self._buffer, at, value)
        if self._memory.copy_on_write:
            self._memory.publish(at, at + 8)


# --- reading ----------------------------------------------------------------------------------


class OpenThread(NamedTuple):
    """One thread as the page shows it."""

    thread: int
    stages: tuple[int, ...]
    """Offsets of the cells of its open stages, outermost first; 0 where a stage had no cell."""
    since: int
    """When one of them last began or ended, nanoseconds since the epoch."""
    operation: int
    """Number of the open operation's name (`NameDefined`), 0 if none."""
    operation_start: int
    """Nanoseconds of this host's monotonic clock, to the microsecond; 0 if there is none."""


class PageReader:
    """Reads a page of another, perhaps dead, process out of any buffer that holds it.

    Raises ValueError if the buffer is no page.
    """

    def __init__(self, buffer: memoryview | bytes) -> None:
        if len(buffer) < SIZE:
            raise ValueError(f"a status page has {SIZE} bytes, this one {len(buffer)}")
        self._buffer = buffer
        self.pid: int
        self.ticks: int
        self.pid_namespace: int
        magic, self.pid, self.ticks, self.pid_namespace = _HEADER.unpack_from(buffer, 0)
        if magic != MAGIC:
            raise ValueError(f"no status page: it begins with {magic!r}")

    def word(self, number: int) -> int:
        """One of `Words`."""
        value: int = _WORD.unpack_from(self._buffer, _WORDS_AT + 8 * number)[0]
        return value

    def checksum(self) -> int:
        """Of all that is stored here: changes with anything that its process does."""
        return zlib.crc32(self._buffer[: self.word(Words.USED) or SIZE])

    def last_activity(self) -> int:
        """When a stage last began or ended, ns since the epoch; 0 if none ever did."""
        return max((thread.since for thread in self.threads()), default=0)

    def cell(self, kind: str, offset: int) -> dict[str, int] | None:
        """Fields by name, or None if nothing was ever stored there."""
        layout = _STRUCTS[kind]
        if offset < _RUN_CELL_AT or offset + 2 * layout.size > SIZE:
            return None
        values = self._newest(layout, offset)
        if values is None:
            return None
        return dict(zip(LAYOUTS[kind], values[1:-2], strict=True))

    def run(self) -> dict[str, int] | None:
        """The counters that belong to no stage."""
        return self.cell("run", _RUN_CELL_AT)

    def threads(self) -> Iterator[OpenThread]:
        """Threads that showed anything."""
        for index in range(THREADS):
            values = self._newest(_THREAD, _THREADS_AT + index * 2 * _THREAD.size)
            (word,) = _OPERATION.unpack_from(self._buffer, _OPERATIONS_AT + index * _OPERATION.size)
            if values is None and not word:
                continue
            name = word & NAME_MASK
            thread, depth, since = values[1:4] if values else (0, 0, 0)
            stages = values[4 : 4 + min(depth, STACK)] if values else ()
            yield OpenThread(thread, stages, since, name, word - name)

    def _newest(self, layout: Struct, offset: int) -> tuple[int, ...] | None:
        for attempt in range(1000):
            best: tuple[int, ...] | None = None
            is_torn = False
            for at in (offset, offset + layout.size):
                # Tail first, head last: the writer goes the other way round.
                (tail,) = _WORD.unpack_from(self._buffer, at + layout.size - 8)
                values = layout.unpack_from(self._buffer, at)
                (head,) = _WORD.unpack_from(self._buffer, at)
                whole = tail and values[0] == values[-1] == tail == head
                if whole and _CHECKED and values[-2] != _checksum(values[1:-2]):
                    whole = False
                if not whole:
                    is_torn |= bool(head or tail)
                elif best is None or values[0] > best[0]:
                    best = values
            # The whole one of two may be the older by now, unless its writer died in the other.
            if not is_torn or (best is not None and attempt >= _DEAD_AFTER):
                return best
        return None


def _checksum(values: tuple[int, ...]) -> int:
    return zlib.crc32(repr(values).encode())
