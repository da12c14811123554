"""Opens the run of this process, or joins its parent's, in the journal: what a job under an SDK and
a command without one have in common."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from stagewatch import clock
from stagewatch.config import Config, parameters
from stagewatch.exporters import state
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.measures import uptime
from stagewatch.opened import Opened, new_journal, process_started
from stagewatch.recording import Run
from stagewatch.records import RunStarted
from stagewatch.surroundings import Prepared, show_to_children, surroundings

if TYPE_CHECKING:
    from stagewatch.exporters.spans import SpanWriter

StartSpan = Callable[[str, otel_context.Context], Span]
"""Starts the run's span, of this name and in this context."""


def open_in_journal(
    prepared: Prepared,
    start_span: StartSpan,
    attributes: Mapping[str, Any],
    spans: SpanWriter | None = None,
    *,
    elsewhere: bool = False,
) -> Opened:
    """Write the start of process and run, tell the recorder of them, and child processes too.

    *attributes*: of the resource. *elsewhere*: another distribution's SDK exports the spans.
    Raises OSError where neither the state directory nor a temporary one can be written.
    """
    settings = prepared.config.settings
    directory, room = state.place(settings.state_dir, os.environ)
    journal = new_journal(room, settings)
    parent = prepared.parent
    outside = surroundings(room, parent)
    if prepared.joins and parent is not None:
        run_id, span, context = parent.run_id, None, outside
    else:
        run_id = secrets.token_hex(16)
        span = start_span(prepared.pipeline.name, outside)
        context = trace.set_span_in_context(span, outside)
    span_context = trace.get_current_span(context).get_span_context()
    opened = Opened(
        run=Run(run_id, prepared.pipeline, context, span_context),
        settings=settings,
        journal=journal,
        spans=spans,
        state_directory=directory,
        room=room,
        resource=dict(attributes),
        span=span,
        owner=os.getpid() if span is not None or (parent is not None and parent.is_ours) else 0,
        ships_itself=recorder_start.dies_with_us(),
        elsewhere=elsewhere,
    )
    journal.append(process_started(opened))
    if span is not None:
        journal.append(_run_started(prepared, opened.run, outside))
    found = environment(prepared.config)
    opened.alone = recorder_start.announce(room, journal.key, found, directory).alone
    if opened.alone:
        opened.ships_itself = True
    if span is not None:
        show_to_children(opened.run)
    return opened


def span_without_sdk(name: str, outside: otel_context.Context) -> Span:
    """A span's ids, in the trace of *outside* or in a new one.

    It is sampled as the SDK would sample it, which is loaded only where a sampler was chosen.
    """
    outer = trace.get_current_span(outside).get_span_context()
    trace_id = outer.trace_id if outer.is_valid else secrets.randbits(128) or 1
    sampled = bool(outer.trace_flags.sampled) if outer.is_valid else True
    if os.environ.get("OTEL_TRACES_SAMPLER", "").strip():
        from opentelemetry.sdk.trace import sampling

        chosen = sampling._get_from_env_or_default()
        decision = chosen.should_sample(outside, trace_id, name).decision
        sampled = decision is sampling.Decision.RECORD_AND_SAMPLE
    own = SpanContext(
        trace_id,
        secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=TraceFlags(int(sampled)),
        trace_state=outer.trace_state,
    )
    return NonRecordingSpan(own)


def _run_started(prepared: Prepared, run: Run, outside: otel_context.Context) -> RunStarted:
    settings, parent = prepared.config.settings, prepared.parent
    outer = trace.get_current_span(outside).get_span_context()
    links: list[tuple[bytes, bytes, dict[str, Any]]] = []
    if parent is not None and not parent.is_alive:
        links.append((bytes.fromhex(parent.trace_id), bytes.fromhex(parent.span_id), {}))
    return RunStarted(
        run_id=run.run_id,
        trace_id=run.span.trace_id.to_bytes(16, "big"),
        span_id=run.span.span_id.to_bytes(8, "big"),
        parent_span_id=outer.span_id.to_bytes(8, "big") if outer.is_valid else b"",
        pipeline=run.pipeline.name,
        name=run.pipeline.name,
        start=clock.now(),
        sampled=run.span.trace_flags.sampled,
        attempt=settings.attempt,
        scheduled=settings.scheduled_time,
        deadline=None,
        owner=run.pipeline.owner,
        version=run.pipeline.version,
        attributes={},
        parent_run_id=parent.run_id if parent is not None and parent.is_alive else None,
        trace_state=run.span.trace_state.to_header(),
        links=links,
        declared=run.pipeline if run.pipeline.name in prepared.config.pipelines else None,
        uptime=uptime(),
    )


def environment(config: Config) -> dict[str, str]:
    """For the recorder, which does not know whose file it should read: settings as variables."""
    found = dict(os.environ)
    if config.file is not None:
        for setting in parameters():
            if setting.in_file:
                found[setting.variable] = setting.text(config.settings)
    return found
