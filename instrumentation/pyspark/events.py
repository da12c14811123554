"""What the listener in the driver's JVM tells, one type per event: the contract with its source.

JSON objects, told apart by ``type``. Times are milliseconds since the epoch, as Spark gives them;
durations milliseconds unless said otherwise; sizes bytes. Fields that Spark did not give are None.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct


class JobStarted(Struct, tag_field="type", tag="job_started", frozen=True):
    job: int
    at: int
    stages: list[int]
    """Those it may run; the ones whose output is there already are skipped."""
    context: str | None = None
    """`stagewatch.instrumentation.pyspark.contexts.PROPERTY`."""
    execution: int | None = None
    """Of SQL; None for RDDs."""
    root: int | None = None
    """The execution that this one is a part of: itself, mostly."""
    query: str | None = None
    """Id of the streaming query."""
    batch: int | None = None
    call_site: str | None = None


class JobEnded(Struct, tag_field="type", tag="job_ended", frozen=True):
    job: int
    at: int
    error: str | None = None
    """Class of the JVM's exception."""
    message: str | None = None


class StageSubmitted(Struct, tag_field="type", tag="stage_submitted", frozen=True):
    stage: int
    attempt: int
    at: int
    name: str
    tasks: int


class StageCompleted(Struct, tag_field="type", tag="stage_completed", frozen=True):
    """Figures are of tasks that ended well, as Spark's own are."""

    stage: int
    attempt: int
    name: str
    tasks: int
    submitted: int | None = None
    completed: int | None = None
    failure: str | None = None
    input_bytes: int = 0
    input_records: int = 0
    output_bytes: int = 0
    output_records: int = 0
    shuffle_read_bytes: int = 0
    shuffle_read_records: int = 0
    shuffle_fetch_wait: int = 0
    shuffle_write_bytes: int = 0
    shuffle_write_records: int = 0
    spill_memory: int = 0
    spill_disk: int = 0
    run_time: int = 0
    cpu_time: int = 0
    """Nanoseconds."""
    gc_time: int = 0
    result_bytes: int = 0
    cached: bool = False
    """Some of its input is what another stage had put into Spark's cache."""
    memory_peak: int = 0
    """Most execution memory of one task."""
    failed: int = 0
    killed: int = 0
    error: str | None = None
    """Class of the last failed task's exception, or of the reason."""
    message: str | None = None
    succeeded: int = 0
    task_median: int = 0
    task_max: int = 0
    slowest_host: str | None = None
    read_median: int = 0
    """Shuffle bytes that a task read."""
    read_max: int = 0


class Table(Struct, tag_field="type", tag="table", frozen=True):
    name: str
    """In full: ``spark_catalog.default.t``; of some catalogs a path: ``delta.`s3a://x` ``."""


class Files(Struct, tag_field="type", tag="files", frozen=True):
    path: str
    """Of several the first."""


class Jdbc(Struct, tag_field="type", tag="jdbc", frozen=True):
    url: str
    table: str = ""
    """Or a query."""


class Source(Struct, tag_field="type", tag="source", frozen=True):
    name: str
    """Of its class: nothing else is known of it."""


Relation = Table | Files | Jdbc | Source
"""What a plan reads or writes; may hold secrets still."""


class PlanNode(Struct, frozen=True):
    """An operator of a plan that was executed, with those of Spark's SQL metrics that are not 0."""

    name: str
    """``nodeName``, such as ``SortMergeJoin`` or ``Scan parquet``."""
    metrics: dict[str, int] = {}
    """By Spark's own short names: ``numOutputRows``, ``spillSize``, ``dataSize``."""
    relation: Relation | None = None
    """Of scans and writes: what is read or written."""
    partitioned_by: list[str] = []
    """Of scans of files: partition columns."""
    partition_filters: int = 0
    """Of scans of files: how many conditions choose partitions."""
    children: list[PlanNode] = []


class ExecutionStarted(Struct, tag_field="type", tag="execution_started", frozen=True):
    execution: int
    at: int
    root: int | None = None
    """The execution that this one is a part of: itself, mostly."""


class ExecutionEnded(Struct, tag_field="type", tag="execution_ended", frozen=True):
    execution: int
    at: int
    error: str | None = None
    """Class of the JVM's exception."""
    inputs: list[Relation] = []
    outputs: list[Relation] = []
    fingerprint: str | None = None
    plan_changes: int = 0
    """How often adaptive execution changed the plan."""
    plan: PlanNode | None = None
    fault: str | None = None
    """Of ours: why inputs, outputs and plan are missing."""


class Entered(Struct, tag_field="type", tag="entered", frozen=True):
    """What Spark posts from now on may belong to this action."""

    context: str


class Marked(Struct, tag_field="type", tag="marked", frozen=True):
    """Everything that Spark posted before this action returned has been told."""

    context: str


class ExecutorAdded(Struct, tag_field="type", tag="executor_added", frozen=True):
    executor: str
    at: int
    slots: int


class ExecutorRemoved(Struct, tag_field="type", tag="executor_removed", frozen=True):
    executor: str
    at: int
    reason: str | None = None


class QueryStarted(Struct, tag_field="type", tag="query_started", frozen=True):
    id: str
    run: str
    name: str | None = None


class QueryProgress(Struct, tag_field="type", tag="query_progress", frozen=True):
    progress: dict[str, Any]
    """`StreamingQueryProgress.json`."""


class QueryTerminated(Struct, tag_field="type", tag="query_terminated", frozen=True):
    id: str
    run: str
    error: str | None = None
    """Error condition, or class."""
    message: str | None = None


Event = (
    JobStarted
    | JobEnded
    | StageSubmitted
    | StageCompleted
    | ExecutionStarted
    | ExecutionEnded
    | Entered
    | Marked
    | ExecutorAdded
    | ExecutorRemoved
    | QueryStarted
    | QueryProgress
    | QueryTerminated
)

decode = msgspec.json.Decoder(list[Event]).decode
"""What one drain of the listener gives; raises `msgspec.DecodeError`."""

_split = msgspec.json.Decoder(list[msgspec.Raw]).decode


def split(body: bytes) -> list[bytes]:
    """The events of one drain, each by itself; raises `msgspec.DecodeError`."""
    return [bytes(one) for one in _split(body)]
