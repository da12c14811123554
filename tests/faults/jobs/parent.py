"""Starts another script under the wrapper, in the middle of a stage."""

import subprocess
import sys
from pathlib import Path

from story import last, stage

with stage("load") as counts:
    child = Path(__file__).with_name("child.py")
    launcher = Path(sys.executable).with_name("opentelemetry-instrument")
    result = subprocess.run([launcher, sys.executable, child, "5"])
    print("child", result.returncode)
    counts.records(out=1)
last()
