"""What `stagewatch report` shows: rows of the history in, rich renderables or plain JSON out.

Nothing here reads a file or a clock. Times are nanoseconds since the epoch, durations seconds.

Keys of ``stagewatch report --json``: ``runs``, newest first, each as `run_json` gives it, and
``pipelines``, each as `summary_json` gives it, and ``advice``, how many pieces of it there are by
run id. Keys are only ever added. Where a function takes
``lives``, these are the active runs' live states by run id, as far as there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from stagewatch.columns import Column, Parts, cells, fitting
from stagewatch.figures import (
    DEAD,
    NOTHING,
    SECOND,
    STYLES,
    Cell,
    aligned,
    at,
    bar,
    count,
    duration,
    error_ratio_of,
    iso,
    lateness,
    lateness_of,
    outcome_word,
    percent,
    plain,
    seconds_of,
    throughput_of,
)
from stagewatch.in_flight import DOING_STYLES, doing_word, in_one_line, live_json
from stagewatch.model import Doing, Live, Outcome, Run

_NARROWEST_BAR: Final = 5
_WIDEST_BAR: Final = 20

# --- the list of runs -------------------------------------------------------------------------


class Summary(Struct, frozen=True, kw_only=True):
    """One pipeline over the runs that are shown."""

    pipeline: str
    runs: int
    outcomes: dict[str, int]
    """Outcome, ``active`` or ``dead`` (not taken in yet), to number of runs."""
    late: int
    usual_duration: float | None
    """Seconds: the median the history knows; None of too few runs."""
    last_success: int | None
    """End of the newest success among the runs shown."""


def summarise(
    runs: Sequence[Run],
    now: int,
    usual: Mapping[str, float | None],
    lives: Mapping[str, Live] = {},
) -> tuple[Summary, ...]:
    """One `Summary` per pipeline, in order of appearance in `runs` (newest first).

    `usual` gives each pipeline's usual duration in seconds.
    """
    by_pipeline: dict[str, list[Run]] = {}
    for run in runs:
        by_pipeline.setdefault(run.pipeline, []).append(run)
    summaries = []
    for pipeline, shown in by_pipeline.items():
        outcomes: dict[str, int] = {}
        for run in shown:
            word = DEAD if _is_dead(lives.get(run.run_id)) else outcome_word(run)
            outcomes[word] = outcomes.get(word, 0) + 1
        successes = [run.end for run in shown if run.outcome is Outcome.SUCCESS and run.end]
        summaries.append(
            Summary(
                pipeline=pipeline,
                runs=len(shown),
                outcomes=outcomes,
                late=sum(lateness_of(run, now) > 0 for run in shown),
                usual_duration=usual.get(pipeline),
                last_success=max(successes, default=None),
            )
        )
    return tuple(summaries)


def _is_dead(live: Live | None) -> bool:
    return live is not None and live.doing is Doing.DEAD


class _Row(Struct, frozen=True):
    run: Run
    now: int
    word: str
    """What it is doing, or how it ended."""
    share: float
    """Of the longest run's duration."""
    advice: int
    """Pieces."""


class RunsTable(Struct, frozen=True):
    """The last runs as a table: where the console is narrow it loses columns, never a figure."""

    runs: tuple[Run, ...]
    now: int
    lives: Mapping[str, Live] = {}
    advised: Mapping[str, int] = {}
    """Pieces of advice by run id."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max((seconds_of(run, self.now) for run in self.runs), default=0.0)
        rows = [self._row(run, longest) for run in self.runs]
        columns = fitting(_COLUMNS, rows, options.max_width)
        bold, red = console.get_style("bold"), console.get_style("red")
        yield from aligned(
            [Cell(column.head, width, bold, column.is_right) for column, width in columns]
        )
        for row in rows:
            outcome = console.get_style(_WORD_STYLES[row.word])
            styles = {"outcome": outcome, _BAR: outcome, "late": red}
            yield from aligned(cells(columns, row, styles))

    def _row(self, run: Run, longest: float) -> _Row:
        word = outcome_word(run) if run.outcome else doing_word(self.lives.get(run.run_id))
        share = seconds_of(run, self.now) / longest if longest else 0.0
        return _Row(run, self.now, word, share, self.advised.get(run.run_id, 0))


def _started(row: _Row) -> str:
    same_year = at(row.run.start).year == at(row.now).year
    return f"{at(row.run.start).astimezone():{'%m-%d %H:%M' if same_year else '%Y-%m-%d'}}"


def _late(row: _Row) -> str:
    late = lateness_of(row.run, row.now)
    return lateness(late) if late > 0 else NOTHING


def _errors(row: _Row) -> str:
    """What failed without a rejected record has no ratio to tell: 0 % would read as "all well"."""
    ratio = error_ratio_of(row.run)
    return percent(ratio) if ratio or row.word == Outcome.SUCCESS else NOTHING


_BAR: Final = ""
_WORD_STYLES: Final = {**STYLES, **DOING_STYLES}
_COLUMNS: Final = (
    Column(head="started", text=_started, importance=3),
    Column(head="run", text=lambda row: row.run.run_id[:8], importance=5),
    Column(head="pipeline", text=lambda row: plain(row.run.pipeline), importance=0, narrowest=8),
    Column(head="outcome", text=lambda row: row.word, importance=1, narrowest=8),
    Column(
        head="took",
        text=lambda row: duration(seconds_of(row.run, row.now)),
        importance=2,
        is_right=True,
    ),
    Column(
        head=_BAR,
        text=lambda row: bar(row.share, _WIDEST_BAR),
        importance=10,
        narrowest=_NARROWEST_BAR,
        cut=lambda row, width: bar(row.share, width),
    ),
    Column(head="late", text=_late, importance=4, is_right=True),
    Column(head="in", text=lambda row: count(row.run.records_in), importance=6, is_right=True),
    Column(head="out", text=lambda row: count(row.run.records_out), importance=7, is_right=True),
    Column(
        head="rec/s",
        text=lambda row: count(throughput_of(row.run, row.now)),
        importance=9,
        is_right=True,
    ),
    Column(head="err", text=_errors, importance=8, is_right=True),
    Column(
        head="advice",
        text=lambda row: str(row.advice or ""),
        importance=11,
        is_right=True,
    ),
)


def report(
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    now: int,
    lives: Mapping[str, Live],
    advised: Mapping[str, int] = {},
) -> RenderableType:
    """The table of runs, newest first, a line for each one under way and each pipeline.

    *advised*: pieces of advice by run id.
    """
    under_way = [
        Parts(in_one_line(run, lives[run.run_id], now)) for run in runs if run.run_id in lives
    ]
    lines = [Parts(_summary_line(summary, now)) for summary in summaries]
    gap = [Text()] if under_way else []
    return Group(RunsTable(tuple(runs), now, lives, advised), *gap, *under_way, Text(), *lines)


def _summary_line(summary: Summary, now: int) -> Text:
    line = Text()
    line.append(plain(summary.pipeline), "bold")
    line.append(f": {summary.runs} {'run' if summary.runs == 1 else 'runs'}")
    for word in STYLES:
        if word in summary.outcomes:
            line.append(", ")
            line.append(f"{summary.outcomes[word]} {word}", STYLES[word])
    if summary.late:
        line.append(", ")
        line.append(f"{summary.late} late", "red")
    if summary.usual_duration is not None:
        line.append(f" · usually {duration(summary.usual_duration)}")
    if summary.last_success is not None:
        line.append(f" · last success {duration((now - summary.last_success) / SECOND)} ago")
    return line


# --- JSON -------------------------------------------------------------------------------------


def run_json(run: Run, now: int, live: Live | None = None) -> dict[str, Any]:
    """A run under documented keys: times ISO 8601 in UTC, durations in seconds, sizes in bytes.

    ``duration`` and ``lateness`` of an active run are those so far; ``outcome`` and ``end`` are
    null until it ends, ``live`` (`stagewatch.in_flight.live_json`) is null from then on.
    ``last_stage`` and ``last_operation`` are where its process died.
    """
    return {
        "run_id": run.run_id,
        "trace_id": run.trace_id.hex(),
        "pipeline": run.pipeline,
        "active": run.end is None and not _is_dead(live),
        "outcome": run.outcome.value if run.outcome else None,
        "start": iso(run.start),
        "end": iso(run.end),
        "duration": seconds_of(run, now),
        "scheduled": iso(run.scheduled),
        "attempt": run.attempt,
        "deadline": iso(run.deadline),
        "lateness": lateness_of(run, now),
        "records_in": run.records_in,
        "records_out": run.records_out,
        "records_rejected": run.records_rejected,
        "throughput": throughput_of(run, now),
        "error_ratio": error_ratio_of(run) if run.outcome else None,
        "error_type": run.error_type,
        "error_message": run.error_message,
        "error_place": run.error_place,
        "cpu_seconds": run.cpu_seconds,
        "memory_peak": run.memory_peak,
        "host": run.host,
        "pid": run.pid,
        "wait_status": run.wait_status,
        "parent_run_id": run.parent_run_id,
        "last_stage": run.last_stage,
        "last_operation": run.last_operation,
        "live": live_json(live, now) if live and run.end is None else None,
    }


def summary_json(summary: Summary) -> dict[str, Any]:
    """``pipeline``, ``runs``, ``outcomes``, ``late``, ``usual_duration``, ``last_success``."""
    return {
        "pipeline": summary.pipeline,
        "runs": summary.runs,
        "outcomes": summary.outcomes,
        "late": summary.late,
        "usual_duration": summary.usual_duration,
        "last_success": iso(summary.last_success),
    }


def report_json(
    runs: Sequence[Run],
    summaries: Sequence[Summary],
    now: int,
    lives: Mapping[str, Live],
    advised: Mapping[str, int] = {},
) -> dict[str, Any]:
    return {
        "runs": [run_json(run, now, lives.get(run.run_id)) for run in runs],
        "pipelines": [summary_json(summary) for summary in summaries],
        "advice": {run.run_id: advised[run.run_id] for run in runs if run.run_id in advised},
    }
