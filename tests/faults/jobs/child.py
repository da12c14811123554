"""One stage and the exit code that was asked for: what others start."""

import sys

from story import last, own, stage

with stage("child") as counts:
    counts.records(out=2)
    with own("step"):
        pass
last()
sys.exit(int(sys.argv[1]))
