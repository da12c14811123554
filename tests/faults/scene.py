"""One row in one set-up: starts the job, does the deed, and waits until all is told."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stagewatch.history import open_history
from tests.faults.row import Backend, Row
from tests.faults.worlds import World
from tests.otlp_receiver import OtlpReceiver

JOBS = Path(__file__).parent / "jobs"
RECORDER = "stagewatch.exporters.recorder"
PATIENCE = 90.0
"""Seconds for anything that is waited for; then the row is red."""


class Told:
    """What the job's notes say that truly happened."""

    def __init__(self, directory: Path) -> None:
        path = directory / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        self.notes: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def ids(self) -> dict[str, set[str]]:
        """Ids by name, of all that must be there: what began as a stage or ended as a span."""
        found: dict[str, set[str]] = {}
        for note in self.notes:
            if "id" in note:
                name = note.get("begun") or note.get("open") or note["span"]
                found.setdefault(name, set()).add(note["id"])
        return found

    def seconds(self) -> dict[str, tuple[float, float]]:
        """Least and most that stages can have taken, where all their calls ended well."""
        begun = Counter(note["begun"] for note in self.notes if "begun" in note)
        ended: dict[str, list[dict[str, Any]]] = {}
        for note in self.notes:
            if "ended" in note:
                ended.setdefault(note["ended"], []).append(note)
        return {
            name: (sum(note["least"] for note in each), sum(note["most"] for note in each))
            for name, each in ended.items()
            if len(each) == begun[name]
        }

    def spans(self, which: str) -> int:
        """How many stages and spans have ``begun``, or ``ended``; a user's own are noted once."""
        single = sum("span" in note or which in note for note in self.notes)
        return single + sum(note["count"] for note in self.notes if "burst" in note)

    def fact(self, name: str) -> float | None:
        """The last note of this name."""
        return next((note[name] for note in reversed(self.notes) if name in note), None)


class Scene:
    """A job in its directory and what surrounds it."""

    def __init__(
        self, row: Row, backend: Backend, directory: Path, world: World, python: Path,
        receiver: OtlpReceiver | None, environment: dict[str, str],
    ) -> None:  # fmt: skip
        self.row = row
        self.backend = backend
        self.directory = directory
        self.world = world
        self.receiver = receiver
        self.python = python
        """The ``bin`` of the virtual environment."""
        self.environment = {
            **plain_environment(),
            "PATH": f"{python}{os.pathsep}{os.environ['PATH']}",
            "FAULTS_DIRECTORY": str(directory),
            **environment,
            **world.environment,
        }
        self.process: subprocess.Popen[str] | None = None
        self.out = self.err = ""
        self.exit: int | None = None
        self.started = self.ended = self.killed = 0.0
        """Seconds since the epoch; `killed`: when a deed sent it a signal."""

    @property
    def state(self) -> Path:
        return self.world.state

    @property
    def pipeline(self) -> str:
        """What it is called without a configuration: as its script."""
        return Path(self.row.job.split()[0]).stem

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def play(self) -> None:
        """From the job's start to its end."""
        if self.row.before is not None:
            self.row.before(self)
        self.started = time.time()
        with subprocess.Popen(
            [*self.world.prefix, *self._command()],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as self.process:
            if self.row.deed is not None:
                wait_for((self.directory / "ready").exists, "the job to be ready")
                self.row.deed(self)
                if not self.killed:
                    (self.directory / "go").touch()
            self.out, self.err = self.process.communicate(timeout=PATIENCE)
            self.ended = time.time()
        self.exit = self.process.returncode
        if self.row.after is not None:
            self.row.after(self)

    def run(self, job: str, **environment: str) -> None:
        """Another job of the same state directory, to its end."""
        subprocess.run(
            self._command(job),
            cwd=self.directory,
            env={**self.environment, "FAULTS_DIRECTORY": os.devnull, **environment},
            capture_output=True,
            timeout=PATIENCE,
        )

    def recorders(self) -> list[int]:
        """Pids of the living recorders of the state directory."""
        return [pid for pid, is_keeper in _of_state(self.state) if not is_keeper]

    def keepers(self) -> list[int]:
        """Pids of the shells that would restart them."""
        return [pid for pid, is_keeper in _of_state(self.state) if is_keeper]

    def told(self) -> Told:
        return Told(self.directory)

    def _command(self, job: str | None = None) -> list[str]:
        name, *arguments = (job or self.row.job).split()
        first, *rest = self.row.launcher
        return [str(self.python / first), *rest, str(JOBS / name), *arguments]


def plain_environment() -> dict[str, str]:
    """The caller's, without anything that steers Python, OpenTelemetry or us."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "STAGEWATCH_", "PYTHON", "FAULTS_"))
        and name not in ("TRACEPARENT", "TRACESTATE", "VIRTUAL_ENV")
    } | {"PYTHONDONTWRITEBYTECODE": "1"}


def ours(world: World, receiver: OtlpReceiver | None) -> dict[str, str]:
    """Settings of our column: every detail counts, and only I/O is a span of its own."""
    settings = {
        "OTEL_PYTHON_DISTRO": "stagewatch",
        "OTEL_PYTHON_CONFIGURATOR": "stagewatch",
        "STAGEWATCH_STATE_DIR": str(world.asked),
        "STAGEWATCH_RECORDER_IDLE": "1s",
        "STAGEWATCH_DETAIL_RATIO": "1",
        "STAGEWATCH_SPAN_THRESHOLD": "1m",
    }
    return settings | exporter(receiver)


def exporter(receiver: OtlpReceiver | None) -> dict[str, str]:
    if receiver is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


def has_ended(scene: Scene, *, is_sent: bool = False) -> bool:
    """Whether the history knows the end of the run and of all processes; *is_sent*: and nothing
    waits to be sent."""
    if any(scene.state.glob("rooms/*/*.journal")):
        return False
    try:
        with open_history(scene.state, readonly=True) as history:
            runs = history.runs(scene.pipeline)
            is_over = bool(runs) and all(run.end is not None for run in runs)
            return is_over and not (is_sent and history.pending())
    except (OSError, sqlite3.Error):  # not made yet
        return False


def is_known(scene: Scene) -> bool:
    """Whether the history knows the run."""
    try:
        with open_history(scene.state, readonly=True) as history:
            return bool(history.runs(scene.pipeline))
    except (OSError, sqlite3.Error):  # not made yet
        return False


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Until *condition* holds; AssertionError with *what* was waited for after *seconds*."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


@contextmanager
def recorders_end(state: Path) -> Iterator[None]:
    """Whatever recorder lives for *state* after the block is ended, by its pid."""
    try:
        yield
    finally:
        for pid, _ in _of_state(state):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        with suppress(AssertionError):
            wait_for(lambda: not _of_state(state), "the recorder to leave", 10)


def _of_state(state: Path) -> list[tuple[int, bool]]:
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(state) in words and RECORDER.encode() in b" ".join(words):
                is_keeper = b"python" not in os.fsencode(Path(os.readlink(entry / "exe")).name)
                found.append((int(entry.name), is_keeper))
    return found


assert sys.platform == "linux"
