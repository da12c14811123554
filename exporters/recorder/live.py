"""Runs under way: what their status pages and a look at their processes from outside say of them.

Kept in memory, at the price of a look a second; `stagewatch.exporters.recorder.ingest` writes it
down every few seconds. Durations follow the uptime, so that steps of the clock change none.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from stagewatch import measures, semconv
from stagewatch.exporters.page import OpenThread, Words
from stagewatch.exporters.recorder import rows
from stagewatch.exporters.recorder.books import Journal
from stagewatch.exporters.recorder.closing import known_records
from stagewatch.exporters.recorder.increments import Increment
from stagewatch.exporters.recorder.tracking import ProcessSeen, Rate, StageSeen, begin_of
from stagewatch.exporters.recorder.vitals import Sighting
from stagewatch.exporters.recorder.whereabouts import (
    Place,
    cells,
    open_operation,
    place,
    thread_in,
)
from stagewatch.measures import SECOND
from stagewatch.model import DeclaredStage, Doing, Live, LiveStage
from stagewatch.records import RunStarted

_SHARE_SECONDS: Final = 0.5
"""Looks nearer to each other say little about CPU: the kernel counts it in ticks of 10 ms."""

_Sides = tuple[int | None, int | None]
"""Records in and out."""
_Figure = TypeVar("_Figure", int, float)


class Member(NamedTuple):
    """One living process of a run, at one look."""

    key: str
    journal: Journal
    sighting: Sighting


class Counts(NamedTuple):
    """Records of a run so far."""

    records_in: int | None = None
    records_out: int | None = None
    rejected: int = 0
    by_stage: Mapping[str, int] = {}
    """Of the declared stages that say how many they expect: out, or in where out is unknown."""


class UnderWay:
    """One run under way. *durations* of past runs in seconds, *said* as `notices.said` gives it."""

    def __init__(
        self, number: int, opened: RunStarted, now: int, uptime: int,
        durations: Collection[float], said: dict[tuple[str, str], int],
    ) -> None:  # fmt: skip
        self.number = number
        """Row id."""
        self.opened = opened
        self.said = said
        self.began = opened.uptime or uptime - max(now - opened.start, 0)
        """Uptime at its start."""
        self.is_announced = False
        """Whether anybody was told that it has begun."""
        self.members: Sequence[Member] = ()
        self.now, self.uptime = now, uptime
        self.doing = Doing.RUNNING
        self.since = opened.start
        """When it last moved."""
        self.was_stuck = False
        """At the last look but one."""
        self.counts = Counts()
        self.stages: Mapping[str, DeclaredStage] = (
            opened.declared.stages if opened.declared is not None else {}
        )
        self.expected = {
            name: stage.expected_records
            for name, stage in self.stages.items()
            if stage.expected_records
        }
        """Records, by the stages that say how many."""
        self._durations = durations
        self._usual = measures.usual_duration(durations)
        self._rate = Rate(self.began)
        self._processes: dict[str, ProcessSeen] = {}
        self._memory_peak = 0
        self._share: float | None = None
        self._share_from = (uptime, 0.0)

    @property
    def elapsed(self) -> int:
        """Nanoseconds since its start."""
        return max(self.uptime - self.began, 0)

    def look(self, members: Sequence[Member], now: int, uptime: int) -> None:
        """See how its processes are."""
        is_first = not self._processes
        self.members, self.now, self.uptime = members, now, uptime
        for gone in self._processes.keys() - {member.key for member in members}:
            del self._processes[gone]
        for key, journal, sighting in members:
            process = self._processes.get(key)
            if process is None:
                process = self._processes[key] = ProcessSeen(begin_of(journal, now, uptime))
            has_moved = process.look(journal, sighting, now, uptime)
            if is_first:
                self.since = max(self.since, journal.seen)
            elif has_moved:
                self.since = now
        self.was_stuck = self.doing is Doing.STUCK
        self.doing = _doing(members)
        self._weigh(uptime, is_first)

    def opener(self) -> Journal | None:
        """Of the process that opened it, as it was at the last look."""
        journals = (member.journal for member in self.members)
        return next((journal for journal in journals if journal.opened is not None), None)

    def forget(self, key: str) -> None:
        """That process is dead."""
        self._processes.pop(key, None)

    def process(self, key: str) -> ProcessSeen | None:
        """What was seen of one process."""
        return self._processes.get(key)

    def lateness(self) -> float:
        """Seconds past the deadline now: by the clock where it is the schedule's, by the uptime
        where it is a longest duration."""
        opened = self.opened
        longest = opened.declared.sla.max_duration if opened.declared is not None else None
        if longest is not None and opened.deadline == opened.start + round(longest * SECOND):
            return max(self.elapsed / SECOND - longest, 0.0)
        return measures.lateness(opened.deadline, self.now)

    def place(self) -> Place:
        """Where the process that opened it is; where that is nowhere, any other."""
        openers = sorted(self.members, key=lambda member: member.journal.opened is None)
        places = (place(member.journal, member.sighting.page) for member in openers)
        return next((found for found in places if any(found)), Place())

    def open_stages(self) -> Iterator[StageSeen]:
        """Of all its processes."""
        for process in self._processes.values():
            yield from process.stages.values()

    def speeds(self) -> dict[str, float]:
        """Records per second of the open stages whose records are counted, by name."""
        found: dict[str, float] = {}
        for stage in self.open_stages():
            speed = stage.rate.speed()
            if stage.cell is not None and speed is not None:
                found[stage.name] = found.get(stage.name, 0.0) + speed
        return found

    def progress(self) -> float | None:
        """Of the expected records, else of the usual duration."""
        share = self._progress_by_records()
        return measures.progress(self.elapsed / SECOND, self._usual) if share is None else share

    def estimated_end(self) -> int | None:
        """By the expected records, else by past durations."""
        share = self._progress_by_records()
        if share:
            return self.now + measures.remaining(self.elapsed, share)
        start = self.opened.start
        return measures.eta(start, start + self.elapsed, self._durations)

    def count(self, counts: Counts) -> None:
        """Learn how many records it has by now."""
        self.counts = counts
        self._rate.add(self.uptime, counts.records_in, counts.records_out)

    def picture(self) -> Live:
        """As it is now."""
        stages: list[LiveStage] = []
        operation: tuple[str | None, int | None] = (None, None)
        ago = self.now - time.monotonic_ns()
        for key, journal, sighting in self.members:
            threads = list(sighting.page.threads())
            stages += self._stages_of(key, journal, threads, ago)
            for thread in threads:
                if thread.operation and not any(thread.stages):
                    operation = open_operation(journal, thread, ago)
        processes = [process.vitals for process in self._by_pid()]
        vitals = [one for one in processes if one is not None]
        return Live(
            at=self.now,
            doing=self.doing,
            waits_for=_reason(self.members) if self.doing is Doing.WAITING else None,
            since=self.since,
            stages=tuple(sorted(stages, key=lambda stage: stage.start)),
            operation=operation[0],
            operation_start=operation[1],
            progress=self.progress(),
            estimated_end=self.estimated_end(),
            throughput=self._rate.speed(),
            cpu_seconds=_sum(one.cpu_seconds for one in vitals),
            cpu_share=self._share,
            memory=_sum(one.memory for one in vitals),
            memory_peak=self._memory_peak or None,
            processes=sum(1 if one is None else one.processes for one in processes),
            threads=_sum(one.threads for one in vitals),
            read_bytes=_sum(one.read_bytes for one in vitals),
            written_bytes=_sum(one.written_bytes for one in vitals),
        )

    def gauges(self, picture: Live) -> list[Increment]:
        """What the metrics show of it."""
        active = max(
            max(member.sighting.page.word(Words.LAST_ACTIVITY), member.journal.seen)
            for member in self.members
        )
        found = [
            Increment(semconv.HEARTBEAT, (), self.now / SECOND),
            Increment(semconv.LAST_ACTIVITY, (), active / SECOND),
        ]
        if self.opened.deadline is not None:
            found.append(Increment(semconv.LATENESS, (), self.lateness()))
        if picture.progress is not None:
            found.append(Increment(semconv.PROGRESS, (), picture.progress))
        if picture.estimated_end is not None:
            found.append(Increment(semconv.ESTIMATED_END, (), picture.estimated_end / SECOND))
        peaks: dict[str, int] = {}
        for stage in picture.stages:
            if stage.memory_peak is not None:
                peaks[stage.name] = max(peaks.get(stage.name, 0), stage.memory_peak)
        for metric, values in (
            (semconv.THROUGHPUT, self.speeds()),
            (semconv.STAGE_MEMORY, peaks),
        ):
            for name, value in values.items():
                found.append(Increment(metric, ((semconv.STAGE_NAME, name),), value))
        return found

    def _stages_of(
        self, key: str, journal: Journal, threads: Sequence[OpenThread], ago: int
    ) -> Iterator[LiveStage]:
        process = self._processes[key]
        for span_id, stage in process.stages.items():
            started = journal.stages[span_id].started
            thread = thread_in(threads, started.cell)
            operation = open_operation(journal, thread, ago) if thread else (None, None)
            records_in, records_out = known_records(stage.cell) if stage.cell else (None, None)
            declared = self.stages.get(stage.name)
            yield LiveStage(
                name=stage.name,
                span_id=span_id,
                parent_span_id=started.parent_span_id,
                start=started.start,
                pid=journal.process.pid if journal.process else 0,
                operation=operation[0],
                operation_start=operation[1],
                records_in=records_in,
                records_out=records_out,
                records_rejected=stage.cell["records_rejected"] if stage.cell else 0,
                throughput=stage.rate.speed(),
                cpu_seconds=process.stage_cpu(span_id, None),
                memory_peak=process.vitals.memory_peak if process.vitals else None,
                expected_records=declared.expected_records if declared else None,
            )

    def _progress_by_records(self) -> float | None:
        by_stage = self.counts.by_stage
        done = sum(min(by_stage.get(name, 0), most) for name, most in self.expected.items())
        return measures.progress(done, sum(self.expected.values()))

    def _by_pid(self) -> Iterator[ProcessSeen]:
        """One for each process: after an exec it has two journals."""
        found: dict[str, ProcessSeen] = {}
        for key, process in self._processes.items():
            pid = key.rsplit(".", 1)[0]
            if pid not in found or process.vitals is not None:
                found[pid] = process
        yield from found.values()

    def _weigh(self, uptime: int, is_first: bool) -> None:
        vitals = [process.vitals for process in self._by_pid() if process.vitals is not None]
        memory = _sum(one.memory for one in vitals) or 0
        peaks = [one.memory_peak or 0 for one in vitals]
        self._memory_peak = max(self._memory_peak, memory, *peaks)
        cpu = _sum(one.cpu_seconds for one in vitals)
        since, before = self._share_from
        if cpu is None or is_first:
            self._share_from = (uptime, cpu or 0.0)
        elif uptime - since >= _SHARE_SECONDS * SECOND:
            self._share = max(cpu - before, 0.0) / ((uptime - since) / SECOND)
            self._share_from = (uptime, cpu)


def note_records(link: sqlite3.Connection, run: UnderWay) -> None:
    """Set the run's records to what is taken in and what the pages show beyond it."""
    rows.sum_records(link, run.number)
    sides: list[int | None] = [None, None]
    rejected = 0
    by_stage = rows.stage_records(link, run.number) if run.expected else {}
    for member in run.members:
        for name, cell in cells(member.journal, member.sighting.page):
            known = known_records(cell)
            for index, count in enumerate(known):
                if count is not None:
                    sides[index] = (sides[index] or 0) + count
            rejected += cell["records_rejected"]
            if name in run.expected:
                by_stage[name] = _plus(by_stage.get(name, (None, None)), known)
    total = rows.add_records(link, run.number, sides[0], sides[1], rejected)
    done = {
        name: (records_in if out is None else out) or 0
        for name, (records_in, out) in by_stage.items()
    }
    run.count(Counts(*total, done))


def _plus(left: _Sides, right: _Sides) -> _Sides:
    came, went = (a if b is None else (a or 0) + b for a, b in zip(left, right, strict=True))
    return came, went


def _doing(members: Sequence[Member]) -> Doing:
    if not all(member.sighting.is_still for member in members):
        return Doing.RUNNING
    return Doing.STUCK if _reason(members) is None else Doing.WAITING


def _reason(members: Sequence[Member]) -> str | None:
    """Why they may be well although they are still."""
    reasons = (member.sighting.waits_for for member in members)
    return next((reason for reason in reasons if reason is not None), None)


def _sum(values: Iterable[_Figure | None]) -> _Figure | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None
