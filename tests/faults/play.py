"""Plays a row in a set-up and judges it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import traceback
from pathlib import Path

from msgspec import Struct

from stagewatch import semconv
from stagewatch.history import open_history
from tests.faults.row import Backend, Row
from tests.faults.scene import (
    JOBS,
    PATIENCE,
    Scene,
    has_ended,
    ours,
    plain_environment,
    recorders_end,
    wait_for,
)
from tests.faults.seen import Seen, arrival, at_receiver, in_history
from tests.faults.verdict import Bare, differences
from tests.faults.worlds import Lacking
from tests.otlp_receiver import OtlpReceiver

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".faults"
OURS = ROOT / ".venv" / "bin"


class Played(Struct, frozen=True):
    """What came of a row in one set-up."""

    row: str
    backend: str
    differences: list[str]
    """Empty: it is green."""
    seconds: float
    lacking: str = ""
    """Why it could not be played at all."""
    late_after: float | None = None
    """Seconds from the deadline to the arrival of "run late" at the receiver."""
    known_after: float | None = None
    """Seconds from the deed to the arrival of the run's span at the receiver."""


def bare(row: Row) -> Bare | None:
    """The job with nothing around it; None where that makes no sense."""
    if row.deed is not None or not row.has_bare:
        return None
    directory = fresh(row, "bare")
    environment = {
        **plain_environment(),
        "PATH": f"{OURS}{os.pathsep}{os.environ['PATH']}",
        "OTEL_SDK_DISABLED": "true",
        "FAULTS_DIRECTORY": str(directory),
    }
    name, *arguments = row.job.split()
    result = subprocess.run(
        ["sh" if name.endswith(".sh") else "python", str(JOBS / name), *arguments],
        cwd=directory, env=environment, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    return Bare(result.returncode, result.stdout, result.stderr)


def play(row: Row, backend: Backend, without_us: Bare | None) -> Played:
    """One row in one set-up, in a directory and with a state of its own."""
    start = time.monotonic()
    figures: dict[str, float | None] = {}
    try:
        found = _play(row, backend, without_us, figures)
    except Lacking as lacking:
        return Played(row.name, backend, [], 0.0, lacking=str(lacking))
    except Exception:
        found = [traceback.format_exc().strip()]
    return Played(row.name, backend, found, time.monotonic() - start, **figures)


def _play(
    row: Row, backend: Backend, without_us: Bare | None, figures: dict[str, float | None]
) -> list[str]:
    directory = fresh(row, backend)
    receiver = None if backend is Backend.NONE else OtlpReceiver()
    try:
        with row.world(directory) as world, recorders_end(world.state):
            if row.config:
                (directory / "stagewatch.yaml").write_text(row.config)
            if receiver is not None and backend is Backend.DOWN:
                receiver.refuse()
            settings = ours(world, receiver)
            scene = Scene(row, backend, directory, world, OURS, receiver, settings)
            scene.play()
            unsettled = _settle(scene)
            places: list[Seen] = [in_history(world.state, scene.pipeline)]
            if receiver is not None:
                places.append(at_receiver(receiver, scene.pipeline, may_repeat=row.may_repeat))
                _measure(scene, receiver, figures)
            return unsettled + differences(scene, places, without_us)
    finally:
        if receiver is not None:
            receiver.close()


def _settle(scene: Scene) -> list[str]:
    """Wait until everything is told; if the backend was away it comes back in between."""
    try:
        if scene.receiver is not None and scene.backend is Backend.DOWN:
            wait_for(lambda: has_ended(scene), "the run's end in the history")
            scene.receiver.serve()
        wait_for(lambda: has_ended(scene, is_sent=True), "everything to be taken in and sent")
    except AssertionError as error:
        return [str(error)]
    return []


def _measure(scene: Scene, receiver: OtlpReceiver, figures: dict[str, float | None]) -> None:
    """How soon the receiver knew."""
    if scene.backend is not Backend.ALIVE:
        return
    known = arrival(receiver, scene.pipeline)
    if scene.killed and known is not None:
        figures["known_after"] = known - scene.killed
    late = arrival(receiver, semconv.RUN_LATE)
    with open_history(scene.state, readonly=True) as history:
        for run in history.runs(scene.pipeline, limit=1):
            if late is not None and run.deadline is not None:
                figures["late_after"] = late - run.deadline / 1e9


def fresh(row: Row, setup: str) -> Path:
    """An empty directory for a row in a set-up."""
    path = PLACE / re.sub(r"\W+", "-", row.name).strip("-") / re.sub(r"\W+", "-", setup)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
