"""What `stagewatch watch` shows: all runs under way, trouble first, and those that just ended.

Keys of ``stagewatch watch --json``, one document for every look: ``at``; ``complete``, false where
a recorder did not answer, so that things may be older than that; ``runs``, those under way in the
order of the table, and ``ended``, the last one first, each as in ``report --json``. Keys are only
ever added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

from stagewatch import reading
from stagewatch.columns import Column, cells, fitting
from stagewatch.figures import (
    SECOND,
    STYLES,
    Cell,
    aligned,
    bar,
    clock,
    count,
    duration,
    iso,
    lateness,
    lateness_of,
    plain,
    seconds_of,
    size,
)
from stagewatch.history import History
from stagewatch.in_flight import (
    DOING_STYLES,
    doing_word,
    is_stale,
    place,
    remaining,
    troubled,
    where,
    whole_percent,
)
from stagewatch.model import Doing, Live, Run
from stagewatch.report import run_json

ENDED_SECONDS: Final = 300.0
"""So long a run that ended stays in view."""
_MOST_ENDED: Final = 10
_PROGRESS_BAR: Final = 8

# --- what is seen -------------------------------------------------------------------------------


class Look(Struct, frozen=True, kw_only=True):
    """All there was to see at one moment."""

    now: int
    active: tuple[Run, ...]
    """Dead ones that were not taken in yet, then late ones, then stuck ones, then those with a
    late or slow stage, then the others; the oldest first among each."""
    lives: dict[str, Live]
    """By run id; of a very young run there is none."""
    ended: tuple[Run, ...]
    troubles: dict[str, dict[str, str]] = {}
    """By run id, of those that have a late or slow stage: see `stagewatch.in_flight.troubled`."""
    is_complete: bool = True
    """Whether every recorder has answered."""


def look(history: History, now: int, pipeline: str | None, *, is_complete: bool = True) -> Look:
    """What the history knows at *now* of all pipelines, or of one."""
    active = [run for run in history.active() if pipeline in (None, run.pipeline)]
    ended = history.ended(now - round(ENDED_SECONDS * SECOND), limit=100)
    lives = reading.lives(history, active, now)

    found = {
        run_id: troubled(live, history.notices(run_id))
        for run_id, live in lives.items()
        if live.stages
    }
    troubles = {run_id: stages for run_id, stages in found.items() if stages}

    def trouble(run: Run) -> tuple[bool, bool, bool, bool, int]:
        live = lives.get(run.run_id)
        is_dead, is_stuck = _is(Doing.DEAD, live), _is(Doing.STUCK, live)
        is_late = lateness_of(run, now) > 0
        return not is_dead, not is_late, not is_stuck, run.run_id not in troubles, run.start

    return Look(
        now=now,
        active=tuple(sorted(active, key=trouble)),
        lives=lives,
        troubles=troubles,
        ended=tuple(run for run in ended if pipeline in (None, run.pipeline))[:_MOST_ENDED],
        is_complete=is_complete,
    )


def look_json(seen: Look) -> dict[str, Any]:
    """See the module."""
    return {
        "at": iso(seen.now),
        "complete": seen.is_complete,
        "runs": [run_json(run, seen.now, seen.lives.get(run.run_id)) for run in seen.active],
        "ended": [run_json(run, seen.now) for run in seen.ended],
    }


def _is(doing: Doing, live: Live | None) -> bool:
    return live is not None and live.doing is doing


# --- the table ----------------------------------------------------------------------------------


class _Row(Struct, frozen=True):
    run: Run
    live: Live | None
    now: int
    troubles: Mapping[str, str] = {}


def _doing(row: _Row) -> str:
    return row.run.outcome.value if row.run.outcome else doing_word(row.live)


def _stage(row: _Row) -> str:
    if row.live:
        return " · ".join(filter(None, where(row.live, row.troubles)))
    words = (plain(row.run.error_type or ""), place(row.run.last_stage, row.run.last_operation))
    return " ".join(filter(None, words))


def _progress(row: _Row) -> str:
    if row.run.end is not None:
        return f"{duration((row.now - row.run.end) / SECOND)} ago"
    if row.live is None or row.live.progress is None:
        return ""
    return f"{bar(row.live.progress, _PROGRESS_BAR)} {whole_percent(row.live.progress):>5}"


def _to_go(row: _Row) -> str:
    seconds = remaining(row.live, row.now) if row.live else None
    return "" if seconds is None else duration(seconds)


def _records(row: _Row) -> str:
    run = row.run
    known = run.records_in if run.records_out is None else run.records_out
    return "" if known is None else count(known)


def _rate(row: _Row) -> str:
    rate = row.live.throughput if row.live else None
    return "" if rate is None else count(rate)


def _cores(row: _Row) -> str:
    share = row.live.cpu_share if row.live else None
    return "" if share is None else f"{share:.1f}"


def _memory(row: _Row) -> str:
    used = row.live.memory if row.live else row.run.memory_peak
    return "" if used is None else size(used)


def _late(row: _Row) -> str:
    late = lateness_of(row.run, row.now)
    return lateness(late) if late > 0 else ""


def _words(
    head: str, importance: int, narrowest: int, widest: int, text: Callable[[_Row], str]
) -> Column:
    return Column(head=head, text=text, importance=importance, narrowest=narrowest, widest=widest)


def _figures(head: str, importance: int, width: int, text: Callable[[_Row], str]) -> Column:
    return Column(head=head, text=text, importance=importance, width=width, is_right=True)


_COLUMNS: Final = (
    _words("pipeline", 0, 8, 32, lambda row: plain(row.run.pipeline)),
    Column(head="run", text=lambda row: row.run.run_id[:8], importance=8),
    _words("doing", 1, 7, 12, _doing),
    Column(head="stage", text=_stage, importance=4, narrowest=16, width=40),
    _figures("took", 2, 6, lambda row: duration(seconds_of(row.run, row.now))),
    Column(head="progress", text=_progress, importance=5, width=14),
    _figures("to go", 6, 6, _to_go),
    _figures("records", 11, 7, _records),
    _figures("rec/s", 7, 5, _rate),
    _figures("cores", 9, 5, _cores),
    _figures("memory", 10, 6, _memory),
    _figures("late", 3, 7, _late),
)


class LiveTable(Struct, frozen=True):
    """One look as a table: where it is narrow it loses columns, where it is low rows."""

    seen: Look
    hint: str = ""
    """How to leave; empty where it is printed once."""
    height: int | None = None
    """Lines there are room for; None: as many as it takes."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        seen = self.seen
        yield from self._title(console, options.max_width)
        active = [
            _Row(run, seen.lives.get(run.run_id), seen.now, seen.troubles.get(run.run_id, {}))
            for run in seen.active
        ]
        ended = [_Row(run, None, seen.now) for run in seen.ended]
        if not active:
            yield from _said(
                "",
                "Nothing is running. Put `opentelemetry-instrument` in front of your job:",
                "  opentelemetry-instrument python etl.py",
            )
        shown, more = active, 0
        if self.height is not None:
            room = self.height - 3
            ended = ended[: max(room - max(len(active), 3) - 2, 0)]
            room -= len(ended) + 2 if ended else 0
            if len(active) > room:
                shown, more = active[: max(room - 1, 0)], len(active) - max(room - 1, 0)
        columns = fitting(_COLUMNS, [*shown, *ended], options.max_width)
        bold, dim = console.get_style("bold"), console.get_style("dim")
        if shown:
            yield from aligned(
                [Cell(column.head, width, bold, column.is_right) for column, width in columns]
            )
        for row in shown:
            yield from aligned(_cells(row, columns, console))
        if more:
            yield from _said(f"… {more} more", style=dim)
        if ended:
            yield from _said("", "just ended", style=dim)
        for row in ended:
            outcome = console.get_style(STYLES[_doing(row)]) + dim
            yield from aligned(cells(columns, row, {"doing": outcome}, dim))

    def _title(self, console: Console, width: int) -> Iterator[Segment]:
        seen = self.seen
        late = sum(lateness_of(run, seen.now) > 0 for run in seen.active)
        stuck, dead = (
            sum(_is(doing, live) for live in seen.lives.values())
            for doing in (Doing.STUCK, Doing.DEAD)
        )
        parts = [Segment(f"{len(seen.active) - dead} under way", console.get_style("bold"))]
        if late:
            parts.append(Segment(f", {late} late", console.get_style("red")))
        if stuck:
            parts.append(Segment(f", {stuck} stuck", console.get_style("bold red")))
        if seen.troubles:
            words = f", {len(seen.troubles)} with a late or slow stage"
            parts.append(Segment(words, console.get_style("red")))
        if dead:
            parts.append(Segment(f", {dead} dead, not taken in yet", console.get_style("bold red")))
        if not seen.is_complete:
            warning = " · a recorder does not answer, this may be old"
            parts.append(Segment(warning, console.get_style("yellow")))
        right = "  ".join(filter(None, (self.hint, clock(seen.now, seen.now))))
        gap = width - sum(cell_len(part.text) for part in parts) - cell_len(right)
        if gap >= 2:
            parts.append(Segment(" " * gap + right, console.get_style("dim")))
        yield from Segment.adjust_line_length(parts, width, pad=False)
        yield Segment.line()


def _said(*lines: str, style: Style | None = None) -> Iterator[Segment]:
    for line in lines:
        yield Segment(line, style)
        yield Segment.line()


def _cells(row: _Row, columns: Sequence[tuple[Column, int]], console: Console) -> list[Cell]:
    doing = console.get_style(DOING_STYLES[doing_word(row.live)])
    styles = {"doing": doing, "progress": doing, "late": console.get_style("red")}
    if row.troubles:
        styles["stage"] = console.get_style("red")
    # What no recorder looks at any more is an old truth.
    other = console.get_style("dim") if row.live and is_stale(row.live, row.now) else None
    return cells(columns, row, styles, other)
