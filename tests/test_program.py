"""What Python was told to run, and whose child it is."""

from __future__ import annotations

import os

import pytest

from stagewatch.exporters.journal import start_ticks
from stagewatch.program import ParentRun, Program, parent_run, program


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["python", "etl.py", "-m", "x"], Program(script="etl.py")),
        (
            ["python", "-u", "-X", "dev", "-W", "error", "jobs/etl.py"],
            Program(script="jobs/etl.py"),
        ),
        (["python", "-m", "jobs.sales", "--day", "1"], Program(module="jobs.sales")),
        (["python", "-mjobs.sales"], Program(module="jobs.sales")),
        (["python", "-um", "jobs.sales"], Program(module="jobs.sales")),
        (["/venv/bin/python", "/venv/bin/nightly"], Program(script="/venv/bin/nightly")),
        (["python", "-c", "print(1)"], Program()),
        (["python"], Program()),
        (["python", "-"], Program()),
        (
            ["python", "-s", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"],
            Program(),
        ),
        (
            ["python", "-c", "from multiprocessing.resource_tracker import main;main(4)"],
            Program(is_helper=True),
        ),
        (["python", "-m", "pyspark.daemon"], Program(module="pyspark.daemon", is_helper=True)),
        (
            ["python3", "/venv/bin/find_spark_home.py"],
            Program(script="/venv/bin/find_spark_home.py", is_helper=True),
        ),
        (
            ["python3", "-c", "from pyspark.util import spark_connect_mode; print(1)"],
            Program(is_helper=True),
        ),
        (["python", "-m", "pyspark.worker"], Program(module="pyspark.worker", is_helper=True)),
    ],
)
def test_program(argv: list[str], expected: Program) -> None:
    """Options of the interpreter are told from those of the script."""
    assert program(argv) == expected


def test_parent_run_round_trip() -> None:
    """What a run shows to its children is what they read, dots in the pipeline's name included."""
    here = ParentRun("a" * 32, os.getpid(), start_ticks(), "b" * 32, "c" * 16, True, "my.sales")
    assert parent_run(here.to_environment()) == here
    assert here.is_alive
    assert here.is_ours


def test_dead_parent() -> None:
    """A pid that was given to another process since is not the parent."""
    gone = ParentRun("a" * 32, os.getpid(), start_ticks() - 1, "b" * 32, "c" * 16, True, "x")
    assert not gone.is_alive
    assert not gone.is_ours


@pytest.mark.parametrize("value", [None, "", "x", "1.2.3", "a.b.c.d.e.f.g", "airflow"])
def test_foreign_value(value: str | None) -> None:
    """Anything else under that name is not a run of ours."""
    assert parent_run(value) is None
