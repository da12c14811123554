"""Runs under way: what their status pages and a look at their processes from outside say of them.

Kept in memory, at the price of a look a second. Durations follow the uptime, so that steps of the
clock change none.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from stagewatch import measures
from stagewatch.exporters.recorder.intake.books import Journal
from stagewatch.exporters.recorder.judging.tracking import ProcessSeen, Rate, StageSeen, uptime_at
from stagewatch.exporters.recorder.judging.whereabouts import (
    Place,
    place,
)
from stagewatch.exporters.recorder.watching.vitals import Sighting
from stagewatch.measures import SECOND
from stagewatch.model import DeclaredStage, Doing
from stagewatch.records import RunStarted

_SHARE_SECONDS: Final = 0.5
"""Looks nearer to each other say little about CPU: the kernel counts it in ticks of 10 ms."""

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
        self.reason: str | None = None
        """Of one that waits: see `Sighting.waits_for`."""
        self.since = opened.start
        """When it last moved."""
        self.was_stuck = False
        """At a look of this recorder's."""
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
        self.rate = Rate(self.began)
        self.processes: dict[str, ProcessSeen] = {}
        self.memory_peak = 0
        self.share: float | None = None
        self._weighed = (uptime, 0.0)
        self._counted = 0
        """When its records were last seen to have changed; 0: never looked at."""

    @property
    def elapsed(self) -> int:
        """Nanoseconds since its start."""
        return max(self.uptime - self.began, 0)

    @property
    def clock(self) -> int:
        """What its own clock shows, which nobody sets: what is said of it lies within its span."""
        return measures.moment(self.now, self.uptime, self.opened.start, self.opened.uptime)

    def look(self, members: Sequence[Member], now: int, uptime: int) -> None:
        """See how its processes are."""
        is_first = not self.processes
        self.members, self.now, self.uptime = members, now, uptime
        for gone in self.processes.keys() - {member.key for member in members}:
            del self.processes[gone]
        for key, journal, sighting in members:
            process = self.processes.get(key)
            if process is None:
                process = self.processes[key] = ProcessSeen(_begin(journal, now, uptime))
            has_moved = process.look(journal, sighting, now, uptime)
            if is_first:
                self.since = max(self.since, journal.seen)
            elif has_moved:
                self.since = self.clock
        self.reason = _reason(members)
        self.doing = _doing(members, self.reason)
        self.was_stuck |= self.doing is Doing.STUCK
        self._weigh(uptime, is_first)

    def opener(self) -> Journal | None:
        """Of the process that opened it, as it was at the last look."""
        journals = (member.journal for member in self.members)
        return next((journal for journal in journals if journal.opened is not None), None)

    def forget(self, key: str) -> None:
        """That process is dead."""
        self.processes.pop(key, None)
        self.members = [member for member in self.members if member.key != key]

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
        for process in self.processes.values():
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
        if self._counted and counts != self.counts:
            self._counted = self.clock
        self._counted = self._counted or self.opened.start
        self.counts = counts
        self.rate.add(self.uptime, counts.records_in, counts.records_out)

    def last_activity(self) -> int:
        """When it last recorded anything, as far as records, pages and counts tell."""
        ago = self.now - time.monotonic_ns()
        found = [self._counted]
        for _, journal, sighting in self.members:
            found.append(journal.seen)
            for thread in sighting.page.threads():
                begun = thread.operation_start + ago if thread.operation else 0
                found += (thread.since, begun)
        return max(found)

    def by_pid(self) -> Iterator[ProcessSeen]:
        """One for each process: after an exec it has two journals."""
        found: dict[str, ProcessSeen] = {}
        for key, process in self.processes.items():
            pid = key.rsplit(".", 1)[0]
            if pid not in found or process.vitals is not None:
                found[pid] = process
        yield from found.values()

    def _progress_by_records(self) -> float | None:
        by_stage = self.counts.by_stage
        done = sum(min(by_stage.get(name, 0), most) for name, most in self.expected.items())
        return measures.progress(done, sum(self.expected.values()))

    def _weigh(self, uptime: int, is_first: bool) -> None:
        vitals = [process.vitals for process in self.by_pid() if process.vitals is not None]
        memory = total(one.memory for one in vitals) or 0
        peaks = [one.memory_peak or 0 for one in vitals]
        self.memory_peak = max(self.memory_peak, memory, *peaks)
        cpu = total(one.cpu_seconds for one in vitals)
        since, before = self._weighed
        if cpu is None or is_first:
            self._weighed = (uptime, cpu or 0.0)
        elif uptime - since >= _SHARE_SECONDS * SECOND:
            self.share = max(cpu - before, 0.0) / ((uptime - since) / SECOND)
            self._weighed = (uptime, cpu)


def total(values: Iterable[_Figure | None]) -> _Figure | None:
    """Sum of those that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _begin(journal: Journal, now: int, uptime: int) -> int:
    process = journal.process
    return uptime_at(process, process.start if process is not None else now, now, uptime)


def _doing(members: Sequence[Member], reason: str | None) -> Doing:
    if not all(member.sighting.is_still for member in members):
        return Doing.RUNNING
    return Doing.STUCK if reason is None else Doing.WAITING


def _reason(members: Sequence[Member]) -> str | None:
    reasons = (member.sighting.waits_for for member in members)
    return next((reason for reason in reasons if reason is not None), None)
