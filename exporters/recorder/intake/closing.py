"""What the recorder ends in place of a process: its run always, its stages if it died in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from stagewatch import semconv
from stagewatch.exporters.recorder.intake.increments import FAILED
from stagewatch.exporters.recorder.watching.outcome import Verdict
from stagewatch.measures import SECOND
from stagewatch.model import Run
from stagewatch.processors import errors, sla, throughput
from stagewatch.records import (
    Attributes,
    RunExiting,
    RunStarted,
    SpanEnded,
    SpanStarted,
    StageEnded,
    StageStarted,
)

_UNSET, _OK, _ERROR = 0, 1, 2
_RECORDS_IN, _RECORDS_OUT = 1, 2  # bits of a cell's `counted`


def known_records(cell: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Records in and out of a cell; None for a side that nobody counted."""
    counted = cell["counted"]
    return (
        cell["records_in"] if counted & _RECORDS_IN else None,
        cell["records_out"] if counted & _RECORDS_OUT else None,
    )


def end_stage(
    started: StageStarted, cell: Mapping[str, int] | None, verdict: Verdict, end: int,
    cpu_seconds: float | None = None, memory_peak: int | None = None,
) -> StageEnded:  # fmt: skip
    """The end of a stage whose process died in it, with what its cell had counted by then, and
    what was seen of it from outside."""
    records_in, records_out = (None, None) if cell is None else known_records(cell)
    return StageEnded(
        started.run_id,
        started.span_id,
        started.name,
        started.start,
        max(end, started.start),
        str(verdict.outcome),
        verdict.error_type,
        records_in,
        records_out,
        cell["records_rejected"] if cell else 0,
        cell["retries"] if cell else 0,
        cpu_seconds or 0.0,
        memory_peak or 0,
        max(end - started.start, 0) / SECOND,
        0,
        cell["bytes_in"] if cell else 0,
        cell["bytes_out"] if cell else 0,
    )


def complete_stage(left: StageEnded, cell: Mapping[str, int] | None) -> StageEnded:
    """The end of a stage whose process died before all figures of it had come, with those that its
    cell had by then."""
    if cell is None:
        return left
    records_in, records_out = known_records(cell)
    return structs.replace(
        left,
        records_in=left.records_in if records_in is None else records_in,
        records_out=left.records_out if records_out is None else records_out,
        records_rejected=cell["records_rejected"],
        retries=cell["retries"],
        bytes_in=cell["bytes_in"],
        bytes_out=cell["bytes_out"],
        by_frames=left.by_frames & ~cell["counted"],
    )


def stage_span(started: StageStarted, ended: StageEnded, pipeline: str) -> SpanEnded:
    """The span of a stage that the process itself could not write any more."""
    attributes: Attributes = {
        **started.attributes,
        **throughput.attributes(ended),
        **errors.attributes(ended),
        semconv.PIPELINE_NAME: pipeline,
        semconv.RUN_ID: started.run_id,
        semconv.STAGE_NAME: started.name,
        semconv.STAGE_CPU_TIME: ended.cpu_seconds or None,
        semconv.STAGE_MEMORY_PEAK: ended.memory_peak or None,
    }
    return SpanEnded(
        started.name,
        started.trace_id,
        started.span_id,
        started.parent_span_id,
        started.start,
        max(ended.end, started.start),
        0,
        _ERROR if ended.outcome in FAILED else _OK,
        None,
        0,
        _known(attributes),
    )


def user_span(started: SpanStarted, verdict: Verdict, end: int) -> SpanEnded:
    """A span that was open when its process died, under the id that its children know."""
    failed = verdict.outcome in FAILED
    cause = {semconv.ERROR_TYPE: verdict.error_type} if verdict.error_type else {}
    return SpanEnded(
        started.name,
        started.trace_id,
        started.span_id,
        started.parent_span_id,
        started.start,
        max(end, started.start),
        started.kind,
        _ERROR if failed else _UNSET,
        None,
        started.scope,
        {**(started.attributes or {}), **cause} or None,
        trace_state=started.trace_state,
    )


def run_span(
    started: RunStarted, exiting: RunExiting | None, run: Run, cut: int,
    events: Sequence[tuple[str, int, Attributes]],
) -> SpanEnded:  # fmt: skip
    """The span of a run that is over. *cut*: its details that are not sent because of the cap;
    *events*: what was said of it while it ran."""
    assert run.end is not None and run.outcome is not None
    attributes: Attributes = {
        **started.attributes,
        **(exiting.attributes if exiting else {}),
        semconv.PIPELINE_NAME: run.pipeline,
        semconv.RUN_ID: run.run_id,
        **sla.attributes(run.deadline, run.end),
        semconv.RUN_SCHEDULED_TIME: None if run.scheduled is None else sla.iso_time(run.scheduled),
        semconv.RUN_ATTEMPT: run.attempt,
        semconv.RUN_OUTCOME: str(run.outcome),
        semconv.RUN_RECORDS_IN: run.records_in,
        semconv.RUN_RECORDS_OUT: run.records_out,
        semconv.RUN_RECORDS_REJECTED: run.records_rejected or None,
        semconv.RUN_PARENT_ID: run.parent_run_id,
        semconv.RUN_CPU_TIME: run.cpu_seconds or None,
        semconv.RUN_MEMORY_PEAK: run.memory_peak or None,
        semconv.RUN_WAIT_STATUS: run.wait_status,
        semconv.RUN_STAGE: run.last_stage,
        semconv.RUN_OPERATION: run.last_operation,
        semconv.RUN_DETAILS_CUT: cut or None,
        semconv.ERROR_PLACE: run.error_place,
        semconv.ERROR_TYPE: run.error_type,
        semconv.CICD_PIPELINE_NAME: run.pipeline,
        semconv.CICD_RUN_ID: run.run_id,
        semconv.CICD_RESULT: str(run.outcome),
    }
    return SpanEnded(
        started.name,
        started.trace_id,
        started.span_id,
        started.parent_span_id,
        started.start,
        max(run.end, started.start),
        0,
        _ERROR if run.outcome in FAILED else _OK,
        run.error_message,
        0,
        _known(attributes),
        list(events) or None,
        [(trace, span, attributes) for trace, span, attributes in started.links] or None,
        started.trace_state,
    )


def _known(attributes: Mapping[str, Any]) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}
