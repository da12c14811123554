"""Looks at all watched processes at once, and remembers what it takes to judge them."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from stagewatch import safety
from stagewatch.config import Settings
from stagewatch.exporters.page import PageReader
from stagewatch.exporters.recorder.watching.kinship import Kinship
from stagewatch.exporters.recorder.watching.proc import Reader
from stagewatch.exporters.recorder.watching.stack import StackDump, find_py_spy
from stagewatch.exporters.recorder.watching.stillness import UNREADABLE, Stillness, waits_for
from stagewatch.exporters.recorder.watching.vitals import Vitals

_FAMILY_SECONDS: Final = 5.0
_FAMILY_SHARE: Final = 500.0
"""The search for descendants takes no more than one part in so many of the time."""
_LONGEST_LOOK: Final = 3.0
"""Intervals that a look may count for: the machine, or the recorder, was not there any longer."""


class Process(NamedTuple):
    """One process, however many journals it wrote: it may have called exec."""

    pid: int
    ticks: int


class Seen(Struct, frozen=True):
    """One process at one look; the fields are those of `Sighting`."""

    vitals: Vitals | None = None
    is_still: bool = False
    waits_for: str | None = None
    stack: str | None = None


class _Known(Struct):
    """What is remembered of one process from look to look."""

    stillness: Stillness
    vitals: Vitals | None = None
    weight: tuple[float, int] = (-1.0, 0)
    """CPU and memory of the process itself: without a change its highest memory has not, either."""
    is_readable: bool = True
    """Whether all that its being still is judged by could be read."""
    stack: str | None = None
    is_dumped: bool = False
    """Whether this episode has had its attempt to read the stack."""
    dump: StackDump | None = None

    def dump_stack(self, py_spy: str, pid: int) -> bool:
        """Begin, or go on; True once it is over."""
        with safety.guarded:
            if self.dump is None:
                self.dump = StackDump(py_spy, pid)
            if not self.dump.is_done():
                return False
            self.stack = self.dump.text()
        self.dump = None
        self.is_dumped = True
        return True

    def forget_stack(self) -> None:
        """It lives, or died: the next time is another."""
        if self.dump is not None:
            self.dump.cancel()
        self.dump, self.stack, self.is_dumped = None, None, False


class Observer:
    """The eyes of one recorder. *reader*: None: nothing can be seen of processes here."""

    def __init__(self, settings: Settings, reader: Reader | None) -> None:
        self._settings = settings
        self._reader = reader
        self._kinship = Kinship(reader.parents) if reader is not None else None
        self._known: dict[Process, _Known] = {}
        self._looked: float | None = None
        self._family_due = 0.0
        self._py_spy = find_py_spy() if settings.stuck_stack else None

    def look(self, watched: Mapping[Process, Collection[PageReader]]) -> dict[Process, Seen]:
        """All of *watched*, with the pages they write, as they are now."""
        now = time.monotonic()
        elapsed = 0.0
        if self._looked is not None:
            elapsed = min(now - self._looked, _LONGEST_LOOK * self._settings.watch_interval)
        self._looked = now
        if self._reader is None or self._kinship is None:
            return {}
        for gone in self._known.keys() - watched.keys():
            self._known.pop(gone).forget_stack()
        for process in watched:
            if process not in self._known:
                self._known[process] = _Known(Stillness(self._settings.stuck_after))
        pids = {process.pid for process in watched}
        self._find_families(pids, self._kinship, elapsed, now)
        for process, pages in watched.items():
            family = [pid for pid in self._kinship.family(process.pid) if pid not in pids]
            self._measure(process, pages, family, self._reader, elapsed)
        return self._judge(watched, self._kinship)

    def knows(self, process: Process) -> bool:
        """Whether it was seen alive."""
        return process in self._known

    def farewell(self, process: Process) -> Vitals | None:
        """What is known of a process that is dead, or a zombie; it is forgotten then."""
        known = self._known.pop(process, None)
        if known is not None:
            known.forget_stack()
        vitals = known.vitals if known is not None else None
        last = self._reader.read(process.pid) if self._reader is not None else None
        if last is None or last.ticks not in (None, process.ticks):
            return vitals
        before = vitals or Vitals()
        return msgspec.structs.replace(
            before, cpu_seconds=max(last.cpu_seconds, before.cpu_seconds or 0.0)
        )

    def close(self) -> None:
        """Forget everybody."""
        for known in self._known.values():
            known.forget_stack()
        self._known.clear()

    def _find_families(
        self, pids: Collection[int], kinship: Kinship, elapsed: float, now: float
    ) -> None:
        # A child that works is a sign of life: none may be overlooked when that is the question.
        if now < self._family_due and not any(
            known.stillness.may_become_still(elapsed) for known in self._known.values()
        ):
            return
        kinship.find(pids)
        took = time.monotonic() - now
        self._family_due = now + max(_FAMILY_SECONDS, _FAMILY_SHARE * took)

    def _measure(
        self, process: Process, pages: Collection[PageReader], family: Sequence[int],
        reader: Reader, elapsed: float,
    ) -> None:  # fmt: skip
        known = self._known[process]
        own = reader.read(process.pid)
        if own is None or own.is_dead or own.ticks not in (None, process.ticks):
            known.is_readable = False
            return
        readings = {process.pid: own}
        for pid in family:
            if (reading := reader.read(pid)) is not None:
                readings[pid] = reading
        flows = [reader.traffic(pid) for pid in readings]
        found = [flow for flow in flows if flow is not None]
        cpu_seconds = sum(reading.cpu_seconds for reading in readings.values())
        before = known.vitals or Vitals()
        weight = own.cpu_seconds, own.memory
        peak = reader.memory_peak(process.pid) if weight != known.weight else None
        known.weight = weight
        # What a descendant counted whom nobody waited for goes with it: hence the highest so far.
        known.vitals = Vitals(
            cpu_seconds=_highest(cpu_seconds, before.cpu_seconds),
            memory=sum(reading.memory for reading in readings.values()),
            memory_peak=_highest(own.memory, before.memory_peak, peak),
            read_bytes=_highest(*(_sums(flow.read_bytes for flow in found)), before.read_bytes),
            written_bytes=_highest(
                *_sums(flow.written_bytes for flow in found), before.written_bytes
            ),
            threads=sum(reading.threads for reading in readings.values()),
            processes=len(readings),
        )
        known.is_readable = len(found) == len(flows)
        known.stillness.look(
            elapsed,
            cpu_seconds,
            sum(flow.every for flow in found),
            [page.checksum() for page in pages],
        )

    def _judge(
        self, watched: Mapping[Process, Collection[PageReader]], kinship: Kinship
    ) -> dict[Process, Seen]:
        """Still is who did nothing itself and has no watched descendant who did."""
        restless: set[int] = set()
        reasons: dict[int, str] = {}
        for process, pages in watched.items():
            known = self._known[process]
            if not known.stillness.is_still:
                restless.update(_line(process.pid, kinship))
            elif reason := self._reason(process, pages, known):
                for pid in _line(process.pid, kinship):
                    reasons.setdefault(pid, reason)
        return {
            process: self._seen(process, process.pid not in restless, reasons.get(process.pid))
            for process in watched
        }

    @staticmethod
    def _reason(process: Process, pages: Collection[PageReader], known: _Known) -> str | None:
        return waits_for(process.pid, pages) if known.is_readable else UNREADABLE

    def _seen(self, process: Process, is_still: bool, reason: str | None) -> Seen:
        known = self._known[process]
        is_stuck = is_still and reason is None
        if not is_stuck:
            known.forget_stack()
        elif self._py_spy is not None and not known.is_dumped:
            # Not a word of it before there is a stack, or it is clear that there will be none.
            is_still = known.dump_stack(self._py_spy, process.pid)
        return Seen(known.vitals, is_still, reason if is_still else None, known.stack)


def _line(pid: int, kinship: Kinship) -> Iterator[int]:
    """*pid* and its watched ancestors."""
    above: int | None = pid
    while above is not None:
        yield above
        above = kinship.watched_parent(above)


def _sums(numbers: Iterable[int]) -> list[int]:
    """One sum, or none of nothing."""
    found = list(numbers)
    return [sum(found)] if found else []


_Figure = TypeVar("_Figure", int, float)


def _highest(*figures: _Figure | None) -> _Figure | None:
    return max((figure for figure in figures if figure is not None), default=None)
