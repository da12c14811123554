"""What a pipeline is and what was seen of it: plain frozen types, without a word about telemetry.

Declared types (`Pipeline` and its parts) come from ``stagewatch.yaml``; observed types (`Run`,
`Stage`, `Operation`, `Dataset`) come out of the history. Times are nanoseconds since the epoch,
durations seconds, unless a name says otherwise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct, field


class Outcome(StrEnum):
    """How a run or a stage ended: the values of ``cicd.pipeline.result``."""

    SUCCESS = "success"
    FAILURE = "failure"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLATION = "cancellation"
    SKIP = "skip"


class Role(StrEnum):
    """What a span is, and so whether it may be held back: only a detail may."""

    RUN = "run"
    STAGE = "stage"
    USER = "user"
    DETAIL = "detail"


# --- declared ---------------------------------------------------------------------------------

# A kind names the entry of `stagewatch.values.KINDS` that reads and describes what users write.
Seconds = Annotated[float, Meta(extra={"kind": "duration"})]
Ratio = Annotated[float, Meta(extra={"kind": "ratio"})]
Pattern = Annotated[str, Meta(extra={"kind": "pattern"})]
Cron = Annotated[str, Meta(extra={"kind": "cron"})]
Zone = Annotated[str, Meta(extra={"kind": "zone"})]
Function = Annotated[str, Meta(extra={"kind": "function"})]
Key = Annotated[str, Meta(extra={"source": "key"})]
"""Not a field in the file: it is the key under which the object stands."""


class Match(Struct, frozen=True, forbid_unknown_fields=True):
    """Which processes are runs of a pipeline; any one that fits is enough."""

    script: Pattern | None = None
    """Name of the script (``etl.py``), or the end of its path (``jobs/etl.py``); globs work."""
    module: Pattern | None = None
    """Module run with ``python -m``."""
    dag: Pattern | None = None
    """Airflow DAG id."""
    spark_app: Pattern | None = None
    """Spark application name."""


class Schedule(Struct, frozen=True, forbid_unknown_fields=True):
    """When a run is due."""

    cron: Cron
    """Five fields, as in crontab(5)."""
    timezone: Zone = "UTC"
    """IANA name; ticks are computed in this zone."""


class Escalation(Struct, frozen=True, forbid_unknown_fields=True):
    """One step of how loud a late run gets."""

    after: Seconds
    """Seconds past the deadline."""
    severity: str
    """Such as ``warning`` or ``critical``; becomes a label of the alert."""


class Sla(Struct, frozen=True, forbid_unknown_fields=True):
    """What is promised of a run; all in seconds."""

    deadline: Seconds | None = None
    """After the scheduled time."""
    max_duration: Seconds | None = None
    """After the start; counts where no deadline after a scheduled time does."""
    start_grace: Seconds = 300.0
    """How far a start may precede its tick and how long after a tick it may still come."""
    max_age: Seconds | None = None
    """Age at which an unmet tick is given up; without one only the newest tick counts."""
    escalation: tuple[Escalation, ...] = ()
    """Steps of a run that stays late."""


class DeclaredStage(Struct, frozen=True, forbid_unknown_fields=True):
    """One stage of a pipeline, by the function or method that is it."""

    function: Function | None = None
    """``module:function``, ``module:Class.method``; without a module it is one of the script's."""
    expected_records: int | None = None
    """Of one run."""
    max_error_ratio: Ratio | None = None
    """Rejected / (out + rejected)."""
    min_throughput: float | None = None
    """Records per second."""
    max_duration: Seconds | None = None
    """Seconds."""


class DeclaredDataset(Struct, frozen=True, forbid_unknown_fields=True):
    """A dataset whose freshness matters."""

    uri: Pattern
    """As it stands in the history; globs work."""
    timestamp_column: str | None = None
    """Column with the time of the event; its maximum is the newest event."""
    freshness: Seconds | None = None
    """Seconds its newest event may be old."""


class Pipeline(Struct, frozen=True, forbid_unknown_fields=True):
    """What is run again and again."""

    name: Key
    owner: str | None = None
    """Who is asked when it is late."""
    version: str | None = None
    """Of the pipeline's code."""
    match: Match = field(default_factory=Match)
    schedule: Schedule | None = None
    sla: Sla = field(default_factory=Sla)
    stages: dict[str, DeclaredStage] = field(default_factory=dict)
    """By stage name."""
    datasets: dict[str, DeclaredDataset] = field(default_factory=dict)
    """By a name of your choice; it is the metrics' ``dataset`` attribute."""
    labels: dict[str, str] = field(default_factory=dict)
    """For alert routes."""


# --- observed ---------------------------------------------------------------------------------


class Run(Struct, frozen=True, kw_only=True):
    """One execution of a pipeline."""

    run_id: str
    """32 hex digits."""
    trace_id: bytes
    span_id: bytes
    pipeline: str
    start: int
    end: int | None = None
    """None while it runs."""
    scheduled: int | None = None
    attempt: int = 1
    deadline: int | None = None
    outcome: Outcome | None = None
    error_type: str | None = None
    error_message: str | None = None
    """Redacted, unless the user opted in."""
    error_place: str | None = None
    """``file:line in function``, of the user's own code where there is any."""
    records_in: int | None = None
    records_out: int | None = None
    records_rejected: int = 0
    cpu_seconds: float | None = None
    memory_peak: int | None = None
    """Bytes."""
    host: str = ""
    pid: int = 0
    wait_status: int | None = None
    """As ``wait(2)`` gives it; None where the kernel could not be asked."""
    parent_run_id: str | None = None
    last_stage: str | None = None
    """Innermost stage it was in, if its process died in one."""
    last_operation: str | None = None
    ticks: int = 0
    """When its process started, in clock ticks since boot: who has the pid `pid` later has
    others. This and the next two are 0 or empty where they are not known."""
    boot_id: str = ""
    pid_namespace: int = 0


class Doing(StrEnum):
    """What a run that is under way is doing."""

    RUNNING = "running"
    WAITING = "waiting"
    """Nothing moves, but an operation is open, or it waits for a socket or a child."""
    STUCK = "stuck"
    """Nothing moves, and nothing says why."""
    DEAD = "dead"
    """Its process is gone, but no recorder has taken in how; only where the history is read."""


class LiveStage(Struct, frozen=True, kw_only=True):
    """One open stage of a run under way."""

    name: str
    span_id: bytes
    parent_span_id: bytes
    start: int
    pid: int
    operation: str | None = None
    """Open in the thread whose innermost stage this is."""
    operation_start: int | None = None
    records_in: int | None = None
    records_out: int | None = None
    records_rejected: int = 0
    throughput: float | None = None
    """Records per second, over the last 60 s."""
    cpu_seconds: float | None = None
    """Of its process since it began, as seen from outside."""
    memory_peak: int | None = None
    expected_records: int | None = None
    """As declared."""


class Live(Struct, frozen=True, kw_only=True):
    """A run under way, as its recorder saw it last."""

    at: int
    doing: Doing = Doing.RUNNING
    since: int = 0
    """When it last moved: recorded anything, or used CPU or I/O."""
    waits_for: str | None = None
    """Of a run that waits: ``operation``, ``socket``, ``child`` or ``unreadable``."""
    stages: tuple[LiveStage, ...] = ()
    """Open ones of all its processes, by their start."""
    operation: str | None = None
    """Open where no stage is."""
    operation_start: int | None = None
    progress: float | None = None
    """0 … 1: of the expected records, else of the usual duration."""
    estimated_end: int | None = None
    throughput: float | None = None
    """Of the run, records per second over the last 60 s."""
    cpu_seconds: float | None = None
    """Of its processes and their children, so far."""
    cpu_share: float | None = None
    """Cores they use just now."""
    memory: int | None = None
    """Resident bytes of all its processes now."""
    memory_peak: int | None = None
    processes: int = 1
    threads: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


class Notice(Struct, frozen=True, kw_only=True):
    """Something that was said of a run while it ran: `semconv.RUN_LATE` and the like."""

    at: int
    name: str
    attributes: dict[str, Any]


class Stage(Struct, frozen=True, kw_only=True):
    """All calls of one stage name in one run, added up."""

    name: str
    calls: int
    failed: int = 0
    start: int = 0
    """Of the first call."""
    seconds: float = 0.0
    records_in: int | None = None
    records_out: int | None = None
    records_rejected: int = 0
    retries: int = 0
    bytes_in: int = 0
    """Bodies of HTTP answers and files read, where their size was known."""
    bytes_out: int = 0
    """Bodies of HTTP requests and files written."""
    cpu_seconds: float | None = None
    memory_peak: int | None = None
    error_type: str | None = None


class Operation(Struct, frozen=True, kw_only=True):
    """All calls of one operation in one stage of one run, spans and folded calls alike."""

    name: str
    """Such as ``pandas.merge``."""
    stage: str
    """Empty where the run itself made the calls."""
    calls: int
    folded: int = 0
    """Those of the calls that left no span."""
    failed: int = 0
    seconds: float = 0.0
    rows_in: int = 0
    rows_out: int = 0
    errors: dict[str, int] = {}
    """Failed calls by ``error.type``: a class, or the status of an HTTP answer."""


class Dataset(Struct, frozen=True, kw_only=True):
    """What one operation read or wrote."""

    uri: str
    """Without credentials, query string or literals."""
    direction: str
    """``in`` or ``out``."""
    stage: str = ""
    rows: int | None = None
    bytes: int | None = None
    fingerprint: str | None = None
    """Hash of column names and types."""
    newest_event: int | None = None
    declared: str | None = None
    """Its name in ``stagewatch.yaml``, if it has one."""
