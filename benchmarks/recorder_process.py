"""The recorder as the benchmarks see it from outside: its process, CPU and memory."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MODULE = "stagewatch.exporters.recorder"
_TICK = os.sysconf("SC_CLK_TCK")


class RecorderProcess:
    """The living recorder of one state directory."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def cpu(self) -> float:
        """Seconds so far; a fraction finer than a tick where the kernel tells."""
        with suppress(OSError):
            # Sum of run times in ns over its threads: /proc/PID/stat counts ticks of 10 ms.
            return (
                sum(
                    int(task.joinpath("schedstat").read_text().split()[0])
                    for task in Path(f"/proc/{self.pid}/task").iterdir()
                )
                / 1e9
            )
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def rss(self) -> int:
        """Bytes of resident memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )

    def peak_rss(self) -> int:
        """Bytes of resident memory at its highest."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self, patience: float = 10.0) -> None:
        """SIGTERM to this one process, and wait until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)


def find_recorder(state: Path, patience: float = 5.0) -> RecorderProcess:
    """The recorder that looks after `state`; by its command line.

    Raises RuntimeError when there is none within `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                command = (entry / "cmdline").read_text()
                # Its keeper, a shell, has the same words behind it.
                is_python = "python" in Path(os.readlink(entry / "exe")).name
                if is_python and MODULE in command and str(state) in command.split("\0"):
                    return RecorderProcess(int(entry.name))
        time.sleep(0.05)
    raise RuntimeError(f"no recorder for {state}")


@contextmanager
def recorder_ends(state: Path) -> Iterator[None]:
    """Whatever recorder lives for `state` after the block is ended, by its pid."""
    try:
        yield
    finally:
        with suppress(RuntimeError):
            find_recorder(state, patience=0.3).stop()
