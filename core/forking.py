"""What a forked child does before it goes on."""

from __future__ import annotations

import os
from functools import partial

from stagewatch import recording, safety, tracing
from stagewatch.attaching import attach, detach
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.opened import Opened, process_started


@safety.guarded
def forked(opened: Opened) -> None:
    """In the child: page and journal of its own from the first record on, and nothing of what the
    parent counted."""
    # Should the next lines fail, the child records nothing: the parent's journal is not its own.
    # The tracer is the parent's: asking for one takes a lock that another thread may have held.
    tracer = recording.active.tracer if recording.active else None
    detach(opened)
    opened.owner = opened.overhead = 0
    if tracer is None:
        return
    # Most forked children are about to exec, and never need either.
    opened.journal = opened.journal.of_child(partial(_introduce, opened))
    attach(opened, tracer)
    found = tracing.innermost.get()
    if found is None or isinstance(found, recording.Recording):
        tracing.innermost.set(recording.active)


def _introduce(opened: Opened) -> None:
    """The child has something to say."""
    opened.journal.append(process_started(opened))
    recorder_start.introduce(opened.room, opened.journal.key, os.environ)
