"""Runs of this process beside its own, which may end before it does: streaming queries.

A child run has a journal and a status page of its own, and so all that a run has: heartbeat,
lateness, live view, death certificate. Who watches what it stands for opens and ends it; the end
of the process ends those that are left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from msgspec import Struct
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, redaction, safety
from stagewatch.measures import is_sampled, sampling_threshold, threshold_value, uptime
from stagewatch.model import Outcome
from stagewatch.recording import Recording
from stagewatch.records import RunExiting, TraceSettled
from stagewatch.semconv import ROLE_DETAIL, SPAN_ROLE


class Opener(Protocol):
    """What opens one; None where this process is no part of any run."""

    def __call__(
        self, name: str, attributes: Mapping[str, AttributeValue], attempt: int
    ) -> ChildRun | None: ...


class _Trace:
    """A trace of a child run that is not settled yet."""

    def __init__(self, writer: Any, root: Span) -> None:
        self.begin = writer.begin
        self._write = writer.write
        self._root = root.get_span_context().span_id
        self.ended: list[bytes] = []
        """Ids of spans."""
        self.has_users = False
        """Whether any is the user's own, which are never dropped."""

    def write(self, span: Any) -> None:
        """One has ended."""
        span_id = span.get_span_context().span_id
        self.ended.append(span_id.to_bytes(8, "big"))
        if span_id != self._root and span.kind is SpanKind.INTERNAL:
            self.has_users |= (span.attributes or {}).get(SPAN_ROLE) != ROLE_DETAIL
        self._write(span)


class ChildRun(Struct):
    """One under way. Its `recording` counts for it; in a forked child nothing happens."""

    recording: Recording
    span: Span
    """The run's; it takes attributes, and is never ended here."""
    writer: Any
    """Of its spans; see `stagewatch.exporters.spans`."""
    of_traces: dict[int, Any]
    """By trace id, who writes a trace's spans instead of the process's own writer."""
    release: Callable[[], None]
    """Lets go of the journal."""
    pid: int

    def start_trace(self, name: str, attributes: Mapping[str, AttributeValue], start: int) -> Span:
        """The root of a trace of its own, linked to the run; see `settle`."""
        run = self.recording.run
        span = self.recording.tracer.start_span(
            name,
            Context(),
            attributes=attributes,
            links=[Link(run.span)],
            start_time=start,
        )
        self.of_traces[span.get_span_context().trace_id] = _Trace(self.writer, span)
        return span

    def has_users_spans(self, root: Span) -> bool:
        """Whether the user's own spans ended in the trace, or another library's."""
        trace = self.of_traces.get(root.get_span_context().trace_id)
        return trace is not None and trace.has_users

    def sample(self, root: Span) -> str | None:
        """Whether the trace of *root* is in the sample of quiet ones: the ``th`` value of that."""
        trace_id = root.get_span_context().trace_id.to_bytes(16, "big")
        if not is_sampled(trace_id, sampling_threshold(self.recording.settings.detail_ratio)):
            return None
        return threshold_value(self.recording.settings.detail_ratio)

    def settle(self, root: Span, *, keep: bool, threshold: str = "") -> None:
        """Nothing more will come of the trace of *root*: send its details, or forget them.

        *threshold*: the ``th`` value of the sample that alone has chosen it.
        """
        trace_id = root.get_span_context().trace_id
        trace = self.of_traces.pop(trace_id, None)
        ended = trace.ended if trace is not None else []
        self.recording.sink.append(
            TraceSettled(trace_id.to_bytes(16, "big"), ended, keep, threshold)
        )

    @safety.guarded
    def end(
        self, outcome: Outcome, error_type: str | None = None, message: str | None = None,
        place: str | None = None,
    ) -> None:  # fmt: skip
        """It is over; once. *error_type*: why, where it did not just come to its end; *place*:
        ``file:line in function`` of the user's code."""
        if os.getpid() != self.pid:
            return
        if message is not None and not self.recording.settings.exception_messages:
            message = redaction.message(message)
        self.recording.sink.append(
            RunExiting(
                run_id=self.recording.run.run_id,
                end=clock.now(),
                error_type=error_type,
                error_message=message,
                error_place=place,
                exit_code=None,
                attributes=dict(getattr(self.span, "attributes", None) or {}),
                uptime=uptime(),
                outcome=str(outcome),
            )
        )
        self.recording.close()
        self.release()


opener: Opener | None = None
"""Set by who knows this process's run."""


def open_child_run(
    name: str, attributes: Mapping[str, AttributeValue], attempt: int = 1
) -> ChildRun | None:
    """Open a run of the pipeline declared as *name*, else of one named after this process's.

    None where nothing is recorded, or where its journal cannot be made. *attributes* are the
    run's; *attempt*: 1 for the first.
    """
    if opener is None:
        return None
    try:
        return opener(name, attributes, attempt)
    except Exception as error:
        safety.report(error)
        return None
