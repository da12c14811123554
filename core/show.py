"""What `stagewatch show` shows: one run with its span tree, stages, datasets and error.

Pure functions over rows of the history. Keys of ``stagewatch show --json``: ``run`` (as in
``report --json``), ``stages``, ``operations``, ``datasets``, ``spans`` (all of them, by start).
Keys are only ever added.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stagewatch import measures
from stagewatch.figures import (
    NOTHING,
    SECOND,
    at,
    count,
    duration,
    exact,
    iso,
    lateness_of,
    outcome_text,
    percent,
    plain,
    seconds_of,
    size,
    throughput_of,
)
from stagewatch.model import Dataset, Operation, Outcome, Run, Stage
from stagewatch.report import run_json
from stagewatch.tree import MOST_SPANS, Span, TreeView, took, tree

_MOST_DATASETS: Final = 40


def show(
    run: Run,
    spans: Sequence[Span],
    stages: Sequence[Stage],
    operations: Sequence[Operation],
    datasets: Sequence[Dataset],
    *,
    now: int,
    everything: bool = False,
    declared: Collection[str] = (),
) -> RenderableType:
    """The whole picture of one run; *declared*: names of the stages its pipeline should have."""
    lines = tree(run, spans, stages, operations, now=now, most=None if everything else MOST_SPANS)
    end = run.end if run.end is not None else now
    latest = max([end, *(span.end for span in spans)])
    parts: list[RenderableType] = [_header(run, now), Text()]
    parts.append(TreeView(tuple(lines), run.start, latest))
    if stages:
        parts += [Text(), _stages(stages)]
    missing = sorted(set(declared) - {stage.name for stage in stages})
    if missing and run.outcome == Outcome.SUCCESS:
        names = ", ".join(map(plain, missing))
        parts += [Text(), Text(f"declared, but never seen in this run: {names}", "yellow")]
    if any(operation.errors for operation in operations):
        parts += [Text(), _failures(operations)]
    if datasets:
        parts += [Text(), _datasets(datasets, everything=everything)]
    if run.error_place or run.error_message:
        parts += [Text(), _error(run)]
    return Group(*parts)


def _header(run: Run, now: int) -> RenderableType:
    title = Text(plain(run.pipeline), "bold")
    title.append("  ")
    title.append_text(outcome_text(run))
    if run.error_type and run.error_type != run.outcome:
        title.append(f" ({plain(run.error_type)})")
    if run.attempt > 1:
        title.append(f"  attempt {run.attempt}")
    took = duration(seconds_of(run, now)) + (" so far" if run.end is None else "")
    facts = [
        ("run", run.run_id),
        ("trace", run.trace_id.hex()),
        ("started", f"{at(run.start).astimezone():%Y-%m-%d %H:%M:%S %z}, took {took}"),
    ]
    if run.parent_run_id:
        facts.append(("part of", f"run {run.parent_run_id}"))
    if run.scheduled is not None:
        facts.append(("scheduled", f"{at(run.scheduled).astimezone():%Y-%m-%d %H:%M:%S %z}"))
    if run.deadline is not None:
        facts.append(("deadline", _deadline(run, run.deadline, now)))
    facts.append(("records", _records(run, now)))
    if usage := _usage(run, now):
        facts.append(("used", usage))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in facts:
        late = name == "deadline" and lateness_of(run, now) > 0
        grid.add_row(name, Text(value, "red" if late else ""))
    return Group(title, grid)


def _deadline(run: Run, deadline: int, now: int) -> str:
    late = lateness_of(run, now)
    if late > 0:
        distance = f"late by {duration(late)}"
    elif run.end is None:
        distance = f"{duration((deadline - now) / SECOND)} left"
    else:
        distance = f"{duration((deadline - run.end) / SECOND)} to spare"
    return f"{at(deadline).astimezone():%Y-%m-%d %H:%M:%S %z}, {distance}"


def _records(run: Run, now: int) -> str:
    words = f"{exact(run.records_in)} in, {exact(run.records_out)} out"
    if run.records_rejected:
        words += f", {run.records_rejected:,} rejected"
    rate = throughput_of(run, now)
    return words if rate is None else f"{words}, {count(rate)} records/s"


def _usage(run: Run, now: int) -> str:
    words = []
    if run.cpu_seconds is not None:
        seconds = seconds_of(run, now)
        share = f" ({round(100 * run.cpu_seconds / seconds)} %)" if seconds else ""
        words.append(f"{duration(run.cpu_seconds)} CPU{share}")
    if run.memory_peak:
        words.append(f"{size(run.memory_peak)} memory at its peak")
    return ", ".join(words)


_Column = tuple[str, Callable[[Stage], str], Callable[[Stage], object]]


def _throughput(stage: Stage) -> float | None:
    return measures.throughput(stage.records_in, stage.records_out, stage.seconds)


def _error_ratio(stage: Stage) -> float:
    return measures.error_ratio(stage.records_out, stage.records_rejected, failed=stage.failed > 0)


def _bytes(moved: int) -> str:
    return size(moved) if moved else NOTHING


# Head, what stands in the cell, and whether the stage has anything to say in this column.
_COLUMNS: Final[tuple[_Column, ...]] = (
    ("stage", lambda stage: plain(stage.name), lambda stage: True),
    ("calls", lambda stage: count(stage.calls), lambda stage: True),
    ("took", lambda stage: duration(stage.seconds), lambda stage: True),
    ("in", lambda stage: exact(stage.records_in), lambda stage: stage.records_in is not None),
    ("out", lambda stage: exact(stage.records_out), lambda stage: stage.records_out is not None),
    ("rejected", lambda stage: exact(stage.records_rejected), lambda s: s.records_rejected),
    ("rec/s", lambda stage: count(_throughput(stage)), _throughput),
    ("errors", lambda stage: percent(_error_ratio(stage)), _error_ratio),
    ("retries", lambda stage: count(stage.retries), lambda stage: stage.retries),
    ("bytes in", lambda stage: _bytes(stage.bytes_in), lambda stage: stage.bytes_in),
    ("bytes out", lambda stage: _bytes(stage.bytes_out), lambda stage: stage.bytes_out),
    (
        "CPU",
        lambda stage: duration(stage.cpu_seconds) if stage.cpu_seconds else "–",
        lambda stage: stage.cpu_seconds,
    ),
    (
        "peak",
        lambda stage: size(stage.memory_peak) if stage.memory_peak else "–",
        lambda stage: stage.memory_peak,
    ),
    ("failed", lambda stage: plain(stage.error_type or ""), lambda stage: stage.error_type),
)


def _stages(stages: Sequence[Stage]) -> RenderableType:
    """One row per stage; a column in which no stage has anything to say is left out."""
    columns = [column for column in _COLUMNS if any(column[2](stage) for stage in stages)]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for head, _, _ in columns:
        words = head in ("stage", "failed")
        table.add_column(
            head,
            justify="left" if words else "right",
            overflow="ellipsis",
            no_wrap=True,
            min_width=None if words else len(head),
        )
    for stage in stages:
        style = "red" if stage.failed else ""
        table.add_row(*(Text(cell(stage), style) for _, cell, _ in columns))
    return table


def _failures(operations: Sequence[Operation]) -> RenderableType:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("failed calls", overflow="ellipsis", no_wrap=True)
    table.add_column("calls", justify="right", no_wrap=True)
    table.add_column("stage", overflow="ellipsis", no_wrap=True)
    for operation in operations:
        for error_type, calls in operation.errors.items():
            table.add_row(
                Text(f"{plain(operation.name)}: {plain(error_type)}", "red"),
                count(calls),
                Text(plain(operation.stage)),
            )
    return table


def _datasets(datasets: Sequence[Dataset], *, everything: bool) -> RenderableType:
    shown = datasets if everything else datasets[:_MOST_DATASETS]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("dataset", overflow="fold")
    for head in ("rows", "bytes"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("stage", no_wrap=True, overflow="ellipsis")
    for dataset in shown:
        verb = "read  " if dataset.direction == "in" else "wrote "
        table.add_row(
            Text.assemble((verb, "dim"), plain(dataset.uri)),
            exact(dataset.rows),
            "" if dataset.bytes is None else size(dataset.bytes),
            Text(plain(dataset.stage)),
        )
    if len(shown) < len(datasets):
        table.add_row(Text(f"… {len(datasets) - len(shown):,} more", "dim"))
    return table


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
) -> dict[str, Any]:
    """Everything known of a run: times ISO 8601 in UTC, durations in seconds, sizes in bytes."""
    return {
        "run": run_json(run, now),
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
                "throughput": _throughput(stage),
                "error_ratio": _error_ratio(stage),
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
    }
