"""Becomes another program, in the middle of a stage."""

import os
import sys
from pathlib import Path

from story import own, stage

with stage("before") as counts:
    counts.records(out=4)
    with own("step"):
        pass
    child = Path(__file__).with_name("child.py")
    os.execv(sys.executable, [sys.executable, str(child), "5"])
