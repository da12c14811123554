"""What the status pages say of runs that are still under way: gauges, and records so far."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final

from stagewatch import measures, semconv
from stagewatch.exporters.page import PageReader, Words
from stagewatch.exporters.recorder import rows
from stagewatch.exporters.recorder.books import Journal
from stagewatch.exporters.recorder.closing import known_records
from stagewatch.exporters.recorder.increments import Increment
from stagewatch.measures import SECOND

WINDOW_SECONDS: Final = 60.0
"""Over so long the throughput of a stage is measured while it runs (decision 14)."""

_Sample = tuple[int, int | None, int | None]  # time in ns, records in and out


class Live:
    """Remembers what stages had counted a minute ago."""

    def __init__(self) -> None:
        self._samples: dict[bytes, deque[_Sample]] = {}

    def gauges(self, journal: Journal, page: PageReader, now: int) -> list[Increment]:
        """Of one process, at *now* in ns."""
        found = self._speeds(journal, page, now)
        opened = journal.opened
        if opened is None:
            return found
        active = max(page.word(Words.LAST_ACTIVITY), journal.seen)
        found += [
            Increment(semconv.HEARTBEAT, (), now / SECOND),
            Increment(semconv.LAST_ACTIVITY, (), active / SECOND),
        ]
        if opened.deadline is not None:
            late = measures.lateness(opened.deadline, now)
            found.append(Increment(semconv.LATENESS, (), late))
        return found

    def forget(self, journal: Journal) -> None:
        """Its process is dead."""
        for span_id in journal.stages:
            self._samples.pop(span_id, None)

    def _speeds(self, journal: Journal, page: PageReader, now: int) -> list[Increment]:
        speeds: dict[str, float] = {}
        for span_id, stage in journal.stages.items():
            cell = stage_cell(journal, span_id, page)
            if cell is None or stage.ended is not None:
                continue
            samples = self._samples.setdefault(span_id, deque([(stage.started.start, None, None)]))
            samples.append((now, *known_records(cell)))
            while len(samples) > 2 and samples[1][0] <= now - WINDOW_SECONDS * SECOND:
                samples.popleft()
            speed = _speed(samples[0], samples[-1])
            if speed is not None:
                speeds[stage.started.name] = speeds.get(stage.started.name, 0.0) + speed
        for gone in self._samples.keys() - journal.stages.keys():
            if self._samples[gone][-1][0] < now - WINDOW_SECONDS * SECOND:
                del self._samples[gone]
        return [
            Increment(semconv.THROUGHPUT, ((semconv.STAGE_NAME, name),), speed)
            for name, speed in speeds.items()
        ]


def _speed(first: _Sample, last: _Sample) -> float | None:
    changes = [
        None if now is None else now - (before or 0)
        for before, now in zip(first[1:], last[1:], strict=True)
    ]
    return measures.throughput(changes[0], changes[1], (last[0] - first[0]) / SECOND)


def stage_cell(journal: Journal, span_id: bytes, page: PageReader) -> Mapping[str, int] | None:
    """Counters of an open stage; None where it has no cell, or another stage has it by now."""
    stage = journal.stages[span_id]
    cell = page.cell("stage", stage.started.cell) if stage.started.cell else None
    if cell is None or cell["span_id"] != int.from_bytes(span_id, "big"):
        return None
    return cell


def note_records(
    link: sqlite3.Connection, run: int, alive: list[tuple[Journal, PageReader]]
) -> None:
    """Set the run's records to what is taken in and what the pages of *alive* show beyond it."""
    rows.sum_records(link, run)
    sides: list[int | None] = [None, None]
    rejected = 0
    for cell in (cell for journal, page in alive for cell in _cells(journal, page)):
        for index, count in enumerate(known_records(cell)):
            if count is not None:
                sides[index] = (sides[index] or 0) + count
        rejected += cell["records_rejected"]
    link.execute(
        "update run set records_in = ifnull(records_in + ?1, ifnull(records_in, ?1)), "
        "records_out = ifnull(records_out + ?2, ifnull(records_out, ?2)), "
        "records_rejected = records_rejected + ?3 where id = ?4 and end is null",
        (*sides, rejected, run),
    )


def _cells(journal: Journal, page: PageReader) -> Iterator[Mapping[str, int]]:
    for span_id, stage in journal.stages.items():
        cell = stage_cell(journal, span_id, page)
        if cell is not None and stage.ended is None:
            yield cell
    for tally in journal.tallies.values():
        cell = page.cell(tally.kind, tally.cell) if tally.kind == "folded_stage" else None
        if cell is not None:
            yield cell
    own = page.run()
    if own is not None:
        yield own
