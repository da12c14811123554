"""Opens the run of this process, or joins its parent's.

What follows is in `stagewatch.forking` and `stagewatch.exiting`.
"""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from stagewatch import clock, recording, semconv, tracing
from stagewatch.config import Config, parameters
from stagewatch.exiting import exiting
from stagewatch.exporters import metrics, state
from stagewatch.exporters.journal import JournalWriter, pid_namespace
from stagewatch.exporters.page import Words
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.exporters.spans import SpanWriter
from stagewatch.forking import forked
from stagewatch.measures import uptime
from stagewatch.opened import Opened, new_journal, process_started, record
from stagewatch.processors import errors, throughput
from stagewatch.recording import Run
from stagewatch.records import RunStarted
from stagewatch.surroundings import Prepared, prepare, show_to_children, surroundings

_began = time.thread_time_ns()
_opened: Opened | None = None


def open_run(
    spans: SpanWriter | None, attributes: Mapping[str, Any], *, elsewhere: bool
) -> JournalWriter | None:
    """Open the run and start recording; None where this process is no part of any.

    *attributes*: of the resource. *elsewhere*: another distribution's SDK exports the spans.
    Raises OSError where neither the state directory nor a temporary one can be written.
    """
    global _opened
    prepared = prepare()
    if prepared is None or _opened is not None:
        return None
    settings = prepared.config.settings
    directory = state.state_directory(
        settings.state_dir, is_default="STAGEWATCH_STATE_DIR" not in os.environ
    )
    goal = state.destination(os.environ)
    room = state.room(directory, goal, pid_namespace())
    journal = new_journal(room, settings)
    parent = prepared.parent
    outside = surroundings(room, parent)
    if prepared.joins and parent is not None:
        run_id, span, context = parent.run_id, None, outside
    else:
        run_id = secrets.token_hex(16)
        span, context = _start_span(prepared, run_id, outside)
    span_context = trace.get_current_span(context).get_span_context()
    run = Run(run_id, prepared.pipeline, context, span_context)
    ships_itself = recorder_start.dies_with_us()
    _opened = Opened(
        run=run,
        settings=settings,
        journal=journal,
        spans=spans or SpanWriter(messages=settings.exception_messages),
        state_directory=directory,
        room=room,
        resource=dict(attributes),
        span=span,
        owner=os.getpid() if span is not None or (parent is not None and parent.is_ours) else 0,
        ships_itself=ships_itself,
        elsewhere=elsewhere,
    )
    journal.append(process_started(_opened))
    if span is not None:
        journal.append(_run_started(prepared, run, outside))
    environment = _environment(prepared.config)
    announced = recorder_start.announce(room, journal.key, environment, directory)
    if announced.alone:
        _opened.ships_itself = True
        if _opened.owner:
            from stagewatch.exporters.recorder import resident  # few need it

            resident.start(directory, room, environment, announced.alone)
    _begin(_opened)
    if span is not None:
        show_to_children(run)
    _opened.overhead = time.thread_time_ns() - _began
    _opened.cpu_before = time.process_time()
    journal.page.set(Words.OVERHEAD, _opened.overhead)
    atexit.register(exiting, _opened)
    os.register_at_fork(after_in_child=functools.partial(forked, _opened))
    return journal


def _begin(opened: Opened) -> None:
    record(opened, trace.get_tracer(semconv.SCOPE, schema_url=semconv.SCHEMA_URL))
    tracing.before_stage_ends[:] = [throughput.attributes, errors.attributes]
    tracing.after_stage_ended[:] = [_collect_metrics]
    tracing.innermost.set(recording.active)
    _set_default_context(opened.run.context)


def _collect_metrics() -> None:
    if metrics.installed is not None:
        metrics.installed.collect_if_due()


def _set_default_context(context: otel_context.Context) -> None:
    """Make the run the parent in every thread, whoever starts it.

    A context that is attached holds for this thread only; threads of a pool would be orphans.
    """
    runtime = otel_context._RUNTIME_CONTEXT
    if isinstance(getattr(runtime, "_current_context", None), ContextVar):
        runtime._current_context = ContextVar("current_context", default=context)  # type: ignore[attr-defined]
    else:
        otel_context.attach(context)


def _start_span(
    prepared: Prepared, run_id: str, outside: otel_context.Context
) -> tuple[Span, otel_context.Context]:
    name = prepared.pipeline.name
    tracer = trace.get_tracer(semconv.SCOPE, schema_url=semconv.SCHEMA_URL)
    span = tracer.start_span(name, outside)
    if not span.get_span_context().is_valid:  # no SDK at all
        span = NonRecordingSpan(
            SpanContext(secrets.randbits(128) or 1, secrets.randbits(64) or 1, False, TraceFlags(1))
        )
    return span, trace.set_span_in_context(span, outside)


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


def _environment(config: Config) -> dict[str, str]:
    """For the recorder, which does not know whose file it should read: settings as variables."""
    found = dict(os.environ)
    if config.file is not None:
        for setting in parameters():
            if setting.in_file:
                found[setting.variable] = setting.text(config.settings)
    return found
