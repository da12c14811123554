"""One process as its recorder sees it: the records it journals, its status page, its death."""

from __future__ import annotations

import logging
import mmap
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from stagewatch import safety
from stagewatch.exporters.journal import (
    FRAME,
    is_rolled,
    page_path,
    read_frames,
    segment_path,
)
from stagewatch.exporters.life import is_held
from stagewatch.exporters.page import SIZE, PageReader, Words
from stagewatch.exporters.recorder.watching import exits
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.records import ProcessStarted, Record, Taken, decode, decode_head

_logger = logging.getLogger(__name__)

_CHUNK: Final = 1 << 18
_LONGEST_PAUSE: Final = 60.0


class Taker(Protocol):
    """The part of the intake that a follower speaks to."""

    def resume(self, key: str) -> tuple[int, int] | None: ...

    def take(self, key: str, records: list[Taken], segment: int, offset: int) -> None: ...

    def close(self, key: str, page: PageReader | None, death: Death) -> None: ...


class Follower:
    """Reads one journal into the intake, from where it was left. OSError if there is none."""

    def __init__(self, room: Path, key: str, intake: Taker) -> None:
        self.key = key
        self.pid, self.ticks = (int(part) for part in key.split(".")[:2])
        self.pidfd: int | None = None
        self.started: ProcessStarted | None = None
        """Its first record; None as long as there is none."""
        self.is_closed = False
        self.page: PageReader | None = None
        self._room = room
        self._intake = intake
        self._seen = -1
        self._pause = 0.0
        self._pause_until = 0.0
        self._descriptor = os.open(
            segment_path(room, key, 0), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        )
        try:
            self._segment, self._offset = self._resume()
            self.page = _map_page(page_path(room, key))
        except BaseException:
            os.close(self._descriptor)
            raise
        self._learn_start()

    @property
    def opens_run(self) -> bool:
        """Whether the run ends with this process, so that it is closed last."""
        return self.started is not None and self.started.opens_run

    @property
    def pid_namespace(self) -> int | None:
        """Of the process; None as long as it has not said."""
        if self.page is not None:
            return self.page.pid_namespace
        return self.started.pid_namespace if self.started is not None else None

    def is_held(self) -> bool | None:
        """Whether the process shows that it lives; None where it never did."""
        if self.page is None or not self.page.word(Words.HELD):
            return None
        try:
            return is_held(page_path(self._room, self.key))
        except OSError:
            return None

    def has_news(self) -> bool:
        """Whether the process wrote anything since the last `read`: a look into memory."""
        if self._is_pausing():
            return False
        return self.page is None or self.page.word(Words.JOURNAL_POSITION) != self._seen

    def read(self, *, final: bool = False) -> bool:
        """Take in what there is; False if the intake could not (then again a while later).

        *final*: the process is dead, so what is not whole never will be and is skipped.
        """
        if self._is_pausing():
            return False
        position = self.page.word(Words.JOURNAL_POSITION) if self.page else -1
        try:
            for records, ends, segment, offset in self._batches(final):
                self._take(records, ends, segment, offset)
                self._go_to(segment, offset)
        except Exception as error:
            self._pause_after(error)
            return False
        self._seen = position
        self._pause = 0.0
        if self.started is None:
            self._learn_start()
        return True

    def close(self, death: Death) -> bool:
        """The process is dead and read to the end. False if the intake could not; files stay."""
        if self._is_pausing():
            return False
        try:
            self._intake.close(self.key, self.page, death)
        except Exception as error:
            self._pause_after(error)
            return False
        self.is_closed = True
        self.forget()
        remove_files(self._room, self.key)
        return True

    def last_sign(self) -> int | None:
        """When the process was last seen to do anything; nanoseconds since the epoch.

        A store into a mapped file shows in its time only once the kernel has written it back: it
        may have done more than that by some 30 s, as its records say.
        """
        try:
            return os.fstat(self._descriptor).st_mtime_ns
        except OSError:
            return None

    def is_older(self, seconds: float) -> bool:
        """Whether the journal was begun, or last changed, longer ago."""
        return time.time() - os.fstat(self._descriptor).st_mtime > seconds

    def forget(self) -> None:
        """Let go of the files, which stay."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.page = None

    def _resume(self) -> tuple[int, int]:
        where = self._intake.resume(self.key)
        if where is None:
            return 0, 0
        segment, offset = where
        if segment < 0:
            self.is_closed = True
            remove_files(self._room, self.key)
            return 0, 0
        if segment > 0:
            self._open(segment)
        return segment, offset

    def _learn_start(self) -> None:
        # Segment 0 stays until the end, so that a later recorder can still ask who this was.
        try:
            with open(segment_path(self._room, self.key, 0), "rb") as file:
                head = file.read(_CHUNK)
        except OSError:
            return
        for body, _ in read_frames(head, 0):
            record = _decoded(body)
            self.started = record if isinstance(record, ProcessStarted) else None
            return

    def _batches(self, final: bool) -> Iterator[tuple[list[Taken], list[int], int, int]]:
        """Records, the offset behind each, and the position behind them all."""
        while True:
            segment, offset = self._segment, self._offset
            data = self._data(offset)
            records: list[Taken] = []
            ends: list[int] = []
            at = 0
            for body, at in read_frames(data, 0):  # noqa: B007
                try:
                    records.append(decode_head(body))
                except msgspec.DecodeError as error:
                    safety.report(error)
                else:
                    ends.append(offset + at)
            if final and not at and (skipped := _skip(data)):
                _logger.warning("stagewatch: a damaged record of %s was skipped", self.key)
                at = skipped
            next_segment = segment_path(self._room, self.key, segment + 1)
            if is_rolled(data, at) and next_segment.exists():
                yield records, ends, segment + 1, 0
            elif at:
                yield records, ends, segment, offset + at
            else:
                return

    def _data(self, offset: int) -> bytes:
        data = os.pread(self._descriptor, _CHUNK, offset)
        if len(data) == _CHUNK:
            size = FRAME.unpack_from(data)[0]
            if _CHUNK < size + 2 * FRAME.size <= os.fstat(self._descriptor).st_size:
                data = os.pread(self._descriptor, size + 2 * FRAME.size, offset)
        return data

    def _take(self, records: list[Taken], ends: list[int], segment: int, offset: int) -> None:
        try:
            self._intake.take(self.key, records, segment, offset)
        except (sqlite3.OperationalError, OSError):
            raise
        except Exception as error:
            safety.report(error)
            self._take_singly(records, ends, segment, offset)

    def _take_singly(
        self, records: list[Taken], ends: list[int], segment: int, offset: int
    ) -> None:
        """Something in these records is more than the intake can take: leave only that out."""
        here = self._segment
        for record, end in zip(records, ends, strict=True):
            try:
                self._intake.take(self.key, [record], here, end)
            except (sqlite3.OperationalError, OSError):
                raise
            except Exception as error:
                safety.report(error)
                continue
            self._offset = end
        # If this fails too it is not the records' fault, and what was left out comes again.
        self._intake.take(self.key, [], segment, offset)

    def _go_to(self, segment: int, offset: int) -> None:
        if segment != self._segment:
            self._open(segment)
            if self._segment > 0:
                segment_path(self._room, self.key, self._segment).unlink(missing_ok=True)
        self._segment, self._offset = segment, offset

    def _open(self, segment: int) -> None:
        descriptor = os.open(
            segment_path(self._room, self.key, segment),
            os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW,
        )
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _is_pausing(self) -> bool:
        return time.monotonic() < self._pause_until

    def _pause_after(self, error: Exception) -> None:
        safety.report(error)
        self._pause = min(max(2 * self._pause, 0.5), _LONGEST_PAUSE)
        self._pause_until = time.monotonic() + self._pause


def remove_files(room: Path, key: str) -> None:
    """Delete all that is left of a process; the page last, for the journal needs it."""
    for path in room.glob(f"{key}.*.journal"):
        path.unlink(missing_ok=True)
    page_path(room, key).unlink(missing_ok=True)
    pid, ticks, _ = key.split(".")
    if not any(room.glob(f"{pid}.{ticks}.*.page")):  # of before or after an exec
        exits.remove(room, int(pid), int(ticks))


def _map_page(path: Path) -> PageReader | None:
    try:
        with open(path, "rb") as file:
            return PageReader(memoryview(mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)))
    except (OSError, ValueError):  # no page, or one that its process did not finish
        return None


def _decoded(body: bytes) -> Record | None:
    try:
        return decode(body)
    except msgspec.DecodeError as error:
        safety.report(error)
        return None


def _skip(data: bytes) -> int:
    """Where the journal goes on behind a damaged frame at its beginning; 0 if it does not."""
    if len(data) < FRAME.size:
        return 0
    end = FRAME.size + int(FRAME.unpack_from(data)[0])
    if end == FRAME.size or end >= len(data):
        return 0
    goes_on = is_rolled(data, end) or any(True for _ in read_frames(data, end))
    return end if goes_on else 0
