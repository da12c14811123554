"""The clock is set back by an hour in the middle of a stage; here it is faked, in this process.

Everything that holds a wall clock is given the wrong one; clocks that nobody can set stay.
"""

import sys
import time

from story import note, own, stage

HOUR = 3600
real, real_ns = time.time, time.time_ns
wrong = {
    real: lambda: real() - HOUR,
    real_ns: lambda: real_ns() - HOUR * 10**9,
}


def set_back() -> None:
    for module in list(sys.modules.values()):
        if module.__name__ == __name__:
            continue
        for name, value in list(vars(module).items()):
            if value is real or value is real_ns:
                setattr(module, name, wrong[value])


with stage("extract") as counts:
    with own("page"):
        pass
    counts.records(out=5)
with stage("load") as counts:
    time.sleep(0.3)
    set_back()
    time.sleep(0.3)
    with own("batch"):
        pass
    counts.records(out=3)
note(last=real())
