"""What is known of one action while its figures come in, and what they are then."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from msgspec import Struct, field
from opentelemetry.trace import Span
from opentelemetry.util.types import AttributeValue

from stagewatch import semconv
from stagewatch.instrumentation.pyspark import datasets, events
from stagewatch.operations import Later
from stagewatch.recording import Recording


class Action(Struct, eq=False):
    """One action, from its call until its figures are complete."""

    context: str
    """Its `contexts.traceparent`."""
    span: Span
    stage: str
    """Of the pipeline; empty: the run itself."""
    start: int
    """Nanoseconds since the epoch."""
    may_fold: bool
    """It often does nothing in Spark: then it is counted only."""
    lingers: bool
    """Its jobs may come later."""
    peeks: bool
    """What it reads the action that follows reads again: those are no records of its stage."""
    recording: Recording
    """What it counts for."""
    later: Later | None = None
    """Takes its figures, once it has returned."""
    rows_out: int = 0
    """Rows it returned."""
    returned: float = 0.0
    """When it did, on the monotonic clock."""
    entered: bool = False
    """What is told from now on may belong to it."""
    marked: float = 0.0
    """When all that was posted before its return had been told, on the monotonic clock."""
    jobs: set[int] = field(default_factory=set)
    """Open ones."""
    job_count: int = 0
    executions: set[int] = field(default_factory=set)
    """Open ones."""
    reads: bool = False
    """Of one that lingers: from the outside."""
    ended: list[events.ExecutionEnded] = field(default_factory=list)
    stages: list[events.StageCompleted] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    busy_since: int = 0
    """When the first of the open jobs started, ms."""
    busy: int = 0
    """Milliseconds in which at least one job was open."""


def figures_of(action: Action) -> dict[str, Any]:
    """What `Later.complete` takes."""
    sums = action.sums
    seen = datasets.seen(action.ended, int(sums.get(semconv.SPARK_OUTPUT_RECORDS, 0)))
    counted = _count(action, seen)
    return {
        "rows_in": counted.rows_in or 0,
        "rows_out": action.rows_out or counted.rows_out or 0,
        "reads": counted.rows_in,
        "writes": counted.rows_out,
        "bytes_in": counted.bytes_in,
        "bytes_out": int(sums.get(semconv.SPARK_OUTPUT_BYTES, 0)),
        "datasets": () if action.peeks else seen.datasets,
        "attributes": _attributes(action, seen),
    }


def call_site(action: Action) -> str:
    """``etl.py:12`` of the user's code; empty where that is unknown."""
    known = getattr(action.span, "attributes", None) or {}
    file = str(known.get(semconv.CODE_FILE_PATH, ""))
    return f"{os.path.basename(file)}:{known.get(semconv.CODE_LINE_NUMBER)}" if file else ""


class _Counted(NamedTuple):
    rows_in: int | None
    rows_out: int | None
    bytes_in: int


def _count(action: Action, seen: datasets.Seen) -> _Counted:
    """What came from and went to the outside. Spark counts as its input also what a range makes up
    and what it takes out of its own cache: that was read by whoever filled it."""
    records = int(action.sums.get(semconv.SPARK_INPUT_RECORDS, 0))
    size = int(action.sums.get(semconv.SPARK_INPUT_BYTES, 0))
    is_cached = any(stage.cached for stage in action.stages)
    rows_in, rows_out = seen.rows_in, seen.rows_out
    if not action.ended:  # RDDs have no plan to tell
        rows_in = records if size and not is_cached else None
        rows_out = int(action.sums.get(semconv.SPARK_OUTPUT_RECORDS, 0)) or None
    elif action.lingers and any(dataset.direction == "in" for dataset in seen.datasets):
        rows_in = None if is_cached else records  # its execution ended before its jobs began
    if is_cached:
        size = sum(dataset.bytes or 0 for dataset in seen.datasets if dataset.direction == "in")
    return _Counted(None if action.peeks else rows_in, rows_out, size)


def _attributes(action: Action, seen: datasets.Seen) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue] = {**action.sums}
    if action.job_count:
        found[semconv.SPARK_JOBS] = action.job_count
    if action.ended:
        last = action.ended[-1]
        found[semconv.SPARK_EXECUTION_ID] = last.execution
        if last.fingerprint is not None:
            found[semconv.SPARK_PLAN_FINGERPRINT] = last.fingerprint
        if changes := sum(execution.plan_changes for execution in action.ended):
            found[semconv.SPARK_PLAN_CHANGES] = changes
    is_write = bool(seen.datasets) and seen.datasets[0].direction == "out"
    inputs = [dataset.uri for dataset in seen.datasets if dataset.direction == "in"]
    if is_write and inputs:
        found[semconv.DATASET_INPUTS] = inputs
    return found
