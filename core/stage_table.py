"""The stages of a run as a table: what has ended, and what is open so far.

Pure functions over rows of the history. Times are nanoseconds since the epoch, durations seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from msgspec import Struct
from rich.console import RenderableType

from stagewatch import measures
from stagewatch.columns import Column, Rows
from stagewatch.figures import NOTHING, SECOND, count, duration, exact, percent, plain, size
from stagewatch.model import LiveStage, Stage
from stagewatch.tree import OPEN


def stage_table(
    stages: Sequence[Stage], still_open: Sequence[LiveStage], now: int
) -> RenderableType:
    """One line per stage, then one per name of those that are open, with their figures so far.

    A column in which no stage has anything to say is left out.
    """
    rows = [_ended(stage) for stage in stages] + _open_stages(still_open, now)
    columns = [column for column, says in _COLUMNS if any(map(says, rows))]
    return Rows(tuple(columns), tuple(rows), _style)


def _style(row: _Row) -> str:
    return "red" if row.stage.failed else "cyan" if row.still_open else ""


def throughput(stage: Stage) -> float | None:
    """Records per second."""
    return measures.throughput(stage.records_in, stage.records_out, stage.seconds)


def error_ratio(stage: Stage) -> float:
    """Between 0 and 1."""
    return measures.error_ratio(stage.records_out, stage.records_rejected, failed=stage.failed > 0)


class _Row(Struct, frozen=True, kw_only=True):
    """One line of the table of stages."""

    stage: Stage
    throughput: float | None
    error_ratio: float
    still_open: int = 0
    """So many calls that have not ended."""


def _ended(stage: Stage) -> _Row:
    return _Row(stage=stage, throughput=throughput(stage), error_ratio=error_ratio(stage))


def _open_stages(stages: Sequence[LiveStage], now: int) -> list[_Row]:
    """One row per name, in the order in which they were begun."""
    by_name: dict[str, list[LiveStage]] = {}
    for stage in stages:
        by_name.setdefault(stage.name, []).append(stage)
    return [_open(name, stages, now) for name, stages in by_name.items()]


def _open(name: str, stages: Sequence[LiveStage], now: int) -> _Row:
    start = min(stage.start for stage in stages)
    rejected = sum(stage.records_rejected for stage in stages)
    out = _known_sum(stage.records_out for stage in stages)
    by_process: dict[int, float] = {}  # two threads of one process have the same CPU
    for stage in stages:
        if stage.cpu_seconds is not None:
            by_process[stage.pid] = max(by_process.get(stage.pid, 0.0), stage.cpu_seconds)
    so_far = Stage(
        name=name,
        calls=0,
        start=start,
        seconds=max(0, now - start) / SECOND,
        records_in=_known_sum(stage.records_in for stage in stages),
        records_out=out,
        records_rejected=rejected,
        cpu_seconds=_known_sum(by_process.values()),
        memory_peak=max((stage.memory_peak or 0 for stage in stages), default=0) or None,
    )
    return _Row(
        stage=so_far,
        throughput=_known_sum(stage.throughput for stage in stages),
        error_ratio=measures.error_ratio(out, rejected, failed=False),
        still_open=len(stages),
    )


_Number = TypeVar("_Number", int, float)


def _known_sum(values: Iterable[_Number | None]) -> _Number | None:
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def _name(row: _Row) -> str:
    return plain(row.stage.name) + (OPEN if row.still_open else "")


def _calls(row: _Row) -> str:
    return f"{count(row.still_open)} open" if row.still_open else count(row.stage.calls)


def _cpu(seconds: float | None) -> str:
    return duration(seconds) if seconds else NOTHING


def _bytes(amount: int) -> str:
    return size(amount) if amount else NOTHING


def _figures(head: str, importance: int, text: Callable[[_Row], str]) -> Column:
    return Column(head=head, text=text, importance=importance, is_right=True)


# Each with whether a stage has anything to say in it.
_COLUMNS: Final[tuple[tuple[Column, Callable[[_Row], object]], ...]] = (
    (Column(head="stage", text=_name, importance=0, narrowest=8), lambda row: True),
    (_figures("calls", 7, _calls), lambda row: True),
    (_figures("took", 1, lambda row: duration(row.stage.seconds)), lambda row: True),
    (
        _figures("in", 3, lambda row: exact(row.stage.records_in)),
        lambda row: row.stage.records_in is not None,
    ),
    (
        _figures("out", 4, lambda row: exact(row.stage.records_out)),
        lambda row: row.stage.records_out is not None,
    ),
    (
        _figures("rejected", 5, lambda row: exact(row.stage.records_rejected)),
        lambda row: row.stage.records_rejected,
    ),
    (_figures("rec/s", 8, lambda row: count(row.throughput)), lambda row: row.throughput),
    (_figures("errors", 6, lambda row: percent(row.error_ratio)), lambda row: row.error_ratio),
    (
        _figures("retries", 11, lambda row: count(row.stage.retries)),
        lambda row: row.stage.retries,
    ),
    (
        _figures("bytes in", 12, lambda row: _bytes(row.stage.bytes_in)),
        lambda row: row.stage.bytes_in,
    ),
    (
        _figures("bytes out", 13, lambda row: _bytes(row.stage.bytes_out)),
        lambda row: row.stage.bytes_out,
    ),
    (
        _figures("CPU", 10, lambda row: _cpu(row.stage.cpu_seconds)),
        lambda row: row.stage.cpu_seconds,
    ),
    (
        _figures("peak", 9, lambda row: _bytes(row.stage.memory_peak or 0)),
        lambda row: row.stage.memory_peak,
    ),
    (
        Column(
            head="failed",
            text=lambda row: plain(row.stage.error_type or ""),
            importance=2,
            narrowest=10,
        ),
        lambda row: row.stage.error_type,
    ),
)
