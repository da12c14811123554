"""What a Python task of Spark costs more where executors are opted in."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import (
    JOBS,
    ROOT,
    Row,
    Worker,
    fresh_directory,
    interleave,
    plain_environment,
    spread,
)

BATCH = 200
ROUNDS = 25
_PYTHON = ROOT / ".venv-spark" / "bin" / "python"


def measure() -> list[Row]:
    """The CPU of a worker's tasks, with and without us; not of its first ones, which import."""
    room = fresh_directory("executors") / "rooms" / "local-0"
    command = [str(_PYTHON), str(JOBS / "python_tasks.py"), str(room)]
    environment = plain_environment()
    with (
        Worker([*command, "without"], environment) as first,
        Worker([*command, "without"], environment) as second,
        Worker([*command, "with"], environment) as ours,
    ):
        workers = {"without": first, "again": second, "with": ours}
        seconds = interleave(
            {name: partial(worker.batch, BATCH) for name, worker in workers.items()}, ROUNDS
        )

    def added(name: str) -> list[float]:
        pairs = zip(seconds[name], seconds["without"], strict=True)
        return [(ours - plain) / BATCH * 1e3 for ours, plain in pairs]

    cost, control = spread(added("with")), spread(added("again"))
    return [
        Row(
            "executors on: a Python task, with − without, CPU",
            "≤ 0.5 ms",
            f"{cost.median:.2f} ms",
            cost.median <= 0.5,
            f"quartiles {cost.low:.2f}–{cost.high:.2f}; A/A control {control.median:+.3f}; "
            "the worker's own part of a task, without the JVM's",
            {"ms_added": vars(cost), "ms_added_control": vars(control)},
        )
    ]
