"""C code that does not let go of the GIL, long past the deadline."""

import ctypes
import sys
import time

from story import last, note, own, stage

with stage("load") as counts:
    with own("before"):
        pass
    counts.records(out=3)
    note(held=time.time())
    ctypes.PyDLL(None).sleep(int(sys.argv[1]))
    with own("after"):
        pass
last()
