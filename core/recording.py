"""What one process counts for its run: the state behind `stagewatch.tracing`.

Counts live in the status page (so that they survive the process) and are defined, once each, in
the journal.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, Tracer

from stagewatch import records
from stagewatch.config import Settings
from stagewatch.measures import DURATION_BUCKETS, bucket_index
from stagewatch.model import Outcome, Pipeline

if TYPE_CHECKING:
    from stagewatch.tracing import OpenStage


_HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

Add = Callable[[int, int, int], None]
"""Counts a folded call: nanoseconds, rows in, rows out."""


class Cell(Protocol):
    """Counters in the status page."""

    offset: int

    number: int
    places: tuple[int, int]
    buffer: memoryview
    pack: Callable[..., None]
    is_plain: bool

    def store(self, *values: int) -> None: ...


class ThreadSlot(Protocol):
    """What the status page shows of one thread."""

    operation: Any

    def show_stages(self, cells: list[int], now: int) -> None: ...
    def leave(self) -> None: ...


class Sink(Protocol):
    """Journal and status page, seen from here."""

    directory: Path
    lock: threading.RLock

    def append(self, record: Any) -> None: ...
    def cell(self, kind: str) -> Any: ...
    def release(self, cell: Any) -> None: ...
    def run_cell(self) -> Any: ...
    def thread_slot(self) -> Any: ...


class Run(Struct, frozen=True):
    """The run this process belongs to."""

    run_id: str
    pipeline: Pipeline
    context: Context
    """Holds the run's span: the parent of whatever has no other."""
    span: SpanContext


class Counts:
    """Records of one thing. A side that nobody counted is None, not 0."""

    __slots__ = ("bytes_in", "bytes_out", "records_in", "records_out", "rejected", "retries")

    def __init__(self) -> None:
        self.records_in: int | None = None
        self.records_out: int | None = None
        self.rejected = 0
        self.retries = 0
        self.bytes_in = 0
        self.bytes_out = 0

    def add(
        self,
        in_: int | None,
        out: int | None,
        rejected: int = 0,
        retries: int = 0,
        bytes_in: int = 0,
        bytes_out: int = 0,
    ) -> None:
        """Called under the sink's lock."""
        if in_ is not None:
            self.records_in = (self.records_in or 0) + in_
        if out is not None:
            self.records_out = (self.records_out or 0) + out
        self.rejected += rejected
        self.retries += retries
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out

    def fields(self) -> tuple[int, int, int, int, int, int, int]:
        """As they stand in a cell of the status page, which holds unsigned numbers only."""
        known = (self.records_in is not None) | (self.records_out is not None) << 1
        return (
            max(0, self.records_in or 0),
            max(0, self.records_out or 0),
            max(0, self.rejected),
            self.retries,
            self.bytes_in,
            self.bytes_out,
            known,
        )


def _tally(sink: Sink, run_id: str, stage: str, name: str) -> Add:
    """Count the calls of one operation that fold into one stage."""
    cell = sink.cell("operation")
    if cell is None:  # the page is full: what cannot be added up there is said one by one

        def spill(nanoseconds: int, rows_in: int, rows_out: int) -> None:
            sink.append(
                records.TallySpilled(
                    run_id, stage, name, "operation", nanoseconds, rows_in, rows_out
                )
            )

        return spill
    sink.append(records.TallyDefined(cell.offset, "operation", run_id, stage, name))
    if cell.is_plain and not cell.number and _HAS_GIL:
        return _adding_in_place(cell)
    return _adding(cell, sink.lock)


def _adding_in_place(cell: Cell) -> Add:
    pack, buffer, (even, odd) = cell.pack, cell.buffer, cell.places
    calls = duration = rows = rows_left = 0

    def add(nanoseconds: int, rows_in: int, rows_out: int) -> None:
        # No lock: from the first line to the inside of `pack` nothing is called, and only at calls
        # and backward jumps does CPython switch threads or run signal handlers (3.11 to 3.14).
        # The closure's names, for attributes cost half as much again; and the cell is a new one,
        # so that the number of the store is that of the call.
        nonlocal calls, duration, rows, rows_left
        calls += 1
        duration += nanoseconds
        rows += rows_in
        rows_left += rows_out
        pack(buffer, odd if calls & 1 else even, calls, calls, duration, rows, rows_left, 0, calls)

    return add


def _adding(cell: Cell, lock: threading.RLock) -> Add:
    calls = duration = rows = rows_left = 0

    def add(nanoseconds: int, rows_in: int, rows_out: int) -> None:
        nonlocal calls, duration, rows, rows_left
        with lock:
            calls += 1
            duration += nanoseconds
            rows += rows_in
            rows_left += rows_out
            cell.store(calls, duration, rows, rows_left)

    return add


class StageTally:
    """Calls of one stage beyond those that get a span."""

    def __init__(self, sink: Sink, run_id: str, name: str) -> None:
        self._sink = sink
        self._run_id = run_id
        self._name = name
        self._calls = self._failed = self._nanoseconds = self._active = self._cpu = 0
        self._memory = 0
        self._counts = Counts()
        self._by_frames = 0
        self._buckets = [0] * (len(DURATION_BUCKETS) + 1)
        self._cell = sink.cell("folded_stage")
        if self._cell is not None:
            sink.append(records.TallyDefined(self._cell.offset, "folded_stage", run_id, name, name))

    def add(self, call: records.StageEnded) -> None:
        """Count one call that has ended."""
        if self._cell is None:  # the page is full: what cannot be added up there is said one by one
            self._sink.append(call)
            return
        failed = call.outcome != Outcome.SUCCESS
        with self._sink.lock:
            self._calls += 1
            self._failed += failed
            self._nanoseconds += call.end - call.start
            self._active += int(call.active_seconds * 1e9)
            self._cpu += int(call.cpu_seconds * 1e9)
            self._memory = max(self._memory, call.memory_peak)
            self._buckets[bucket_index((call.end - call.start) / 1e9)] += 1
            self._by_frames |= call.by_frames
            self._counts.add(
                call.records_in,
                call.records_out,
                call.records_rejected,
                call.retries,
                call.bytes_in,
                call.bytes_out,
            )
            self._store()
        if failed and call.error_type:
            self._sink.append(
                records.StageFailed(self._run_id, self._name, call.outcome, call.error_type)
            )

    def add_counts(self, *counts: Any) -> None:
        """`Counts.add` for a call that somebody else ends: the parent of a forked process."""
        with self._sink.lock:
            self._counts.add(*counts)
            self._store()

    def _store(self) -> None:
        if self._cell is not None:
            *counts, known = self._counts.fields()
            self._cell.store(
                self._calls,
                self._failed,
                self._nanoseconds,
                self._active,
                self._cpu,
                self._memory,
                *counts,
                known | self._by_frames << 2,
                *self._buckets,
            )


class Doing:
    """What one thread is doing."""

    __slots__ = ("_recorded", "recording", "slot", "stages")

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.slot: ThreadSlot | None = None
        """None where the page has no slot left."""
        self.stages: list[OpenStage] = []
        self._recorded = (0, 0)
        """Id of the exception that a span has recorded last, and that span's parent."""

    def __del__(self) -> None:
        if self.slot is not None:  # the thread is over
            self.slot.leave()

    def has_recorded(self, error: BaseException, span: Span) -> bool:
        """Whether a child of *span* has recorded *error* already; ids of exceptions are reused, so
        that only the one on its way up counts."""
        known = self._recorded == (id(error), span.get_span_context().span_id)
        parent = getattr(span, "parent", None)
        self._recorded = (id(error), parent.span_id if parent is not None else 0)
        return known


class _Thread(threading.local):
    def __init__(self) -> None:
        self.doing = Doing()
        """What the calling thread is doing."""
        self.elsewhere: Recording | None = None
        """What it records for instead of the process's own run; see `here`."""


thread = _Thread()


class Recording:
    """All that one process counts for its run."""

    def __init__(
        self,
        sink: Sink,
        run: Run,
        tracer: Tracer,
        settings: Settings,
        begin: Callable[[Span], None],
    ) -> None:
        self.sink = sink
        self.begin = begin
        """Puts the beginning of an open span into the journal, once, as when it gets a child."""
        self.lock = sink.lock
        self.run = run
        self.tracer = tracer
        self.settings = settings
        self.threshold = int(settings.span_threshold * 1e9)
        self.calls: dict[str, int] = {}
        self.named: set[int] = set()
        """Numbers of the operations whose name is in the journal."""
        self.operations: dict[str, Add] = {}
        """Of no stage, by name."""
        self._operations_of: dict[str, dict[str, Add]] = {"": self.operations}
        self.folded: dict[str, StageTally] = {}
        self.without_stage = Counts()
        self.is_over = False
        """Nothing counts for it any more: it was stopped, or is the parent's in a forked child."""
        self.recording = self

    def operations_of(self, stage: str) -> dict[str, Add]:
        """Tallies of one stage by the operation's name."""
        found = self._operations_of.get(stage)
        if found is None:
            found = self._operations_of.setdefault(stage, {})
        return found

    def new_tally(self, stage: str, name: str) -> Add:
        """The tally of an operation that `operations_of` does not have yet."""
        tallies = self.operations_of(stage)
        with self.lock:
            if name not in tallies:
                tallies[name] = _tally(self.sink, self.run.run_id, stage, name)
        return tallies[name]

    def folded_stage(self, name: str) -> StageTally:
        tally = self.folded.get(name)
        if tally is None:
            with self.lock:
                tally = self.folded.setdefault(name, StageTally(self.sink, self.run.run_id, name))
        return tally

    def doing(self) -> Doing:
        """What this thread is doing in this recording."""
        found = thread.doing
        if found.recording is not self:
            found.recording = self
            found.slot = self.sink.thread_slot()
            found.stages = []
        return found

    def close(self) -> None:
        """Let go of what counts, and so of the page: the run is over, though its process is not."""
        self.is_over = True
        with self.lock:
            self.operations.clear()
            self._operations_of.clear()
            self.folded.clear()

    def add(self, *counts: Any) -> None:
        """`Counts.add` for what belongs to no stage."""
        with self.lock:
            own = self.without_stage
            own.add(*counts)
            cell = self.sink.run_cell()
            if cell is not None:
                cell.store(*own.fields())


active: Recording | None = None
"""The recording of this process; None while nothing records."""


def here() -> Recording | None:
    """The recording that the calling thread counts for: the process's own, unless it works for
    another run of the process."""
    return thread.elsewhere or active


def start(
    sink: Sink,
    run: Run,
    tracer: Tracer,
    settings: Settings,
    begin: Callable[[Span], None] = lambda span: None,
) -> None:
    """Record from now on.

    *begin* puts the beginning of an open span into the journal, once; it never raises.
    """
    global active
    stop()
    active = Recording(sink, run, tracer, settings, begin)


def stop() -> None:
    """Record no more: tracing is a no-op again."""
    global active
    if active is not None:
        active.threshold = -1  # a call under way takes the long way, and sees that it is over
        active.is_over = True
    active = None
