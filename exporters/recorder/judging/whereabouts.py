"""Where in its program a process is, and what it has counted: its status page by its journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from stagewatch.exporters.page import OpenThread, PageReader
from stagewatch.exporters.recorder.intake.books import Journal, OpenStage


class Place(NamedTuple):
    """Where in its program a process is."""

    stage: str | None = None
    """Innermost open one."""
    operation: str | None = None


def place(journal: Journal, page: PageReader | None) -> Place:
    """Innermost open stage of a process, and the operation open in it, else anywhere."""
    stage = innermost(journal)
    threads = [thread for thread in page.threads() if thread.operation] if page else []
    inside = thread_in(threads, stage.started.cell) if stage else None
    newest = max(threads, key=lambda thread: thread.operation_start, default=None)
    thread = inside or newest
    name = stage.started.name if stage else None
    return Place(name, journal.names.get(thread.operation) if thread else None)


def innermost(journal: Journal) -> OpenStage | None:
    """The stage that was opened last of those that are open."""
    stages = [stage for key, stage in journal.stages.items() if journal.is_open(key)]
    return max(stages, key=lambda stage: stage.started.start, default=None)


def stage_cell(journal: Journal, span_id: bytes, page: PageReader) -> Mapping[str, int] | None:
    """Counters of an open stage; None where it has no cell, or another stage has it by now."""
    stage = journal.stages[span_id]
    cell = page.cell("stage", stage.started.cell) if stage.started.cell else None
    if cell is None or cell["span_id"] != int.from_bytes(span_id, "big"):
        return None
    return cell


def cells(journal: Journal, page: PageReader) -> Iterator[tuple[str, Mapping[str, int]]]:
    """Records that the page shows and nothing else does yet, by stage (empty: of none)."""
    for span_id, stage in journal.stages.items():
        cell = stage_cell(journal, span_id, page)
        if cell is not None and stage.ended is None:
            yield stage.started.name, cell
    for tally in journal.tallies.values():
        cell = page.cell(tally.kind, tally.cell) if tally.kind == "folded_stage" else None
        if cell is not None:
            yield tally.name, cell
    own = page.run()
    if own is not None:
        yield "", own


def thread_in(threads: Sequence[OpenThread], cell: int) -> OpenThread | None:
    """The thread whose innermost stage has this cell."""
    for thread in threads:
        if cell and next((offset for offset in reversed(thread.stages) if offset), 0) == cell:
            return thread
    return None


def open_operation(journal: Journal, thread: OpenThread, ago: int) -> tuple[str | None, int | None]:
    """Name and start of a thread's open operation. *ago*: of the clock to the monotonic one."""
    if not thread.operation:
        return None, None
    return journal.names.get(thread.operation), thread.operation_start + ago
