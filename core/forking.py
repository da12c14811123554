"""What a forked child does before it goes on."""

from __future__ import annotations

import os

from stagewatch import recording, safety, tracing
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.opened import Opened, new_journal, process_started, record


@safety.guarded
def forked(opened: Opened) -> None:
    """In the child: a page and a journal of its own, and nothing of what the parent counted."""
    # Should the next lines fail, the child records nothing: the parent's journal is not its own.
    # The tracer is the parent's: asking for one takes a lock that another thread may have held.
    tracer = recording.active.tracer if recording.active else None
    recording.stop()
    if opened.spans is not None:
        opened.spans.detach()
    opened.owner = opened.overhead = 0
    if tracer is None:
        return
    opened.journal = new_journal(opened.room, opened.settings)
    opened.journal.append(process_started(opened))
    recorder_start.introduce(opened.room, opened.journal.key, os.environ)
    record(opened, tracer)
    if not isinstance(tracing.innermost.get(), tracing.OpenStage):
        tracing.innermost.set(recording.active)
