"""Start-up of a script under test: binds what STAGES says, and appends what it sees to SEEN.

Every line is ``[process, what, stage, error]``; the last of a process says what its trace function
is at exit. Nothing of the recording is involved.
"""

import atexit
import json
import os
import sys

from stagewatch import stage_calls, tracing, wrapping
from stagewatch.instrumentation._binding import Binding, declared_targets
from stagewatch.model import DeclaredStage, Pipeline


def note(*words):
    with open(os.environ["SEEN"], "a") as file:
        file.write(json.dumps([os.getpid(), *words]) + "\n")


class Noted:
    """Stands for an open stage, and notes what is done to it."""

    def __init__(self, name):
        self.name = name
        for hook in tuple(tracing.on_activity):
            hook()
        note("enter", name, None)

    def suspend(self):
        note("suspend", self.name, None)

    def resume(self):
        note("resume", self.name, None)

    def leave(self, error=None, *, frame_rows_in=None, frame_rows_out=None):
        note("leave", self.name, error and type(error).__name__)


if "STAGES" in os.environ:
    declared = json.loads(os.environ["STAGES"])
    pipeline = Pipeline("test", stages={k: DeclaredStage(function=v) for k, v in declared.items()})
    stage_calls.enter = Noted
    atexit.register(lambda: note("exit", repr(sys.gettrace()), None))
    Binding(declared_targets(pipeline), wrapping.wrap).start()
