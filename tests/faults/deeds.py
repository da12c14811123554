"""What the harness does to a job and its recorder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress

from stagewatch.exporters.recorder.start import has_living_recorder
from tests.faults.scene import Scene, is_known, wait_for

BALLAST = "ballast"


def send(number: signal.Signals) -> Callable[[Scene], None]:
    """Send the job a signal."""

    def deed(scene: Scene) -> None:
        scene.killed = time.time()
        os.kill(scene.pid, number)

    return deed


def kill_recorder(scene: Scene) -> None:
    """Kill the recorder, and let the job go on once its keeper has started another."""
    wait_for(lambda: _is_up(scene), "the recorder")
    (old,) = scene.recorders()
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: old not in scene.recorders() and _is_up(scene), "another recorder")


def kill_all(scene: Scene) -> None:
    """Kill keeper, recorder and job, as a batch system does that kills a whole cgroup."""
    wait_for(lambda: _is_up(scene), "the recorder")
    victims = [*scene.keepers(), *scene.recorders(), scene.pid]
    scene.killed = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)


def start_another(scene: Scene) -> None:
    """The next job of the same state directory, on whose start everything hangs."""
    scene.run("child.py 0")


def start_recorder(scene: Scene) -> None:
    """A job before the job: so the recorder is none of the job's surroundings."""
    scene.run("child.py 0", STAGEWATCH_RECORDER_IDLE="1m")


def fill_disk(scene: Scene) -> None:
    """Not one block is left, neither for the job nor for its recorder."""
    wait_for(lambda: is_known(scene), "the run in the history")
    with suppress(OSError), open(scene.state.parent / BALLAST, "wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))


def make_room(scene: Scene) -> None:
    """Somebody has tidied up."""
    (scene.state.parent / BALLAST).unlink()


def _is_up(scene: Scene) -> bool:
    return any(has_living_recorder(room) for room in scene.state.glob("rooms/*"))
