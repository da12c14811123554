"""One record of a journal into a batch: what `SpanEnded`, `StageEnded` and the others mean."""

from __future__ import annotations

from typing import Final

from msgspec import msgpack, structs

from stagewatch import measures, semconv
from stagewatch.database import HELD, LOCAL, PENDING
from stagewatch.exporters.recorder.intake import increments, rows
from stagewatch.exporters.recorder.intake.books import (
    DETAIL,
    STAGE,
    USER,
    Batch,
    Books,
    Journal,
    OpenStage,
)
from stagewatch.history import History
from stagewatch.records import (
    Attributes,
    DatasetTouched,
    LogEmitted,
    MetricsCollected,
    NameDefined,
    Noted,
    OperationEnded,
    ProcessStarted,
    RunExiting,
    RunStarted,
    ScopeDefined,
    SeriesDefined,
    SpanEnded,
    SpanHead,
    SpanLeft,
    SpanStarted,
    StageEnded,
    StageStarted,
    Taken,
    TallyDefined,
    TallySpilled,
    TraceSettled,
    decode_head,
    encode,
)

_CLIENT_KINDS: Final = (2, 3)  # CLIENT, PRODUCER
_LIBRARIES: Final = "opentelemetry.instrumentation."
_OURS: Final = semconv.SCOPE
_ROLE: Final = semconv.SPAN_ROLE
_ROLE_BYTES: Final = _ROLE.encode()
_attributes: Final = msgpack.Decoder(Attributes | None).decode


def take(books: Books, journal: Journal, record: Taken, batch: Batch) -> None:
    """Add *record* to *batch*; runs in the transaction that writes it."""
    if journal.process is None:
        if isinstance(record, ProcessStarted):
            _begin(books, journal, record)
        else:  # the first record was lost: nobody knows whose this one is
            batch.drop("orphan")
        return
    match record:
        case SpanHead():  # most are spans
            _take_span(books, journal, journal.process, record, batch)
        case SpanEnded():  # one that stood in no journal
            take(books, journal, decode_head(encode(record)), batch)
        case OperationEnded():
            batch.operation(record.stage, record.name).add(
                1,
                int(record.folded),
                int(record.error_type is not None),
                record.nanoseconds,
                record.rows_in,
                record.rows_out,
            )
            if record.error_type is not None:
                batch.failures[record.stage, record.name, record.error_type] += 1
            journal.left.pop(record.span_id, None)
            if record.folded:
                journal.begun.pop(record.span_id, None)
        case TallySpilled():
            batch.operation(record.stage, record.name).add(
                1,
                1,
                int(record.failed is not None),
                record.nanoseconds,
                record.rows_in,
                record.rows_out,
            )
        case ScopeDefined():
            number = books.interned.scope(record.name, record.version, record.schema_url)
            journal.scopes[record.number] = (number, record.name)
        case NameDefined():
            journal.names[record.number] = record.name
        case RunStarted():
            _open_run(books, journal, journal.process, record, batch)
        case RunExiting():
            journal.exiting = record
            journal.seen = max(journal.seen, record.end)
        case SpanStarted():
            is_run = journal.opened is not None and record.span_id == journal.opened.span_id
            if not is_run and record.span_id not in journal.stages:
                journal.begun[record.span_id] = record
                journal.seen = max(journal.seen, record.start)
        case SpanLeft():
            journal.left[record.span_id] = record
            journal.seen = max(journal.seen, record.end)
        case StageStarted():
            journal.stages[record.span_id] = OpenStage(record)
            journal.seen = max(journal.seen, record.start)
        case StageEnded():
            journal.left.pop(record.span_id, None)
            stage = journal.stages.get(record.span_id)
            if stage is not None:
                stage.ended = record
                if stage.spanned or not stage.started.sampled:
                    del journal.stages[record.span_id]
            count_stage(books, journal, record, batch)
        case TallyDefined():
            journal.tallies[record.cell] = record
        case DatasetTouched():
            rows.add_dataset(books.link, journal.run, record)
            batch.found += increments.increments(record)
        case MetricsCollected():
            if "metrics" in books.signals:
                points = books.totals.add_foreign(record, journal.resource, record.end)
                batch.recorded["metrics"] += points
            if record.number:
                journal.collected = record.number, record.end
        case SeriesDefined():
            journal.series[record.cell] = record
        case TraceSettled():
            batch.settled.append(record)
            for span_id, begun in tuple(journal.begun.items()):
                if begun.trace_id == record.trace_id:  # it will never end
                    del journal.begun[span_id]
        case Noted():
            batch.noted.append(record)
        case LogEmitted():
            _take_log(books, journal, record, batch)
        case _:
            batch.found += increments.increments(record)


def count_stage(books: Books, journal: Journal, record: StageEnded, batch: Batch) -> None:
    """One call of a stage is over."""
    journal.seen = max(journal.seen, record.end)
    rows.add_stage(books.link, journal.run, record, record.outcome in increments.FAILED)
    batch.stages.add(record.name)
    batch.found += increments.increments(record)


def _begin(books: Books, journal: Journal, process: ProcessStarted) -> None:
    journal.process = process
    journal.run = rows.run_row(books.link, process)
    journal.resource = books.interned.resource(process.resource, messages=process.messages)
    journal.metric_resource = books.interned.metric_resource(process.resource)
    if books.totals.is_delta:
        run_resource = books.interned.metric_resource(process.resource, process.run_id)
        journal.run_resource = run_resource
    journal.seen = journal.since = process.start


def _open_run(
    books: Books, journal: Journal, process: ProcessStarted, record: RunStarted, batch: Batch
) -> None:
    declared = record.declared
    if declared is not None and record.scheduled is None:
        history = History(books.link)
        met = history.met_slots(record.pipeline)
        # What was due before anything was seen of the pipeline nobody has missed.
        begun = history.first_start(record.pipeline, record.start)
        begun -= round(declared.sla.start_grace * measures.SECOND)
        scheduled = measures.scheduled_time(
            declared.schedule, declared.sla, record.start, lambda tick: tick < begun or tick in met
        )
        record = structs.replace(record, scheduled=scheduled)
    if declared is not None and record.deadline is None:
        deadline = measures.deadline(record.scheduled, record.start, declared.sla)
        record = structs.replace(record, deadline=deadline)
    journal.opened = record
    # A process that goes on by exec may write its run's start again.
    if rows.start_run(books.link, journal.run, record, process):
        batch.found += increments.increments(record)
        for forecast in (semconv.PROGRESS, semconv.ESTIMATED_END):  # of the run before
            books.totals.withdraw(forecast, record.pipeline, journal.metric_resource)


def _take_span(
    books: Books, journal: Journal, process: ProcessStarted, span: SpanHead, batch: Batch
) -> None:
    """Add a span that is over, and is no longer open."""
    # Most records are spans, and what this costs is most of what the intake costs.
    if span.span_id in journal.begun:
        del journal.begun[span.span_id]
    scope, name = journal.scopes.get(span.scope) or (books.interned.scope("", None, None), "")
    if span.span_id in journal.stages:
        stage = journal.stages[span.span_id]
        stage.spanned = True
        if stage.ended is not None:
            del journal.stages[span.span_id]
    role = _role(span, name)
    if "traces" in books.signals and not process.spans_elsewhere:
        state = PENDING
        if role == DETAIL:
            state = HELD
            batch.has_details = True
    else:
        state = LOCAL
    if span.end > journal.seen:
        journal.seen = span.end
    batch.recorded["traces"] += 1
    batch.spans.append(
        rows.span_values(span, journal.run, role, state, books.destination, journal.resource, scope)
    )


def _role(span: SpanHead, scope: str) -> int:
    # A name that stands nowhere in the record is no attribute's.
    if scope == _OURS or _ROLE_BYTES in span.body:
        attributes = _attributes(span.attributes) or {}
        if attributes.get(_ROLE) == semconv.ROLE_DETAIL:
            return DETAIL
        if scope == _OURS and semconv.STAGE_NAME in attributes:
            return STAGE
    if span.kind in _CLIENT_KINDS and scope.startswith(_LIBRARIES):
        return DETAIL
    return USER


def _take_log(books: Books, journal: Journal, record: LogEmitted, batch: Batch) -> None:
    if "logs" not in books.signals:
        return
    scope = journal.scopes.get(record.scope)
    batch.recorded["logs"] += 1
    number = scope[0] if scope else books.interned.scope("", None, None)
    rows.add_log(books.link, books.destination, journal.resource, number, record)
