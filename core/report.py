"""What `stagewatch report` shows: rows of the history in, rich renderables or plain JSON out.

Nothing here reads a file or a clock. Times are nanoseconds since the epoch, durations seconds.

Keys of ``stagewatch report --json``: ``runs``, newest first, each as `run_json` gives it, and
``pipelines``, each as `summary_json` gives it. Keys are only ever added. Where a function takes
``lives``, these are the active runs' live states by run id, as far as there are any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

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

_NARROWEST_BAR: Final = 3
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


class RunsTable(Struct, frozen=True):
    """The last runs as a table that fits the console's width, 80 columns and more."""

    runs: tuple[Run, ...]
    now: int
    lives: Mapping[str, Live] = {}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        longest = max((seconds_of(run, self.now) for run in self.runs), default=0.0)
        words = [self._word(run) for run in self.runs]
        rows = [_cells(run, word, self.now) for run, word in zip(self.runs, words, strict=True)]
        widths = [max(cell_len(row[i]) for row in [_HEADS, *rows]) for i in range(len(_HEADS))]
        # One column of space after each; what is wide gives way to the width there is.
        spare = options.max_width - sum(widths) - len(widths) - _NARROWEST_BAR
        for i, narrowest in _GIVING_WAY:
            widths[i] -= (given := min(max(-spare, 0), max(widths[i] - narrowest, 0)))
            spare += given
        bar_width = min(_WIDEST_BAR, _NARROWEST_BAR + max(spare, 0))
        widths.insert(_BAR, bar_width)
        bold, red = console.get_style("bold"), console.get_style("red")
        heads = (*_HEADS[:_BAR], "", *_HEADS[_BAR:])
        yield from _line(heads, widths, dict.fromkeys(range(len(heads)), bold))
        for run, word, row in zip(self.runs, words, rows, strict=True):
            share = seconds_of(run, self.now) / longest if longest else 0.0
            outcome = console.get_style(_WORD_STYLES[word])
            styles = {_OUTCOME: outcome, _BAR: outcome}
            if lateness_of(run, self.now) > 0:
                styles[_BAR + 1] = red
            yield from _line((*row[:_BAR], bar(share, bar_width), *row[_BAR:]), widths, styles)

    def _word(self, run: Run) -> str:
        return outcome_word(run) if run.outcome else doing_word(self.lives.get(run.run_id))


def _line(
    texts: Sequence[str], widths: Sequence[int], styles: Mapping[int, Style]
) -> Iterator[Segment]:
    columns = enumerate(zip(texts, widths, strict=True))
    return aligned([Cell(text, width, styles.get(i), i >= _TOOK) for i, (text, width) in columns])


_HEADS: Final = (
    "started", "run", "pipeline", "outcome", "took", "late", "in", "out", "rec/s", "err",
)  # fmt: skip
_NAME, _OUTCOME, _TOOK, _BAR = 2, 3, 4, 5
_GIVING_WAY: Final = ((_NAME, 8), (_OUTCOME, 8), (_NAME, 5))
"""Columns and the width down to which each is cut, one after the other."""


_WORD_STYLES: Final = {**STYLES, **DOING_STYLES}


def _cells(run: Run, word: str, now: int) -> tuple[str, ...]:
    late = lateness_of(run, now)
    same_year = at(run.start).year == at(now).year
    return (
        f"{at(run.start).astimezone():{'%m-%d %H:%M' if same_year else '%Y-%m-%d'}}",
        run.run_id[:8],
        plain(run.pipeline),
        word,
        duration(seconds_of(run, now)).replace(" ", ""),
        lateness(late) if late > 0 else NOTHING,
        count(run.records_in),
        count(run.records_out),
        count(throughput_of(run, now)),
        percent(error_ratio_of(run)).replace(" ", "") if run.outcome else NOTHING,
    )


def report(
    runs: Sequence[Run], summaries: Sequence[Summary], now: int, lives: Mapping[str, Live]
) -> RenderableType:
    """The table of runs, newest first, a line for each one under way and each pipeline."""
    under_way = [in_one_line(run, lives[run.run_id], now) for run in runs if run.run_id in lives]
    lines = [_summary_line(summary, now) for summary in summaries]
    gap = [Text()] if under_way else []
    return Group(RunsTable(tuple(runs), now, lives), *gap, *under_way, Text(), *lines)


def _summary_line(summary: Summary, now: int) -> Text:
    line = Text(overflow="fold")
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
    runs: Sequence[Run], summaries: Sequence[Summary], now: int, lives: Mapping[str, Live]
) -> dict[str, Any]:
    return {
        "runs": [run_json(run, now, lives.get(run.run_id)) for run in runs],
        "pipelines": [summary_json(summary) for summary in summaries],
    }
