"""Wall time that no step of the clock changes, the same for all processes of a run.

The clock is looked at once, when the run opens; from then on time is counted by
`stagewatch.measures.uptime`, which nobody sets. So no duration is negative, and what happened
inside a stage lies inside it, whatever NTP or an operator does meanwhile.
"""

from __future__ import annotations

import time

from stagewatch.measures import uptime

offset = time.time_ns() - uptime()
"""Nanoseconds between the epoch and the boot, as the run's opener saw them."""


def now() -> int:
    """Nanoseconds since the epoch."""
    return uptime() + offset


def follow(parent_offset: int) -> None:
    """Count from where the process counts whose run is joined; 0 if that is unknown."""
    global offset
    offset = parent_offset or offset
