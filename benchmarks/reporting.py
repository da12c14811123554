"""How long `stagewatch report` takes with a long history."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from benchmarks.harness import (
    JOBS,
    OURS,
    Row,
    fresh_directory,
    instrumented,
    ours_environment,
    run,
    spread,
)
from benchmarks.recorder_process import find_recorder, recorder_ends

RUNS = 100_000
ROUNDS = 7


def measure() -> list[Row]:
    """One real run, copied 100,000 times in the history, a minute apart."""
    state = fresh_directory("reporting")
    environment = ours_environment(state)
    report = [str(OURS / "stagewatch"), "report"]
    with recorder_ends(state):
        run(instrumented(OURS, JOBS / "burst.py", "10"), environment)
        run(report, environment)
        find_recorder(state).stop()
        copied = multiply_runs(state / "history.db", RUNS)
        costs = [run(report, environment) for _ in range(ROUNDS)]
        narrow = [run([*report, "burst"], environment) for _ in range(ROUNDS)]
    wall = spread([cost.wall for cost in costs])
    one = spread([cost.wall for cost in narrow])
    return [
        Row(
            f"`stagewatch report` on {RUNS:,} runs",
            "< 1 s",
            f"{wall.median:.2f} s",
            wall.median < 1.0,
            f"wall, quartiles {wall.low:.2f}–{wall.high:.2f}; one pipeline {one.median:.2f} s",
            {"runs": copied, "wall": vars(wall), "one_pipeline": vars(one)},
        )
    ]


def multiply_runs(database: Path, count: int) -> int:
    """Copy the run with all that hangs on it but its spans; returns how many runs there are."""
    connection = sqlite3.connect(database)
    with connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema")]
        connection.execute("CREATE TEMP TABLE n (i INTEGER PRIMARY KEY)")
        connection.execute(
            "WITH RECURSIVE up(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM up WHERE i < ?) "
            "INSERT INTO n SELECT i FROM up",
            (count - 1,),
        )
        for table in ("run", "stage", "operation", "dataset"):
            if table in names:
                _multiply_rows(connection, table)
    total = int(connection.execute("SELECT count(*) FROM run").fetchone()[0])
    connection.execute("ANALYZE")
    connection.close()
    return total


def _multiply_rows(connection: sqlite3.Connection, table: str) -> None:
    """Every copy gets ids of its own and lies a minute before the one copied last."""
    fresh = {
        "run_id": "printf('%032x', i)",
        "trace_id": "randomblob(16)",
        "span_id": "randomblob(8)",
        "start": "start - i * 60000000000",
        "end": "end - i * 60000000000",
    }
    columns = {
        row[1]: row[5] for row in connection.execute(f"PRAGMA table_info({table})").fetchall()
    }
    serial = {name for name, key in columns.items() if key and name in ("id", "n", "rowid")}
    kept = [f'"{name}"' for name in columns if name not in serial]
    values = [fresh.get(name.strip('"'), name) for name in kept]
    connection.execute(
        f"INSERT INTO {table} ({', '.join(kept)}) SELECT {', '.join(values)} FROM {table}, n"
    )
