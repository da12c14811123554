"""What `stagewatch show` shows: one run with its span tree, stages, datasets and error.

Pure functions over rows of the history. Keys of ``stagewatch show --json``: ``run`` (as in
``report --json``; of a run under way with ``live``, what it is doing), ``stages``, ``operations``,
``datasets``, ``spans`` (all that have ended, by start), ``notices`` (what was said of the run while
it ran: ``at``, ``name``, ``attributes``), ``advice`` (that among them, by ``kind``, ``evidence``
and ``remedy``), ``child_runs`` (as ``run``, newest first). Keys are only ever added.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.text import Text

from stagewatch.advice_list import advice_json, advice_list, is_advice
from stagewatch.columns import Column, Parts, Rows, in_the_middle
from stagewatch.figures import (
    SECOND,
    at,
    bar,
    clock,
    count,
    duration,
    exact,
    iso,
    lateness_of,
    outcome_text,
    plain,
    seconds_of,
    size,
    throughput_of,
)
from stagewatch.in_flight import (
    doing_text,
    is_stale,
    notice_text,
    notices_json,
    place,
    remaining,
    where,
    whole_percent,
)
from stagewatch.model import Dataset, Doing, Live, Notice, Operation, Outcome, Run, Stage
from stagewatch.report import RunsTable, run_json
from stagewatch.semconv import RUN_STARTED, STACKTRACE
from stagewatch.stage_table import error_ratio, stage_table, throughput
from stagewatch.tree import MOST_SPANS, Span, TreeView, took, tree

_MOST_DATASETS: Final = 40
_MOST_CHILD_RUNS: Final = 20
_MOST_NOTICES: Final = 12
_MOST_STACK_LINES: Final = 20
_PROGRESS_WIDTH: Final = 20


def show(
    run: Run,
    spans: Sequence[Span],
    stages: Sequence[Stage],
    operations: Sequence[Operation],
    datasets: Sequence[Dataset],
    *,
    now: int,
    live: Live | None = None,
    notices: Sequence[Notice] = (),
    everything: bool = False,
    declared: Collection[str] = (),
    child_runs: Sequence[Run] = (),
    lives: Mapping[str, Live] = {},
) -> RenderableType:
    """The whole picture of one run; *declared*: names of the stages its pipeline should have.

    *live*: of a run under way, as far as it was seen; *notices*: what was said while it ran;
    *lives*: `live` of its child runs, by run id.
    """
    live = live if run.end is None else None
    if live and live.doing is Doing.DEAD:
        now = live.at  # nobody knows more
    most = None if everything else MOST_SPANS
    lines = tree(run, spans, stages, operations, now=now, live=live, most=most)
    end = run.end if run.end is not None else now
    latest = max([end, *(span.end for span in spans)])
    parts: list[RenderableType] = [_header(run, live, now)]
    advice = [notice for notice in notices if is_advice(notice)]
    if said := [one for one in notices if one.name != RUN_STARTED and not is_advice(one)]:
        parts += [Text(), _notices(said, now, everything=everything)]
    parts += [Text(), TreeView(tuple(lines), run.start, latest)]
    if stages or (live and live.stages):
        parts += [Text(), stage_table(stages, live.stages if live else (), now)]
    if advice:
        parts += [Text(), advice_list(advice, everything=everything)]
    missing = sorted(set(declared) - {stage.name for stage in stages})
    if missing and run.outcome == Outcome.SUCCESS:
        names = ", ".join(map(plain, missing))
        parts += [Text(), Text(f"declared, but never seen in this run: {names}", "yellow")]
    if any(operation.errors for operation in operations):
        parts += [Text(), _failures(operations)]
    if datasets:
        parts += [Text(), _datasets(datasets, everything=everything)]
    if child_runs:
        parts += [Text(), _child_runs(child_runs, now, lives, everything=everything)]
    if run.error_place or run.error_message:
        parts += [Text(), _error(run)]
    return Group(*parts)


def _header(run: Run, live: Live | None, now: int) -> RenderableType:
    title = Text(plain(run.pipeline), "bold")
    title.append("  ")
    title.append_text(outcome_text(run) if run.outcome else doing_text(live, now))
    if run.error_type and run.error_type != run.outcome:
        title.append(f" ({plain(run.error_type)})")
    if run.attempt > 1:
        title.append(f"  attempt {run.attempt}")
    is_going_on = run.end is None and not (live and live.doing is Doing.DEAD)
    took = duration(seconds_of(run, now)) + (" so far" if is_going_on else "")
    facts: list[tuple[str, str | Text]] = [
        ("run", run.run_id),
        ("trace", run.trace_id.hex()),
        ("started", f"{at(run.start).astimezone():%Y-%m-%d %H:%M:%S %z}, took {took}"),
    ]
    if run.parent_run_id:
        facts.append(("part of", f"run {run.parent_run_id}"))
    if run.scheduled is not None:
        facts.append(("scheduled", f"{at(run.scheduled).astimezone():%Y-%m-%d %H:%M:%S %z}"))
    if run.deadline is not None:
        facts.append(("deadline", _deadline(run, run.deadline, live, now)))
    if words := place(run.last_stage, run.last_operation):
        facts.append(("died", Text(f"{plain(run.error_type or 'unknown')} {words}", "red")))
    if live:
        facts += _in_flight(live, now)
    facts.append(("records", _records(run, live, now)))
    if usage := _usage_so_far(live) if live else _usage(run, now):
        facts.append(("used", usage))
    width = max(len(name) for name, _ in facts) + 2
    return Group(
        title,
        *(
            Parts(value if isinstance(value, Text) else Text(value), Text(f"{name:{width}}", "dim"))
            for name, value in facts
        ),
    )


def _deadline(run: Run, deadline: int, live: Live | None, now: int) -> Text:
    text = Text(f"{at(deadline).astimezone():%Y-%m-%d %H:%M:%S %z}, ")
    late = lateness_of(run, now)
    if late > 0:
        text.append(f"late by {duration(late)}")
        text.stylize("red")
    elif run.end is not None:
        text.append(f"{duration((deadline - run.end) / SECOND)} to spare")
    else:
        text.append(f"{duration((deadline - now) / SECOND)} left")
        if live and live.estimated_end is not None and live.estimated_end > deadline:
            excess = duration((live.estimated_end - deadline) / SECOND)
            text.append(f", likely late by {excess}", "yellow")
    return text


def _in_flight(live: Live, now: int) -> list[tuple[str, str | Text]]:
    facts: list[tuple[str, str | Text]] = []
    if words := place(*where(live)):
        facts.append(("doing", words.removeprefix("in ")))
    how_far = Text()
    if live.progress is not None:
        how_far.append(bar(live.progress, _PROGRESS_WIDTH), "cyan")
        how_far.append(f" {whole_percent(live.progress)}")
    if live.estimated_end is not None and (seconds := remaining(live, now)) is not None:
        how_far.append(", " if how_far else "")
        how_far.append(f"about {duration(seconds)} to go, until {clock(live.estimated_end, now)}")
    if how_far:
        facts.append(("progress", how_far))
    if is_stale(live, now):
        ago = duration((now - live.at) / SECOND)
        facts.append(("seen", Text(f"{ago} ago: no recorder watches it now", "yellow")))
    return facts


def _records(run: Run, live: Live | None, now: int) -> str:
    words = f"{exact(run.records_in)} in, {exact(run.records_out)} out"
    if run.records_rejected:
        words += f", {run.records_rejected:,} rejected"
    if live and live.throughput is not None:
        return f"{words}, {count(live.throughput)} records/s in the last minute"
    rate = throughput_of(run, now)
    return words if rate is None else f"{words}, {count(rate)} records/s"


def _usage(run: Run, now: int) -> str:
    words = []
    if run.cpu_seconds is not None:
        seconds = seconds_of(run, now)
        share = f" ({round(100 * run.cpu_seconds / seconds)} % of a core)" if seconds else ""
        words.append(f"{duration(run.cpu_seconds)} CPU{share}")
    if run.memory_peak:
        words.append(f"{size(run.memory_peak)} memory at its peak")
    return ", ".join(words)


def _usage_so_far(live: Live) -> str:
    words = []
    if live.cpu_share is not None:
        words.append(f"{live.cpu_share:.1f} cores now")
    if live.cpu_seconds is not None:
        words.append(f"{duration(live.cpu_seconds)} CPU")
    if live.memory is not None:
        peak = f" (peak {size(live.memory_peak)})" if live.memory_peak else ""
        words.append(f"{size(live.memory)} memory{peak}")
    if live.read_bytes:
        words.append(f"{size(live.read_bytes)} read")
    if live.written_bytes:
        words.append(f"{size(live.written_bytes)} written")
    if live.processes > 1:
        words.append(f"{live.processes} processes")
    if live.threads is not None and live.threads > live.processes:
        words.append(f"{live.threads} threads")
    return ", ".join(words)


def _notices(notices: Sequence[Notice], now: int, *, everything: bool) -> RenderableType:
    """The last ones, oldest first; the Python stack of a stuck run under its notice."""
    shown = notices if everything else notices[-_MOST_NOTICES:]
    lines: list[RenderableType] = []
    if shown != notices:
        lines.append(Text(f"… {len(notices) - len(shown):,} before", "dim"))
    for notice in shown:
        lines.append(Parts(notice_text(notice), Text(f"{clock(notice.at, now)}  ", "dim")))
        stack = str(notice.attributes.get(STACKTRACE) or "").splitlines()
        kept = stack if everything else stack[:_MOST_STACK_LINES]
        lines += [Text(f"  {plain(line)}", "dim") for line in kept]
        if len(kept) < len(stack):
            lines.append(Text(f"  … {len(stack) - len(kept):,} more", "dim"))
    return Group(*lines)


class _Failure(Struct, frozen=True):
    what: str
    calls: int
    stage: str


_FAILURES: Final = (
    Column(head="failed calls", text=lambda row: row.what, importance=0, narrowest=24),
    Column(head="calls", text=lambda row: count(row.calls), importance=1, is_right=True),
    Column(head="stage", text=lambda row: row.stage, importance=2, narrowest=8),
)


def _failures(operations: Sequence[Operation]) -> RenderableType:
    rows = tuple(
        _Failure(f"{plain(operation.name)}: {plain(error)}", calls, plain(operation.stage))
        for operation in operations
        for error, calls in operation.errors.items()
    )
    return Rows(_FAILURES, rows, lambda row: "red")


_DATASETS: Final = (
    Column(
        head="",
        text=lambda row: "read" if row.direction == "in" else "wrote",
        importance=1,
    ),
    Column(
        head="dataset",
        text=lambda row: plain(row.uri),
        importance=0,
        narrowest=32,
        cut=lambda row, width: in_the_middle(plain(row.uri), width),
    ),
    Column(head="rows", text=lambda row: exact(row.rows), importance=2, is_right=True),
    Column(
        head="bytes",
        text=lambda row: "" if row.bytes is None else size(row.bytes),
        importance=4,
        is_right=True,
    ),
    Column(head="stage", text=lambda row: plain(row.stage), importance=3, narrowest=8),
)


def _datasets(datasets: Sequence[Dataset], *, everything: bool) -> RenderableType:
    shown = datasets if everything else datasets[:_MOST_DATASETS]
    return _with_rest(Rows(_DATASETS, tuple(shown)), len(datasets) - len(shown))


def _child_runs(
    runs: Sequence[Run], now: int, lives: Mapping[str, Live], *, everything: bool
) -> RenderableType:
    shown = runs if everything else runs[:_MOST_CHILD_RUNS]
    return _with_rest(RunsTable(tuple(shown), now, lives), len(runs) - len(shown))


def _with_rest(table: RenderableType, hidden: int) -> RenderableType:
    return Group(table, Text(f"… {hidden:,} more", "dim")) if hidden else table


def _error(run: Run) -> RenderableType:
    text = Text(plain(run.error_type or ""), "bold red")
    if run.error_place:
        text.append(f" at {plain(run.error_place)}", "")
    if (run.error_message or "").strip("? "):  # redaction may have left nothing to say
        text.append("\n  " + plain(run.error_message or ""), "red")
    return text


# --- JSON -------------------------------------------------------------------------------------


def show_json(
    run: Run,
    spans: Sequence[Span],
    stages: Sequence[Stage],
    operations: Sequence[Operation],
    datasets: Sequence[Dataset],
    *,
    now: int,
    live: Live | None = None,
    notices: Sequence[Notice] = (),
    child_runs: Sequence[Run] = (),
    lives: Mapping[str, Live] = {},
) -> dict[str, Any]:
    """Everything known of a run: times ISO 8601 in UTC, durations in seconds, sizes in bytes."""
    return {
        "run": run_json(run, now, live),
        "stages": [
            {
                "name": stage.name,
                "calls": stage.calls,
                "failed": stage.failed,
                "start": iso(stage.start),
                "duration": stage.seconds,
                "records_in": stage.records_in,
                "records_out": stage.records_out,
                "records_rejected": stage.records_rejected,
                "throughput": throughput(stage),
                "error_ratio": error_ratio(stage),
                "retries": stage.retries,
                "bytes_in": stage.bytes_in,
                "bytes_out": stage.bytes_out,
                "cpu_seconds": stage.cpu_seconds,
                "memory_peak": stage.memory_peak,
                "error_type": stage.error_type,
            }
            for stage in stages
        ],
        "operations": [
            {
                "name": operation.name,
                "stage": operation.stage,
                "calls": operation.calls,
                "folded": operation.folded,
                "failed": operation.failed,
                "duration": operation.seconds,
                "rows_in": operation.rows_in,
                "rows_out": operation.rows_out,
                "errors": operation.errors,
            }
            for operation in operations
        ],
        "datasets": [
            {
                "uri": dataset.uri,
                "direction": dataset.direction,
                "stage": dataset.stage,
                "rows": dataset.rows,
                "bytes": dataset.bytes,
                "fingerprint": dataset.fingerprint,
                "newest_event": iso(dataset.newest_event),
            }
            for dataset in datasets
        ],
        "spans": [
            {
                "span_id": span.span_id.hex(),
                "parent_span_id": span.parent_span_id.hex() or None,
                "name": span.name,
                "role": span.role.value,
                "start": iso(span.start),
                "duration": took(span),
                "failed": span.failed,
                "attributes": dict(span.attributes),
            }
            for span in spans
        ],
        "notices": notices_json(notices),
        "advice": advice_json(notices),
        "child_runs": [run_json(child, now, lives.get(child.run_id)) for child in child_runs],
    }
