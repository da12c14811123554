"""Opens the run of this process, or joins its parent's, and records into it from then on.

What follows is in `stagewatch.forking` and `stagewatch.exiting`.
"""

from __future__ import annotations

import atexit
import functools
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Span

from stagewatch import child_runs, recording, semconv, tracing
from stagewatch.child_opening import ChildRuns
from stagewatch.exiting import exiting, learn_exit_code
from stagewatch.exporters import metrics
from stagewatch.exporters.journal import JournalWriter
from stagewatch.exporters.page import Words
from stagewatch.exporters.spans import SpanWriter
from stagewatch.forking import forked
from stagewatch.opened import Opened, record
from stagewatch.opening import environment, open_in_journal, span_without_sdk
from stagewatch.processors import errors, throughput
from stagewatch.surroundings import prepare
from stagewatch.system import LINUX

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
    _opened = open_in_journal(prepared, _start_span, attributes, spans, elsewhere=elsewhere)
    if _opened.alone and _opened.owner:
        from stagewatch.exporters.recorder import resident  # few need it

        place = _opened.state_directory, _opened.room
        resident.start(*place, environment(prepared.config), _opened.alone)
    if (_opened.alone or not LINUX) and _opened.owner and "-m" in sys.orig_argv:
        learn_exit_code()
    _begin(_opened)
    children = ChildRuns(_opened, prepared.config)
    child_runs.opener = children.open
    _opened.overhead = time.thread_time_ns() - _began
    _opened.cpu_before = time.process_time()
    _opened.journal.page.set(Words.OVERHEAD, _opened.overhead)
    atexit.register(exiting, _opened, children)
    os.register_at_fork(after_in_child=children.forget)
    os.register_at_fork(after_in_child=functools.partial(forked, _opened))
    return _opened.journal


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


def _start_span(name: str, outside: otel_context.Context) -> Span:
    tracer = trace.get_tracer(semconv.SCOPE, schema_url=semconv.SCHEMA_URL)
    span = tracer.start_span(name, outside)
    found, outer = span.get_span_context(), trace.get_current_span(outside).get_span_context()
    if found.is_valid and found.span_id != outer.span_id:
        return span
    return span_without_sdk(name, outside)  # the API alone hands on what it was given
