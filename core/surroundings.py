"""Where this process stands before it opens anything: its configuration, the run it belongs to, and
the trace it was started in."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from msgspec import Struct
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.propagators._envcarrier import EnvironmentGetter, EnvironmentSetter
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from stagewatch import clock, program
from stagewatch.config import Config, is_disabled, load_or_default
from stagewatch.exporters.journal import start_ticks
from stagewatch.exporters.page import PageReader
from stagewatch.model import Pipeline
from stagewatch.recording import Run

_logger = logging.getLogger(__name__)
RUN_VARIABLE = "STAGEWATCH_RUN"


class Prepared(Struct, frozen=True):
    """What is known before anything is opened."""

    config: Config
    pipeline: Pipeline
    parent: program.ParentRun | None
    """The run this process joins, or the one that its own run is a child of."""
    joins: bool


_prepared: Prepared | None = None


def prepare(what: program.Program | None = None) -> Prepared | None:
    """Read configuration and surroundings, once. None: this process is no part of any run.

    *what* this process is about to run, if that is not what Python was told to.
    """
    global _prepared
    if _prepared is None and not is_disabled(os.environ):
        what = what or program.program(sys.orig_argv)
        if what.is_helper:
            return None
        config, fault = load_or_default(os.environ, _working_directory())
        if fault is not None:
            _logger.warning("stagewatch goes on with defaults, its file unused: %s", fault)
        pipeline = config.pipeline_for(what.script, what.module)
        parent = program.parent_run(os.environ.get(RUN_VARIABLE))
        if parent is not None and parent.is_ours and program.is_within():
            return None
        is_child_run = (
            parent is not None
            and not parent.is_ours
            and pipeline.name in config.pipelines
            and pipeline.name != parent.pipeline
        )
        joins = parent is not None and parent.is_alive and not is_child_run
        if parent is not None and parent.is_alive:
            clock.follow(parent.clock)
        if joins and parent is not None:
            pipeline = config.pipelines.get(parent.pipeline, Pipeline(name=parent.pipeline))
        _prepared = Prepared(config, pipeline, parent, joins)
    return _prepared


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed: no reason not to run
        return Path("/")


def surroundings(room: Path, parent: program.ParentRun | None) -> otel_context.Context:
    """The context this process was started in: a stage of its parent, a run, or a trace."""
    if parent is None or not parent.is_alive:
        return propagate.extract(os.environ, getter=EnvironmentGetter())
    span_id = _open_stage_of(room, os.getppid()) or int(parent.span_id, 16)
    return trace.set_span_in_context(
        NonRecordingSpan(
            SpanContext(
                int(parent.trace_id, 16),
                span_id,
                is_remote=True,
                trace_flags=TraceFlags(int(parent.sampled)),
            )
        ),
        propagate.extract(os.environ, getter=EnvironmentGetter()),
    )


def _open_stage_of(room: Path, pid: int) -> int | None:
    """Span id of the stage that process *pid* opened last, read from its status page."""
    found = [(0, 0)]
    for path in room.glob(f"{pid}.*.page"):  # of before or after an exec, of another of its runs
        with suppress(OSError, ValueError, StopIteration):
            page = PageReader(path.read_bytes())
            threads = [thread for thread in page.threads() if any(thread.stages)]
            latest = max(threads, key=lambda thread: thread.since)
            cell = page.cell("stage", next(offset for offset in reversed(latest.stages) if offset))
            found.append((latest.since, cell["span_id"] if cell else 0))
    return max(found)[1] or None


def show_to_children(run: Run) -> None:
    """Tell processes started from here of the run that was opened here."""
    here = program.ParentRun(
        run.run_id,
        os.getpid(),
        start_ticks(),
        f"{run.span.trace_id:032x}",
        f"{run.span.span_id:016x}",
        bool(run.span.trace_flags.sampled),
        run.pipeline.name,
        clock.offset,
    )
    os.environ[RUN_VARIABLE] = here.to_environment()
    propagate.inject(os.environ, run.context, setter=EnvironmentSetter())
