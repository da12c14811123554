"""What this process holds open for its run, and how its recording begins: in a new process as in a
forked child."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from opentelemetry.trace import Span, Tracer

from stagewatch import clock, recording
from stagewatch.config import Settings
from stagewatch.exporters import state
from stagewatch.exporters.journal import (
    JournalWriter,
    boot_id,
    host_id,
    new_key,
    oom_kills,
    pid_namespace,
    start_ticks,
)
from stagewatch.measures import uptime
from stagewatch.recording import Run
from stagewatch.records import ProcessStarted

if TYPE_CHECKING:
    from stagewatch.exporters.spans import SpanWriter


class Opened(Struct):
    """What this process holds open; changed in a forked child."""

    run: Run
    settings: Settings
    journal: JournalWriter
    spans: SpanWriter | None
    """None where no SDK is there to end any."""
    state_directory: Path
    room: Path
    resource: dict[str, Any]
    span: Span | None
    """The run's, never ended here; None in a process that joined."""
    owner: int
    """Pid of the process that says how the run ended; 0 if it is another one."""
    ships_itself: bool
    elsewhere: bool
    alone: str = ""
    """Why no recorder can be had, where that is so."""
    overhead: int = 0
    """Nanoseconds of CPU that our start took."""
    cpu_before: float = 0.0
    """Seconds of CPU of the process before its run began, which are not the run's."""


def new_journal(room: Path, settings: Settings) -> JournalWriter:
    """Page and journal of this process, empty. Raises OSError where they cannot be made."""
    return JournalWriter(
        room,
        new_key(),
        max_bytes=settings.journal_max_bytes,
        copy_on_write=state.is_copy_on_write(room),
    )


def record(opened: Opened, tracer: Tracer) -> None:
    """Record spans, stages and operations into the journal from now on."""
    if opened.spans is None:
        recording.start(opened.journal, opened.run, tracer, opened.settings)
        return
    opened.spans.attach(opened.journal)
    recording.start(opened.journal, opened.run, tracer, opened.settings, opened.spans.begin)


def process_started(opened: Opened) -> ProcessStarted:
    """First record of this process's journal."""
    run = opened.run
    opened.cpu_before = time.process_time()
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
        start=clock.now(),
        resource=opened.resource,
        pipeline=run.pipeline.name,
        final_exit=opened.ships_itself,
        messages=opened.settings.exception_messages,
        spans_elsewhere=opened.elsewhere,
        uptime=uptime(),
        oom_kills=oom_kills(),
        host=os.uname().nodename,
        cpu_seconds=opened.cpu_before,
    )
