"""Opens the run of this process, or joins its parent's, and journals what it knows of its end.

No signal handler and no patched exit: how the process really ended, its recorder asks the kernel.
"""

from __future__ import annotations

import atexit
import logging
import os
import resource
import secrets
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from msgspec import Struct
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.propagators._envcarrier import EnvironmentGetter, EnvironmentSetter
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags

from stagewatch import failures, program, recording, redaction, safety, semconv, tracing
from stagewatch.config import Config, Settings, load_or_default, parameters
from stagewatch.exporters import metrics, state
from stagewatch.exporters.journal import (
    JournalWriter,
    boot_id,
    host_id,
    new_key,
    pid_namespace,
    start_ticks,
)
from stagewatch.exporters.page import PageReader, Words
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.exporters.spans import SpanWriter, plain
from stagewatch.model import Outcome, Pipeline
from stagewatch.processors import errors, throughput
from stagewatch.recording import Run
from stagewatch.records import ProcessStarted, RunExiting, RunStarted

_began = time.thread_time_ns()
_logger = logging.getLogger(__name__)
RUN_VARIABLE = "STAGEWATCH_RUN"


class Prepared(Struct, frozen=True):
    """What is known before anything is opened."""

    config: Config
    pipeline: Pipeline
    parent: program.ParentRun | None
    """The run this process joins, or the one that its own run is a child of."""
    joins: bool


class Opened(Struct):
    """What this process holds open; replaced in a forked child."""

    run: Run
    settings: Settings
    journal: JournalWriter
    spans: SpanWriter
    state_directory: Path
    room: Path
    resource: dict[str, Any]
    span: Span | None
    """The run's, never ended here; None in a process that joined."""
    owner: int
    """Pid of the process that says how the run ended; 0 if it is another one."""
    ships_itself: bool
    elsewhere: bool
    overhead: int = 0
    """Nanoseconds of CPU that our start took."""
    cpu_before: float = 0.0
    """Seconds of CPU of the process before its run began, which are not the run's."""


_prepared: Prepared | None = None
_opened: Opened | None = None


def prepare() -> Prepared | None:
    """Read configuration and surroundings, once. None: this process is no part of any run."""
    global _prepared
    if _prepared is None and not _is_disabled(os.environ):
        what = program.program(sys.orig_argv)
        if what.is_helper:
            return None
        config, fault = load_or_default(os.environ, _working_directory())
        if fault is not None:
            _logger.warning("stagewatch goes on with defaults, its file unused: %s", fault)
        pipeline = config.pipeline_for(what.script, what.module)
        parent = program.parent_run(os.environ.get(RUN_VARIABLE))
        is_child_run = (
            parent is not None
            and not parent.is_ours
            and pipeline.name in config.pipelines
            and pipeline.name != parent.pipeline
        )
        joins = parent is not None and parent.is_alive and not is_child_run
        if joins and parent is not None:
            pipeline = config.pipelines.get(parent.pipeline, Pipeline(name=parent.pipeline))
        _prepared = Prepared(config, pipeline, parent, joins)
    return _prepared


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError:  # it was removed: no reason not to run
        return Path("/")


def _is_disabled(environ: Mapping[str, str]) -> bool:
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


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
    copy_on_write = state.is_copy_on_write(room)
    journal = JournalWriter(
        room, new_key(), max_bytes=settings.journal_max_bytes, copy_on_write=copy_on_write
    )
    parent = prepared.parent
    surroundings = _surroundings(room, parent)
    if prepared.joins and parent is not None:
        run_id, span, context = parent.run_id, None, surroundings
    else:
        run_id = secrets.token_hex(16)
        span, context = _start_span(prepared, run_id, surroundings)
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
    journal.append(_process_started(_opened))
    if span is not None:
        journal.append(_run_started(prepared, run, surroundings, directory))
    recorder_start.announce(room, journal.key, _environment(prepared.config), directory)
    _begin(_opened)
    _show_to_children(run, prepared.pipeline.name, is_new=span is not None)
    _opened.overhead = time.thread_time_ns() - _began
    _opened.cpu_before = time.process_time()
    journal.page.set(Words.OVERHEAD, _opened.overhead)
    atexit.register(_exiting)
    os.register_at_fork(after_in_child=_forked)
    return journal


def _begin(opened: Opened) -> None:
    opened.spans.attach(opened.journal)
    recording.start(
        opened.journal,
        opened.run,
        trace.get_tracer(semconv.SCOPE, schema_url=semconv.SCHEMA_URL),
        opened.settings.span_threshold,
    )
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


def _surroundings(room: Path, parent: program.ParentRun | None) -> otel_context.Context:
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
    try:
        newest = max(room.glob(f"{pid}.*.page"), key=lambda path: path.stat().st_mtime_ns)
        page = PageReader(newest.read_bytes())
        threads = [thread for thread in page.threads() if any(thread.stages)]
        latest = max(threads, key=lambda thread: thread.since)
        cell = page.cell("stage", next(offset for offset in reversed(latest.stages) if offset))
        return cell["span_id"] if cell else None
    except (OSError, ValueError, StopIteration):
        return None


def _start_span(
    prepared: Prepared, run_id: str, surroundings: otel_context.Context
) -> tuple[Span, otel_context.Context]:
    name = prepared.pipeline.name
    tracer = trace.get_tracer(semconv.SCOPE, schema_url=semconv.SCHEMA_URL)
    span = tracer.start_span(name, surroundings)
    if not span.get_span_context().is_valid:  # no SDK at all
        span = NonRecordingSpan(
            SpanContext(secrets.randbits(128) or 1, secrets.randbits(64) or 1, False, TraceFlags(1))
        )
    return span, trace.set_span_in_context(span, surroundings)


def _process_started(opened: Opened) -> ProcessStarted:
    run = opened.run
    return ProcessStarted(
        key=opened.journal.key,
        pid=os.getpid(),
        ticks=start_ticks(),
        ppid=os.getppid(),
        host_id=host_id(),
        boot_id=boot_id(),
        pid_namespace=pid_namespace(),
        run_id=run.run_id,
        trace_id=run.span.trace_id.to_bytes(16, "big"),
        opens_run=opened.span is not None and opened.owner == os.getpid(),
        start=time.time_ns(),
        resource=opened.resource,
        pipeline=run.pipeline.name,
        final_exit=opened.ships_itself,
        messages=opened.settings.exception_messages,
        spans_elsewhere=opened.elsewhere,
    )


def _run_started(
    prepared: Prepared, run: Run, surroundings: otel_context.Context, directory: Path
) -> RunStarted:
    settings, parent = prepared.config.settings, prepared.parent
    outer = trace.get_current_span(surroundings).get_span_context()
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
        start=time.time_ns(),
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
    )


def _environment(config: Config) -> dict[str, str]:
    """For the recorder, which does not know whose file it should read: settings as variables."""
    found = dict(os.environ)
    if config.file is not None:
        for setting in parameters():
            if setting.in_file:
                found[setting.variable] = setting.text(config.settings)
    return found


def _show_to_children(run: Run, pipeline: str, *, is_new: bool) -> None:
    if not is_new:
        return
    here = program.ParentRun(
        run.run_id,
        os.getpid(),
        start_ticks(),
        f"{run.span.trace_id:032x}",
        f"{run.span.span_id:016x}",
        bool(run.span.trace_flags.sampled),
        pipeline,
    )
    os.environ[RUN_VARIABLE] = here.to_environment()
    propagate.inject(os.environ, run.context, setter=EnvironmentSetter())


@safety.guarded
def _forked() -> None:
    """In the child: a page and a journal of its own, and nothing of what the parent counted."""
    opened = _opened
    if opened is None:
        return
    # Should the next lines fail, the child records nothing: the parent's journal is not its own.
    tracer = recording.active.tracer if recording.active else None
    recording.stop()
    opened.spans.detach()
    opened.owner = opened.overhead = 0
    if tracer is None:
        return
    opened.journal = JournalWriter(
        opened.room,
        new_key(),
        max_bytes=opened.settings.journal_max_bytes,
        copy_on_write=state.is_copy_on_write(opened.room),
    )
    opened.journal.append(_process_started(opened))
    recorder_start.introduce(opened.room, opened.journal.key, os.environ)
    opened.spans.attach(opened.journal)
    # The tracer is the parent's: asking for one takes a lock that another thread may have held.
    recording.start(opened.journal, opened.run, tracer, opened.settings.span_threshold)
    if not isinstance(tracing.innermost.get(), tracing.OpenStage):
        tracing.innermost.set(recording.active)


def _exiting() -> None:
    """Last of all exit handlers, for it was registered first."""
    began = time.thread_time_ns()
    opened = _opened
    if opened is None:
        return
    if metrics.installed is not None:
        metrics.installed.collect()
    is_owner = opened.owner == os.getpid()
    with safety.guarded:
        if is_owner:
            opened.journal.append(_run_exiting(opened))
    with safety.guarded:
        if opened.overhead:
            spent = opened.overhead + time.thread_time_ns() - began
            opened.journal.page.set(Words.OVERHEAD, spent)
    with safety.guarded:
        if opened.ships_itself:
            from stagewatch.exporters.recorder import run_in_process

            wait = opened.settings.exit_wait
            run_in_process(opened.state_directory, opened.room, os.environ, wait)
        elif is_owner:  # of a child's recorder the opener of the run takes care
            recorder_start.announce_if_none(
                opened.room, opened.journal.key, os.environ, opened.state_directory
            )


def _message(error: BaseException, settings: Settings) -> str | None:
    try:
        text = str(error)
    except Exception:  # their __str__, not ours
        return None
    return text if settings.exception_messages else redaction.message(text)


def _run_exiting(opened: Opened) -> RunExiting:
    error: BaseException | None = getattr(sys, "last_value", None)
    outcome, error_type = failures.verdict(error)
    message = _message(error, opened.settings) if error is not None else None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    attributes = getattr(opened.span, "attributes", None) or {}
    return RunExiting(
        run_id=opened.run.run_id,
        end=time.time_ns(),
        error_type=error_type,
        error_message=message,
        error_place=failures.error_place(error) if error is not None else None,
        exit_code=None if outcome is Outcome.SUCCESS else 1,
        attributes=plain(
            redaction.attributes(attributes, messages=opened.settings.exception_messages)
        ),
        cpu_seconds=max(0.0, usage.ru_utime + usage.ru_stime - opened.cpu_before),
        memory_peak=usage.ru_maxrss * 1024,
    )
