"""One process as its recorder sees it: the records it journals, its status page, its death."""

from __future__ import annotations

import logging
import mmap
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import msgspec

from stagewatch import safety
from stagewatch.exporters.journal import (
    FRAME,
    is_end,
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
_FIRST_CHUNK: Final = 1 << 13
"""Of each of many journals at once: most have a few records at a time."""
_LONGEST_PAUSE: Final = 60.0


class Part(NamedTuple):
    """Records that follow each other in the journal *key*, up to *offset* of *segment*."""

    key: str
    records: Sequence[Taken]
    segment: int
    offset: int


class Taker(Protocol):
    """The part of the intake that a follower speaks to."""

    def resume(self, key: str) -> tuple[int, int] | None: ...

    def take(self, *parts: Part) -> None: ...

    def close(self, key: str, page: PageReader | None, death: Death) -> None: ...


class Offer(NamedTuple):
    """What comes next in a journal."""

    part: Part
    ends: list[int]
    """Offset behind each record."""
    is_last: bool
    """Nothing stands behind them."""
    position: int = -1
    """Of the journal by its page, before this was read."""


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

    def news(self) -> int:
        """Bytes that the process wrote since the last `read`, about: a look into memory."""
        if self._is_pausing():
            return 0
        return 1 if self.page is None else self._position() - self._seen

    def read(self, *, final: bool = False) -> bool:
        """Take in what there is; False if the intake could not (then again a while later).

        *final*: the process is dead, so what is not whole never will be and is skipped.
        """
        if self._is_pausing():
            return False
        position = self._position()
        try:
            for offer in self._offers(final):
                self._take(offer)
                self._go_to(offer.part)
        except Exception as error:
            self._pause_after(error)
            return False
        self._is_at(position)
        return True

    def offer(self) -> Offer | None:
        """The beginning of what is new, for an intake that takes of many journals at once.

        None: that is for `read` to do.
        """
        if self._is_pausing():
            return None
        position = self._position()
        try:
            offer = self._next(_FIRST_CHUNK)
        except OSError:
            return None
        return None if offer is None else offer._replace(position=position)

    def took(self, offer: Offer) -> bool:
        """The intake has taken *offer*; whether that was all."""
        try:
            self._go_to(offer.part)
        except OSError as error:
            self._pause_after(error)
            return True
        if offer.is_last:
            self._is_at(offer.position)
        return offer.is_last

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

    def _position(self) -> int:
        return self.page.word(Words.JOURNAL_POSITION) if self.page else -1

    def _is_at(self, position: int) -> None:
        self._seen = position
        self._pause = 0.0
        if self.started is None:
            self._learn_start()

    def _offers(self, final: bool) -> Iterator[Offer]:
        while offer := self._next(_CHUNK, final):
            yield offer
            if offer.is_last:
                return

    def _next(self, most: int, final: bool = False) -> Offer | None:
        """What the next *most* bytes say; None: nothing."""
        segment, offset = self._segment, self._offset
        data = self._data(offset, most)
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
        if is_rolled(data, at) and segment_path(self._room, self.key, segment + 1).exists():
            return Offer(Part(self.key, records, segment + 1, 0), ends, False)
        if not at:
            return None
        return Offer(Part(self.key, records, segment, offset + at), ends, is_end(data, at))

    def _data(self, offset: int, most: int) -> bytes:
        data = os.pread(self._descriptor, most, offset)
        if len(data) == most:
            size = FRAME.unpack_from(data)[0]
            if most < size + 2 * FRAME.size <= os.fstat(self._descriptor).st_size:
                data = os.pread(self._descriptor, size + 2 * FRAME.size, offset)
        return data

    def _take(self, offer: Offer) -> None:
        try:
            self._intake.take(offer.part)
        except (sqlite3.OperationalError, OSError):
            raise
        except Exception as error:
            safety.report(error)
            self._take_singly(offer)

    def _take_singly(self, offer: Offer) -> None:
        """Something in these records is more than the intake can take: leave only that out."""
        here = self._segment
        for record, end in zip(offer.part.records, offer.ends, strict=True):
            try:
                self._intake.take(Part(self.key, [record], here, end))
            except (sqlite3.OperationalError, OSError):
                raise
            except Exception as error:
                safety.report(error)
                continue
            self._offset = end
        # If this fails too it is not the records' fault, and what was left out comes again.
        self._intake.take(offer.part._replace(records=[]))

    def _go_to(self, part: Part) -> None:
        if part.segment != self._segment:
            self._open(part.segment)
            if self._segment > 0:
                segment_path(self._room, self.key, self._segment).unlink(missing_ok=True)
        self._segment, self._offset = part.segment, part.offset

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
