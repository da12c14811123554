"""The journal: the append-only record of one process, written before anything is sent.

Preallocated shared-memory segments (``KEY.0.journal``, ``KEY.1.journal``, …): an append is a copy,
not a system call, and survives any death of the process. A frame is length, CRC-32 and body; what
is not whole does not fit its checksum.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

from stagewatch.exporters.memory import Memory
from stagewatch.exporters.page import Cell, PageWriter, ThreadSlot, Words
from stagewatch.records import Record, encode
from stagewatch.safety import report
from stagewatch.system import LINUX

FRAME: Final = Struct("=II")
ROLLED: Final = 0xFFFFFFFF
"""In place of a length: the journal goes on in the next segment."""
FIRST_SEGMENT: Final = 1 << 16
LAST_SEGMENT: Final = 1 << 22
_PIDFD_GET_PID_NAMESPACE: Final = 0xFF05
"""``_IO(0xFF, 5)``, since Linux 6.11."""
_RETRY_SECONDS: Final = 1.0
VMSTAT: Final = "/proc/vmstat"
"""Counts the kills of the whole machine."""


def segment_path(directory: Path, key: str, number: int) -> Path:
    """Where segment *number* of the journal *key* is."""
    return directory / f"{key}.{number}.journal"


def page_path(directory: Path, key: str) -> Path:
    """Where the status page of the process with the journal *key* is."""
    return directory / f"{key}.page"


def start_ticks(pid: int | str = "self") -> int:
    """When a process started, in clock ticks since boot; OSError if there is no such process.

    0 for this one where there is no /proc. On macOS in hundredths of a second since the epoch.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rsplit(b")", 1)[1].split()[19])
    except FileNotFoundError:
        if not LINUX:
            return _ticks_by_psutil(os.getpid() if pid == "self" else int(pid))
        if pid == "self":
            return 0
        raise


def _ticks_by_psutil(pid: int) -> int:
    import psutil

    began: float | None = None
    with suppress(psutil.Error):
        # Not `create_time()`, which follows the clock when somebody sets it, in one process only.
        began = psutil.Process(pid)._ident[1]
    if began is None:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return round(began * 100)


def pid_namespace() -> int:
    """Inode of this process's PID namespace; 0 where nothing tells."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return _namespace_without_proc()


def _namespace_without_proc() -> int:
    try:
        pidfd = os.pidfd_open(os.getpid())
        try:
            namespace = fcntl.ioctl(pidfd, _PIDFD_GET_PID_NAMESPACE)
        finally:
            os.close(pidfd)
        try:
            return os.fstat(namespace).st_ino
        finally:
            os.close(namespace)
    except (OSError, AttributeError):
        return 0


def host_id() -> str:
    """Of this machine or container: what tells its processes from another's."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            with open(path) as file:
                if found := file.read().strip():
                    return found
        except OSError:
            continue
    return os.uname().nodename


def boot_id() -> str:
    """Changes with every boot; empty where the kernel does not tell."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        # The time of the boot that macOS tells follows the clock; its first process's does not.
        return "" if LINUX else f"since-{start_ticks(1)}"


def oom_kills(pid: int | str = "self") -> dict[str, int]:
    """The counter that rises when *pid* is killed for want of memory, by the file it stands in.

    Empty where there is none. Its cgroup's; the machine's only where no cgroup's can be read.
    """
    for path in (*oom_counters(_content(f"/proc/{pid}/cgroup")), VMSTAT):
        count = oom_count(path)
        if count is not None:
            return {path: count}
    return {}


def oom_count(path: str) -> int | None:
    """``oom_kill`` in a file of a cgroup, or in ``vmstat``; None if it is not there."""
    for line in _content(path).splitlines():
        if line.startswith(b"oom_kill "):
            return int(line[9:])
    return None


def oom_counters(cgroups: bytes, mount: str = "/sys/fs/cgroup") -> Iterator[str]:
    """Files that may count, the best first. *cgroups*: ``/proc/PID/cgroup``.

    A kill counts for the cgroup of the victim itself, in version 1 and 2.
    """
    lines = [line.split(":", 2) for line in os.fsdecode(cgroups).splitlines() if ":/" in line]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            # A container sees its own cgroup as the root, under a name of the host's.
            for place in dict.fromkeys((path.rstrip("/"), "")):
                yield f"{mount}/memory{place}/memory.oom_control"
    for _, controllers, path in lines:
        if not controllers:
            place = path.rstrip("/")
            while True:  # the next above where memory is accounted for
                yield f"{mount}{place}/memory.events.local"
                yield f"{mount}{place}/memory.events"
                if not place:
                    break
                place = place.rpartition("/")[0]


def _content(path: str) -> bytes:
    """Of a small file; empty if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        chunks = iter(lambda: os.read(descriptor, 1 << 14), b"")  # /proc gives a page at a time
        return b"".join(chunks)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def new_key() -> str:
    """``PID.TICKS.RANDOM``: never given twice, unlike a pid or an inode."""
    return f"{os.getpid()}.{start_ticks()}.{os.urandom(4).hex()}"


class JournalWriter:
    """Journal and status page of this process. Raises OSError where they cannot be made.

    `append` never raises for want of space: what does not fit is counted in the page.
    """

    key: str
    page: PageWriter

    def __init__(
        self,
        directory: Path,
        key: str | None,
        *,
        max_bytes: int,
        copy_on_write: bool = False,
        opening: Callable[[], None] | None = None,
    ) -> None:
        self.directory = directory
        # Re-entrant: a signal handler or a finalizer of the user's may record while we do.
        self.lock = threading.RLock()
        self._max_bytes = max_bytes
        self._copy_on_write = copy_on_write
        self._segments: list[tuple[Path, int]] = []
        self._position = 0
        self._dropped = [0, 0, 0, 0]
        self._refused_until = 0.0
        self._refusal = Words.DROPPED_DISK
        self._is_rolling = False
        self._depth = 0
        self._retired: list[Memory] = []
        self._number = 0
        self._at = self._room = 0
        self._limit = 0
        """Up to where an append may go the short way."""
        self._is_open = False
        self._opening = opening
        if key is not None:
            self._open(key)

    def of_child(self, opening: Callable[[], None]) -> JournalWriter:
        """One like this for a forked child, which may never write anything: it is made when there
        is something to write, and *opening* is called then."""
        return JournalWriter(
            self.directory,
            None,
            max_bytes=self._max_bytes,
            copy_on_write=self._copy_on_write,
            opening=opening,
        )

    def _open(self, key: str) -> None:
        self.key = key
        self.page = PageWriter(
            page_path(self.directory, key),
            int(key.split(".")[1]),
            pid_namespace(),
            copy_on_write=self._copy_on_write,
        )
        self._position_word = self.page.position
        self._memory = self._new_segment(0, _capacity(0, 0))
        self._buffer = self._memory.buffer
        self._room = self._memory.size - FRAME.size
        self._limit = -1 if self._copy_on_write else self._room
        self._is_open = True

    def _is_ready(self) -> bool:
        """Open it, if that has not been tried; False if it could not be."""
        if self._opening is not None:
            opening, self._opening = self._opening, None
            try:
                self._open(new_key())
                opening()
            except Exception as error:
                report(error)
        return self._is_open

    def append(self, record: Record) -> None:
        """Write one record; it is in the kernel's hands when this returns."""
        body = encode(record)
        size = len(body)
        checksum = _crc32(body)
        store = _FRAMES.get(size) or _frame(size)
        with self.lock:  # not acquire() and try: a signal handler may raise between the two
            # From here on nothing is called until `store` is done: no handler and no finalizer,
            # which may append too, and even roll, can come between place, segment and frame.
            at = self._at
            end = at + 8 + size
            if end <= self._limit:
                self._at = end
                store(self._buffer, at, size, checksum, body)
                self._position_word[0] = self._position = self._position + 8 + size
                return
            self._append_seldom(body, checksum, store)

    def _append_seldom(self, body: bytes, checksum: int, store: Callable[..., None]) -> None:
        size = len(body)
        self._depth += 1
        try:
            # A segment that was left stays mapped until the outermost append is over.
            at = self._at
            end = at + 8 + size
            while end > self._room:
                if not self._make_room(size):
                    return
                at = self._at
                end = at + 8 + size
            self._at = end
            if self._copy_on_write:
                self._write_through(body, at, end, checksum)
                return
            store(self._buffer, at, size, checksum, body)
            self._position_word[0] = self._position = self._position + 8 + size
        finally:
            self._depth -= 1
            if self._retired and not self._depth:
                self._close_retired()

    def _write_through(self, body: bytes, at: int, end: int, checksum: int) -> None:
        """Where a store into the buffer is not yet one into the file."""
        memory = self._memory
        memory.buffer[at + 8 : end] = body
        _pack_frame(memory.buffer, at, len(body), checksum)
        if not memory.publish(at, end):
            if self._at == end:
                self._at = at
            self.drop(Words.DROPPED_DISK)
            return
        self._position += end - at
        self.page.set(Words.JOURNAL_POSITION, self._position)

    def _close_retired(self) -> None:
        retired, self._retired = self._retired, []
        for memory in retired:
            memory.close()

    def drop(self, reason: int) -> None:
        """Count a record that is lost: one of `Words`' ``DROPPED_…``."""
        with self.lock:
            if self._is_ready():
                self._dropped[reason] += 1
                self.page.set(reason, self._dropped[reason])

    def cell(self, kind: str) -> Cell | None:
        """See `PageWriter.cell`."""
        with self.lock:
            return self.page.cell(kind) if self._is_ready() else None

    def release(self, cell: Cell) -> None:
        """See `PageWriter.release`."""
        self.page.release(cell)

    def run_cell(self) -> Cell | None:
        """Counters of what belongs to no stage."""
        with self.lock:
            return self.page.run if self._is_ready() else None

    def thread_slot(self) -> ThreadSlot | None:
        """See `PageWriter.thread_slot`."""
        with self.lock:
            return self.page.thread_slot(threading.get_ident()) if self._is_ready() else None

    def close(self) -> None:
        """The run of this journal is over, though its process goes on: let go of it, but leave its
        files to the recorder. What is appended from now on goes nowhere."""
        with self.lock:
            is_open = self._is_open
            self.forget()
            if is_open:
                self._memory.release()
                self.page.close()
                self._buffer = self._memory.buffer
                self._position_word = self.page.position

    def forget(self) -> None:
        """Append nowhere from now on: in a forked child, whose parent's journal this is. Takes no
        lock, which another thread of the parent's may have held."""
        self._is_open = False
        self._opening = None
        self._limit = self._room = -1

    def _make_room(self, size: int) -> bool:
        if not self._is_open:
            return self._is_ready()
        now = time.monotonic()
        if self._is_rolling or now < self._refused_until:
            self.drop(self._refusal)
            return False
        # The recorder deletes a segment once it has taken it in.
        self._segments = [(path, held) for path, held in self._segments if path.exists()]
        capacity = _capacity(self._number + 1, size)
        if sum(held for _, held in self._segments) + capacity > self._max_bytes:
            self._refuse(Words.DROPPED_CAP, now)
            return False
        self._is_rolling = True
        try:
            self._roll(capacity)
        except OSError:
            self._refuse(Words.DROPPED_DISK, now)
            return False
        finally:
            self._is_rolling = False
        return True

    def _refuse(self, reason: int, now: float) -> None:
        self._refusal = reason
        self._refused_until = now + _RETRY_SECONDS
        self.drop(reason)

    def _roll(self, capacity: int) -> None:
        fresh = self._new_segment(self._number + 1, capacity)
        # Straight on, without a call: a signal handler's append sees the old segment or the new.
        memory, buffer, at = self._memory, self._buffer, self._at
        self._memory, self._buffer = fresh, fresh.buffer
        self._number += 1
        self._room = fresh.size - 8
        self._limit = -1 if self._copy_on_write else self._room
        self._at = 0
        _pack_frame(buffer, at, ROLLED, 0)  # `_room` left place for it
        if self._copy_on_write:
            memory.publish(at, at + FRAME.size)
        self._retired.append(memory)

    def _new_segment(self, number: int, capacity: int) -> Memory:
        path = segment_path(self.directory, self.key, number)
        path.unlink(missing_ok=True)  # one that an exception in a signal handler left unused
        memory = Memory(path, capacity, copy_on_write=self._copy_on_write)
        self._segments.append((path, capacity))
        return memory


def _capacity(number: int, size: int) -> int:
    """Bytes of segment *number*, which has to hold a body of *size*."""
    capacity = min(FIRST_SEGMENT << number, LAST_SEGMENT)
    while capacity < size + 2 * FRAME.size:
        capacity *= 2
    return capacity


_FRAMES: Final[dict[int, Callable[..., None]]] = {}
"""By the size of its body, what stores a whole frame at once: half of what two stores cost."""
_REMEMBERED: Final = 4096


def _frame(size: int) -> Callable[..., None]:
    store = Struct(f"=II{size}s").pack_into
    if size < _REMEMBERED:
        _FRAMES[size] = store
    return store


_crc32 = zlib.crc32
_pack_frame: Callable[[memoryview, int, int, int], None] = FRAME.pack_into


def read_frames(segment: bytes | memoryview, offset: int) -> Iterator[tuple[bytes, int]]:
    """Bodies of the whole frames from *offset* on, each with the offset behind it.

    Ends at the first frame that is not whole; `is_rolled` says whether another segment follows.
    """
    while offset + FRAME.size <= len(segment):
        size, checksum = FRAME.unpack_from(segment, offset)
        end = offset + FRAME.size + size
        if size in (0, ROLLED) or end > len(segment):
            return
        body = bytes(segment[offset + FRAME.size : end])
        if zlib.crc32(body) != checksum:
            return
        yield body, end
        offset = end


def is_end(segment: bytes | memoryview, offset: int) -> bool:
    """Whether nothing stands at *offset* yet, not even a part."""
    if offset + FRAME.size > len(segment):
        return False
    return not any(segment[offset : offset + FRAME.size])


def is_rolled(segment: bytes | memoryview, offset: int) -> bool:
    """Whether the journal goes on in the next segment at *offset*."""
    if offset + FRAME.size > len(segment):
        return False
    return bool(FRAME.unpack_from(segment, offset)[0] == ROLLED)
