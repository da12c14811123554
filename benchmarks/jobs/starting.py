"""CPU of what starting costs a job beyond its imports: ``starting.py STATE ANSWER``."""

import json
import os
import sys
import time
from pathlib import Path

from stagewatch.exporters import journal, state
from stagewatch.exporters.recorder import start

folder = Path(sys.argv[1])
clock = time.process_time
marks = [clock()]
room = state.room(folder, state.destination(os.environ), journal.pid_namespace())
key = journal.new_key()
writer = journal.JournalWriter(room, key, max_bytes=1 << 28)
marks.append(clock())
start.announce(room, key, {**os.environ, "STAGEWATCH_STATE_DIR": sys.argv[1]}, folder)
marks.append(clock())
parts = {"page and journal": marks[1] - marks[0], "announce": marks[2] - marks[1]}
Path(sys.argv[2]).write_text(json.dumps(parts))
