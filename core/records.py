"""What a process writes into its journal, one type per event: the job's word to the recorder.

Encoded with msgpack as ``[tag, field, …]``. Fields are only ever appended, with a default: a
recorder of another version has to read them. Ids are raw bytes (trace 16, span 8), times are
nanoseconds since the epoch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Union, get_args

import msgspec
from msgspec import Struct

from stagewatch.model import Pipeline

Attributes = dict[str, Any]


class ProcessStarted(Struct, array_like=True, tag="P", frozen=True, gc=False):
    """First record of every journal: who writes it."""

    key: str
    """Of the journal: ``PID.TICKS.RANDOM``."""
    pid: int
    ticks: int
    """Start time in ``/proc/PID/stat``; with the pid it names a process within a boot."""
    ppid: int
    host_id: str
    boot_id: str
    pid_namespace: int
    run_id: str
    trace_id: bytes
    opens_run: bool
    """False in a process that joined its parent's run."""
    start: int
    resource: Attributes
    pipeline: str
    final_exit: bool = False
    """True where nobody outlives the process (PID 1): its own `RunExiting` is the last word."""
    messages: bool = False
    """The user opted in to exception messages: they are raw, and may be exported."""
    spans_elsewhere: bool = False
    """Another distribution's SDK exports the spans that end in this process: keep, do not send."""
    uptime: int = 0
    """`stagewatch.measures.uptime` at *start*: durations do not follow steps of the clock."""
    oom_kills: dict[str, int] = {}
    """Counters of out-of-memory kills at the start, by where they stand (a cgroup, ``vmstat``)."""
    host: str = ""
    """Name of the machine or container; a recorder may be in another."""
    cpu_seconds: float = 0.0
    """That the process had used at *start*: they are not the run's."""


class RunStarted(Struct, array_like=True, tag="R", frozen=True, gc=False):
    """A run opened; its span is made by the recorder, with these ids, when the process is gone."""

    run_id: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    """Empty for a root."""
    pipeline: str
    name: str
    """Of the span."""
    start: int
    sampled: bool
    attempt: int
    scheduled: int | None
    deadline: int | None
    owner: str | None
    version: str | None
    attributes: Attributes
    parent_run_id: str | None = None
    trace_state: str = ""
    links: list[tuple[bytes, bytes, Attributes]] = []
    """Trace id, span id, attributes."""
    declared: Pipeline | None = None
    """Schedule, SLA and what else is declared: where *scheduled* and *deadline* are None the
    recorder works them out."""
    uptime: int = 0
    """`stagewatch.measures.uptime` at *start*."""


class RunExiting(Struct, array_like=True, tag="X", frozen=True, gc=False):
    """What the process knows at its interpreter's end; the wait status has the last word."""

    run_id: str
    end: int
    error_type: str | None
    error_message: str | None
    error_place: str | None
    exit_code: int | None
    """Best known, None if unknown."""
    attributes: Attributes
    """What the user added to the run's span."""
    cpu_seconds: float = 0.0
    memory_peak: int = 0
    uptime: int = 0
    """`stagewatch.measures.uptime` at *end*; where it is known, it and not *end* gives the
    duration."""
    is_final: bool = False
    """As `ProcessStarted.final_exit`, where that is known only later: no recorder could start."""
    outcome: str | None = None
    """Where the run is over though its process goes on: this is its last word, and the journal's
    last record."""


class StageStarted(Struct, array_like=True, tag="B", frozen=True, gc=False):
    """A stage opened. If its process dies the recorder closes it, with these ids."""

    run_id: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    name: str
    start: int
    sampled: bool
    cell: int
    """Offset of its counters in the status page (layout ``stage``), 0 if the page was full."""
    attributes: Attributes


class StageEnded(Struct, array_like=True, tag="E", frozen=True, gc=False):
    """A stage ended; written whatever the sampler says (its span is a `SpanEnded` of its own)."""

    run_id: str
    span_id: bytes
    name: str
    start: int
    end: int
    outcome: str
    error_type: str | None
    records_in: int | None
    records_out: int | None
    records_rejected: int
    retries: int
    cpu_seconds: float
    memory_peak: int
    active_seconds: float
    """Without the time a generator waited for its consumer."""
    by_frames: int = 0
    """Bit 0: *records_in*, bit 1: *records_out* are rows of the function's DataFrames. They are the
    stage's, but not the run's: every stage that hands a frame on would count it again."""
    bytes_in: int = 0
    """Bodies of HTTP answers and files read, where their size was known."""
    bytes_out: int = 0
    """Bodies of HTTP requests and files written."""


class SpanEnded(Struct, array_like=True, tag="S", frozen=True, gc=False):
    """Any span that ended and was sampled: ours, the user's and other libraries'."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    start: int
    end: int
    kind: int
    """`opentelemetry.trace.SpanKind` (0 = internal); OTLP adds one."""
    status: int
    """`opentelemetry.trace.StatusCode`."""
    status_description: str | None
    scope: int
    """Number of a `ScopeDefined` of this journal."""
    attributes: Attributes | None
    events: list[tuple[str, int, Attributes | None]] | None = None
    links: list[tuple[bytes, bytes, Attributes | None]] | None = None
    trace_state: str = ""
    dropped: tuple[int, int, int] | None = None
    """Attributes, events, links cut off by the SDK's limits."""


class SpanStarted(Struct, array_like=True, tag="N", frozen=True, gc=False):
    """A span that has got a child: should the process die in it, it is closed with this id."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    start: int
    kind: int
    scope: int
    """Number of a `ScopeDefined` of this journal."""
    attributes: Attributes | None
    """Those it had by then."""
    trace_state: str = ""


class SpanLeft(Struct, array_like=True, tag="G", frozen=True, gc=False):
    """A span, or a stage, is over, but its figures are still coming: should the process die before
    they are there, it ended like this.

    So with a Spark action, which has returned before the driver's JVM tells of its jobs, and with a
    stage in which there was one. It is no longer what its process does, and has its end and its
    outcome whatever becomes of that. Its own records (`SpanEnded`, and `OperationEnded` or
    `StageEnded`) follow when the figures are there, with the same id and end, and take this one's
    place.
    """

    span_id: bytes
    end: int
    outcome: str
    error_type: str | None
    ended: OperationEnded | StageEnded | None = None
    """What is counted then: without those figures. Its own record takes this one's place."""


class SpanHead(Struct, array_like=True, tag="S", gc=False):
    """A `SpanEnded` as the recorder takes it in: its attributes stay encoded, as it does itself."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_span_id: bytes
    start: int
    end: int
    kind: int
    status: int
    status_description: str | None
    scope: int
    attributes: msgspec.Raw
    events: Any = None
    links: Any = None
    trace_state: str = ""
    dropped: Any = None
    body: bytes = b""
    """The record; set by `decode_head`, it stands in no journal."""


class ScopeDefined(Struct, array_like=True, tag="C", frozen=True, gc=False):
    """An instrumentation scope, before its first span."""

    number: int
    name: str
    version: str | None
    schema_url: str | None


class TallyDefined(Struct, array_like=True, tag="T", frozen=True, gc=False):
    """A cell of the status page, before its first count."""

    cell: int
    """Offset in the page."""
    kind: str
    """``operation`` or ``folded_stage``: the layout (`stagewatch.exporters.page`)."""
    run_id: str
    stage: str
    """Empty: the run itself."""
    name: str
    """Of the operation; for a folded stage, its own."""


class TallySpilled(Struct, array_like=True, tag="O", frozen=True, gc=False):
    """One folded call for which the page had no cell left."""

    run_id: str
    stage: str
    name: str
    kind: str
    nanoseconds: int
    rows_in: int
    rows_out: int
    rejected: int = 0
    failed: str | None = None
    """``error.type`` if the call failed."""


class OperationEnded(Struct, array_like=True, tag="W", frozen=True, gc=False):
    """One operation that was not folded; written whatever the sampler says."""

    run_id: str
    stage: str
    name: str
    nanoseconds: int
    rows_in: int
    rows_out: int
    error_type: str | None = None
    span_id: bytes = b""
    """Of one that was `SpanLeft`."""
    folded: bool = False
    """It was, but needs no span after all."""


class DatasetTouched(Struct, array_like=True, tag="D", frozen=True, gc=False):
    """One read or write of a dataset."""

    run_id: str
    stage: str
    direction: str
    uri: str
    rows: int | None
    bytes: int | None
    fingerprint: str | None
    newest_event: int | None
    declared: str | None
    """Its name in ``stagewatch.yaml``, if it has one."""
    at: int


class StageMeasured(Struct, array_like=True, tag="Q", frozen=True, gc=False):
    """What an engine that works for a stage has done: values of `stagewatch.semconv.MEASURED`."""

    run_id: str
    stage: str
    """Empty: the run itself."""
    values: dict[str, float]
    """By the metric's name: what a counter has grown by, what a gauge shows now."""


class Noted(Struct, array_like=True, tag="V", frozen=True, gc=False):
    """Something that is to be said of the run, once: `name` and `key` are its own in the run."""

    run_id: str
    name: str
    key: str
    text: str
    """One line, for people."""
    attributes: Attributes
    at: int


class TraceSettled(Struct, array_like=True, tag="H", frozen=True, gc=False):
    """A trace within a run that is decided on before the run is over, such as a micro-batch's."""

    trace_id: bytes
    span_ids: list[bytes]
    """Of its spans that have ended."""
    keep: bool
    """Send their details; else forget them."""
    threshold: str = ""
    """The ``th`` value of the sample that alone has chosen it."""


class StageFailed(Struct, array_like=True, tag="F", frozen=True, gc=False):
    """One failed call of a stage that is folded: the page counts, this says of what."""

    run_id: str
    name: str
    outcome: str
    error_type: str


NAME_MASK = (1 << 10) - 1
"""Bits of the status page's operation word that hold a `NameDefined` number; the rest, with these
bits 0, is the operation's start on the monotonic clock in nanoseconds."""


class NameDefined(Struct, array_like=True, tag="K", frozen=True, gc=False):
    """An operation's name, before the status page shows its number as open."""

    number: int
    name: str


class MetricsCollected(Struct, array_like=True, tag="M", frozen=True, gc=False):
    """Deltas of other libraries' instruments since the last batch."""

    start: int
    end: int
    metrics: list[ForeignMetric]
    number: int = 0
    """1, 2, … within the journal; 0: these instruments have no cell in the status page."""


class ForeignMetric(Struct, array_like=True, frozen=True, gc=False):
    scope: str
    scope_version: str | None
    name: str
    unit: str
    description: str
    kind: str
    """``sum`` (monotonic), ``updown``, ``histogram`` or ``gauge``."""
    points: list[ForeignPoint]


class ForeignPoint(Struct, array_like=True, frozen=True, gc=False):
    attributes: Attributes
    value: float | int
    """Histogram: the sum."""
    count: int = 0
    bucket_counts: list[int] | None = None
    bounds: list[float] | None = None
    minimum: float | None = None
    maximum: float | None = None


class SeriesDefined(Struct, array_like=True, tag="Y", frozen=True, gc=False):
    """A cell of the status page for one series of another library's instrument, before its first
    count."""

    cell: int
    """Offset in the page."""
    layout: str
    """``number`` or ``distribution`` (`stagewatch.exporters.page`)."""
    metric: ForeignMetric
    """With one point, at zero."""


class LogEmitted(Struct, array_like=True, tag="L", frozen=True, gc=False):
    """A log record, where ``OTEL_LOGS_EXPORTER`` asks for logs."""

    time: int
    observed: int
    severity: int
    severity_text: str | None
    body: Any
    trace_id: bytes
    span_id: bytes
    scope: int
    attributes: Attributes | None
    event_name: str | None = None


Record = (
    ProcessStarted
    | RunStarted
    | RunExiting
    | StageStarted
    | StageEnded
    | SpanStarted
    | SpanEnded
    | SpanLeft
    | ScopeDefined
    | TallyDefined
    | TallySpilled
    | OperationEnded
    | DatasetTouched
    | StageFailed
    | TraceSettled
    | StageMeasured
    | Noted
    | NameDefined
    | MetricsCollected
    | LogEmitted
    | SeriesDefined
)

Taken = Record | SpanHead
"""A record as the recorder reads it: a span comes as its head."""

encode = msgspec.msgpack.Encoder().encode
"""Raises TypeError for a value msgpack does not know; the writer's caller is guarded."""


def decode(body: bytes) -> Record:
    """One record; raises `msgspec.DecodeError` for what is no record."""
    return _decoder()(body)


def decode_head(body: bytes) -> Taken:
    """`decode`, but a span comes as its head; most records are spans."""
    record = _head_decoder()(body)
    if type(record) is SpanHead:
        record.body = body
    return record


@functools.cache
def _head_decoder() -> Callable[[bytes], Taken]:
    kinds = tuple(SpanHead if kind is SpanEnded else kind for kind in get_args(Record))
    return msgspec.msgpack.Decoder(Union[kinds]).decode  # noqa: UP007  # made of a list


@functools.cache
def _decoder() -> Callable[[bytes], Record]:
    # Made at first use: it takes 5 ms, and a job never decodes.
    return msgspec.msgpack.Decoder(Record).decode
