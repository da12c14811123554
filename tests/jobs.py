"""Real jobs under ``opentelemetry-instrument``, in their own state directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stagewatch.history import open_history
from stagewatch.model import Run

BIN = Path(sys.executable).parent
IDLE = "0.5"
"""Seconds after which a recorder without jobs leaves: tests leave nothing behind."""


class Jobs:
    """Runs scripts in a directory, and reads what became of them."""

    def __init__(self, directory: Path, patience: float = 60) -> None:
        self.directory = directory
        self.patience = patience
        self.state = directory / "state"
        self.environment = {
            **{
                name: value
                for name, value in os.environ.items()
                if not name.startswith(("OTEL_", "STAGEWATCH_")) and name != "TRACEPARENT"
            },
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OTEL_PYTHON_DISTRO": "stagewatch",
            "OTEL_PYTHON_CONFIGURATOR": "stagewatch",
            "STAGEWATCH_STATE_DIR": str(self.state),
            "STAGEWATCH_RECORDER_IDLE": IDLE,
        }

    def script(self, source: str, name: str = "etl.py") -> Path:
        """Write a script."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        return path

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        """``opentelemetry-instrument COMMAND``; the caller waits for it."""
        return subprocess.Popen(
            [str(BIN / "opentelemetry-instrument"), *map(str, command)],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, source: str, name: str = "etl.py", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end."""
        process = self.start("python", self.script(source, name), **environment)
        out, err = process.communicate(timeout=self.patience)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def runs(self, ended: int = 1, timeout: float = 20) -> list[Run]:
        """The runs in the history, oldest first, once *ended* of them have."""

        def found() -> list[Run]:
            try:
                with open_history(self.state, readonly=True) as history:
                    return sorted(history.runs(limit=1000), key=lambda run: run.start)
            except Exception:  # not made yet
                return []

        wait_for(lambda: sum(run.end is not None for run in found()) >= ended, timeout)
        return found()

    def history(self) -> Any:
        """The history, for reading."""
        return open_history(self.state, readonly=True)

    def tree(self, run: Run) -> Any:
        """Spans below the run's as nested ``{name: [children]}``."""
        with self.history() as history:
            rows = list(history.spans(run.run_id))
        children: dict[bytes, list[Any]] = {}
        for row in rows:
            children.setdefault(row.parent_span_id, []).append(row)

        def below(span_id: bytes) -> list[Any]:
            found = sorted(children.get(span_id, ()), key=lambda row: row.start)
            return [{row.name: below(row.span_id)} for row in found]

        return below(run.span_id)


def without_us(jobs: Jobs, script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Plain ``python SCRIPT`` to its end."""
    return subprocess.run(
        [sys.executable, script],
        cwd=jobs.directory,
        env={**jobs.environment, **environment},
        capture_output=True,
        text=True,
        timeout=jobs.patience,
    )


def wait_for(predicate: Callable[[], object], timeout: float = 20) -> None:
    """Until *predicate* is true; AssertionError after *timeout* seconds."""
    until = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < until, f"still not so after {timeout} s"
        time.sleep(0.02)


def end_recorders(jobs: Jobs) -> None:
    """End what the test itself started: recorders of this state directory."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if str(jobs.state).encode() in command and b"stagewatch" in command:
            os.kill(int(entry.name), signal.SIGTERM)
