"""Two stages, and in the middle of the second one of many ends."""

import contextlib
import ctypes
import os
import signal
import sys
import time

from story import last, own, ready, stage, wait


def ignored_exit() -> None:
    with contextlib.suppress(SystemExit):
        sys.exit(3)


def stop(*_: object) -> None:
    print("stopping")
    stopped.append(True)


def wait_for_handler() -> None:
    ready()
    while not stopped:
        time.sleep(0.01)


def eat_memory() -> None:
    """Five times what the world of the row has, and no more, wherever this is started."""
    eaten = [b"x" * (1 << 23) for _ in range(128)]
    raise MemoryError(f"nobody minded {len(eaten)} pieces")


stopped: list[bool] = []
ENDS = {
    "normal": lambda: None,
    "exception": lambda: float("Smith"),
    "exit": lambda: sys.exit(3),
    "ignored": ignored_exit,
    "_exit0": lambda: os._exit(0),
    "_exit3": lambda: os._exit(3),
    "wait": wait,
    "handler": wait_for_handler,
    "memory": eat_memory,
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
}

if sys.argv[1] == "handler":
    signal.signal(signal.SIGTERM, stop)
with stage("extract") as counts:
    with own("page"):
        pass
    counts.records(out=5)
with stage("load") as counts:
    counts.records(out=3, rejected=1)
    with own("batch"):
        pass
    last()
    ENDS[sys.argv[1]]()
print("done")
last()
