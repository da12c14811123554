"""All that writes, attached to one journal or to none."""

from __future__ import annotations

from opentelemetry.trace import Tracer

from stagewatch import recording
from stagewatch.exporters import logs, metrics
from stagewatch.exporters.journal import JournalWriter
from stagewatch.opened import Opened, record


def attach(opened: Opened, tracer: Tracer) -> None:
    """Record everything into the journal from now on."""
    record(opened, tracer)
    _attach_others(opened.journal)


def detach(opened: Opened) -> None:
    """Record nothing any more."""
    recording.stop()
    if opened.spans is not None:
        opened.spans.detach()
    _attach_others(None)


def _attach_others(journal: JournalWriter | None) -> None:
    logs.attach(journal)
    if metrics.installed is not None:
        metrics.installed.attach(journal)
