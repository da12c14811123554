"""What is known of one action while its figures come in."""

from __future__ import annotations

from msgspec import Struct, field
from opentelemetry.trace import Span

from stagewatch.instrumentation.pyspark import events
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
