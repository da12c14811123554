"""The Python stack of a process that is stuck, read from outside by py-spy if it is installed."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

_logger = logging.getLogger(__name__)

_PATIENCE_SECONDS: Final = 10.0
_LONGEST: Final = 1 << 16
_PIPE_BYTES: Final = 1 << 20
"""Nobody reads before py-spy is done, and hundreds of threads are more than a pipe holds."""
_HEADING: Final = re.compile(r"^Thread \w+ \(", re.MULTILINE)


class StackDump:
    """One attempt, beside everything else the recorder does. Raises OSError if it cannot begin."""

    def __init__(self, py_spy: str, pid: int) -> None:
        self._until = time.monotonic() + _PATIENCE_SECONDS
        # Never stops the process: it reads its memory while it stands still anyway.
        self._process = subprocess.Popen(
            [py_spy, "dump", "--pid", str(pid), "--nonblocking"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pipesize=_PIPE_BYTES,
        )
        assert self._process.stdout is not None
        self._output = self._process.stdout

    def is_done(self) -> bool:
        """Whether there is nothing more to wait for; a py-spy that hangs is ended."""
        if self._process.poll() is None and time.monotonic() > self._until:
            self._process.kill()
            self._process.wait()
        return self._process.returncode is not None

    def text(self) -> str | None:
        """Once it is done: the stack of every Python thread; None if it could not be read."""
        with self._output:
            output = self._output.read(_LONGEST).decode("utf-8", "replace")
        # What stands above the threads quotes the command line, and that may hold a secret.
        found = _HEADING.search(output)
        if self._process.returncode != 0 or found is None:
            _logger.warning("stagewatch: py-spy could not read the stack of a stuck process")
            return None
        return output[found.start() :].rstrip()

    def cancel(self) -> None:
        """End it, whatever it found."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._output.close()


def find_py_spy() -> str | None:
    """Where it is: on the path, or beside the Python that runs this; None if it is not."""
    return shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
