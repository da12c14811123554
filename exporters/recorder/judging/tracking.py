"""What is kept of a process while it lives, from one look at it to the next.

Times are uptimes, so that steps of the clock change no duration.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from stagewatch import measures
from stagewatch.exporters.recorder.intake.books import Journal
from stagewatch.exporters.recorder.intake.closing import known_records
from stagewatch.exporters.recorder.judging.whereabouts import stage_cell
from stagewatch.exporters.recorder.watching.vitals import Sighting, Vitals
from stagewatch.measures import SECOND
from stagewatch.records import ProcessStarted

WINDOW_SECONDS: Final = 60.0
"""Over so long the throughput of a stage is measured while it runs (decision 14)."""
_SAMPLE_SECONDS: Final = 5.0
_STILL: Final = 0.001
"""Cores; who uses less does not move (decision 10)."""


class Rate:
    """Counts of the last minute."""

    __slots__ = ("_samples",)

    def __init__(self, begin: int) -> None:
        self._samples: deque[tuple[int, int | None, int | None]] = deque([(begin, None, None)])

    def add(self, at: int, records_in: int | None, records_out: int | None) -> None:
        samples = self._samples
        if len(samples) > 1 and samples[-1][0] - samples[-2][0] < _SAMPLE_SECONDS * SECOND:
            samples.pop()
        samples.append((at, records_in, records_out))
        while len(samples) > 2 and samples[1][0] <= at - WINDOW_SECONDS * SECOND:
            samples.popleft()

    def speed(self) -> float | None:
        """Records per second; None where neither side was counted."""
        first, last = self._samples[0], self._samples[-1]
        came, went = (
            None if now is None else now - (before or 0)
            for before, now in zip(first[1:], last[1:], strict=True)
        )
        return measures.throughput(came, went, (last[0] - first[0]) / SECOND)


class StageSeen:
    """One open stage."""

    __slots__ = ("begin", "cell", "cpu_before", "name", "rate")

    def __init__(self, name: str, begin: int, cpu_before: float | None) -> None:
        self.name = name
        self.begin = begin
        self.cpu_before = cpu_before
        """Of its process when the stage began."""
        self.rate = Rate(begin)
        self.cell: Mapping[str, int] | None = None


class ProcessSeen:
    """One living process."""

    def __init__(self, begin: int) -> None:
        self.stages: dict[bytes, StageSeen] = {}
        self.vitals: Vitals | None = None
        self._looked = begin
        self._seen = 0

    def look(self, journal: Journal, sighting: Sighting, now: int, uptime: int) -> bool:
        """Whether it moved since the last look."""
        vitals = sighting.vitals
        for span_id, stage in journal.stages.items():
            if not journal.is_open(span_id):
                continue
            known = self.stages.get(span_id)
            if known is None:
                begin = uptime_at(journal.process, stage.started.start, now, uptime)
                cpu = self._cpu_at(begin, vitals, uptime)
                known = self.stages[span_id] = StageSeen(stage.started.name, begin, cpu)
            known.cell = stage_cell(journal, span_id, sighting.page)
            if known.cell is not None:
                known.rate.add(uptime, *known_records(known.cell))
        for span_id in [one for one in self.stages if not journal.is_open(one)]:
            del self.stages[span_id]
        moved = journal.seen != self._seen or self._has_moved(vitals, uptime)
        self._seen = journal.seen
        if vitals is not None:
            self.vitals, self._looked = vitals, uptime
        return moved

    def stage_cpu(self, span_id: bytes, vitals: Vitals | None) -> float | None:
        """Seconds since the stage began, up to *vitals*, or to the last look."""
        stage = self.stages.get(span_id)
        latest = vitals or self.vitals
        if stage is None or latest is None:
            return None
        if stage.cpu_before is None or latest.cpu_seconds is None:
            return None
        return max(latest.cpu_seconds - stage.cpu_before, 0.0)

    def _cpu_at(self, moment: int, vitals: Vitals | None, uptime: int) -> float | None:
        """CPU at a moment between the last look (or the process's start) and this one."""
        if vitals is None or vitals.cpu_seconds is None:
            return None
        before = self.vitals.cpu_seconds if self.vitals else 0.0
        if before is None or uptime <= self._looked:
            return before
        share = (moment - self._looked) / (uptime - self._looked)
        return before + (vitals.cpu_seconds - before) * min(max(share, 0.0), 1.0)

    def _has_moved(self, vitals: Vitals | None, uptime: int) -> bool:
        before = self.vitals
        if vitals is None or before is None:
            return False
        if (vitals.read_bytes, vitals.written_bytes) != (before.read_bytes, before.written_bytes):
            return True
        spent = (vitals.cpu_seconds or 0.0) - (before.cpu_seconds or 0.0)
        return spent > _STILL * (uptime - self._looked) / SECOND


def uptime_at(process: ProcessStarted | None, moment: int, now: int, uptime: int) -> int:
    """Uptime at a *moment* of a process's own clock, which nobody sets; *now* of the recorder's."""
    if process is not None and process.uptime:
        return min(process.uptime + moment - process.start, uptime)
    return uptime - max(now - moment, 0)
