"""Out of memory: the kernel's counters of processes it killed for want of memory (decision 11).

Imported by jobs, too, which note the counters at their start.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

_MOUNT: Final = "/sys/fs/cgroup"
VMSTAT: Final = "/proc/vmstat"
"""Counts all kills of the machine: only where no cgroup's counter can be read."""
_LONGEST: Final = 1 << 16


def kills(pid: int | str = "self") -> dict[str, int]:
    """The counter that rises when *pid* is killed for want of memory, by the file it stands in.

    Empty where there is none.
    """
    for path in (*counters(_read(f"/proc/{pid}/cgroup") or b""), VMSTAT):
        count = read(path)
        if count is not None:
            return {path: count}
    return {}


def read(path: str) -> int | None:
    """``oom_kill`` in a file of the cgroup's, or in ``vmstat``; None if it is not there."""
    text = _read(path) or b""
    for line in text.splitlines():
        if line.startswith(b"oom_kill "):
            return int(line[9:])
    return None


def counters(cgroups: bytes, mount: str = _MOUNT) -> Iterator[str]:
    """Files to try, the best first. *cgroups*: ``/proc/PID/cgroup``.

    A kill counts for the cgroup of the victim itself, in either version.
    """
    lines = [
        line.split(":", 2) for line in os.fsdecode(cgroups).splitlines() if line.count(":") > 1
    ]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            # A container sees its own cgroup as the root, under a name of the host's.
            for place in dict.fromkeys((path.rstrip("/"), "")):
                yield f"{mount}/memory{place}/memory.oom_control"
    for _, controllers, path in lines:
        if not controllers:
            place = path.rstrip("/")
            while True:  # the next above where memory is accounted for
                yield f"{mount}{place}/memory.events.local"
                yield f"{mount}{place}/memory.events"
                if not place:
                    break
                place = place.rpartition("/")[0]


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(descriptor, _LONGEST)
    except OSError:
        return None
    finally:
        os.close(descriptor)
