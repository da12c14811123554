"""What a PySpark job pays for being watched.

On and off are taken in turn in one session, batch by batch; a session's start in processes. Bars
of a few per cent are smaller than what this kind of machine varies by itself: they are judged by
direct accounting: the CPU that our code used, in Python and in the driver's JVM, to the job's.
"""

from __future__ import annotations

import json
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    JOBS,
    ROOT,
    SPARK,
    Row,
    Spread,
    fresh_directory,
    instrumented,
    interleave,
    ours_environment,
    paired,
    run,
    spread,
)
from benchmarks.recorder_process import recorder_ends

ROUNDS = {"counts": 30, "etl": 7, "tasks": 15}
STARTS = 7


def measure() -> list[Row]:
    """The rows of the README, in its order."""
    folder = fresh_directory("spark")
    with recorder_ends(folder / "state"):
        found = {name: _job(folder, name, rounds) for name, rounds in ROUNDS.items()}
        lost = _job(folder, "dropped", 1)["dropped"]
    starts = folder / "starts"  # where the first finds nothing compiled
    with recorder_ends(starts / "state"):
        return [
            *_counts(found["counts"]),
            _accounted("5 M rows: group, join, write Parquet", found["etl"], "≤ 1.02"),
            *_tasks(found["tasks"]),
            _start(starts),
            Row(
                "Spark: events dropped of a job of 20,000 tasks",
                "0",
                str(lost),
                lost == 0,
                "queue as it comes: 10,000 events",
                {"dropped": lost},
            ),
        ]


def _environment(folder: Path, **more: str) -> dict[str, str]:
    return ours_environment(
        folder / "state",
        PYTHONPATH=str(ROOT),
        PYSPARK_PYTHON=str(SPARK / "python"),
        SPARK_LOCAL_IP="127.0.0.1",
        STAGEWATCH_RECORDER_IDLE="5m",
        **more,
    )


def _job(folder: Path, name: str, rounds: int) -> dict[str, Any]:
    answer = folder / f"{name}.json"
    job = ("-m", "benchmarks.jobs.spark_pairs", name, str(rounds), answer)
    run(instrumented(SPARK, *job), _environment(folder))
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def _of(found: dict[str, Any], variant: str, figure: str) -> list[float]:
    return [batch[figure] for batch in found[variant]]


def _ratios(found: dict[str, Any], figure: str) -> tuple[Spread, Spread]:
    """Of the pairs on to off, and of the control."""
    off = _of(found, "off", figure)
    return paired(_of(found, "on", figure), off), paired(_of(found, "again", figure), off)


def _accounted(what: str, found: dict[str, Any], bar: str, beside: str = "") -> Row:
    """The CPU of our code beside that of the job; wall clock's pairs beside them."""
    own = found["own"]
    job = statistics.median(
        python + jvm
        for python, jvm in zip(_of(found, "off", "python"), _of(found, "off", "jvm"), strict=True)
    )
    ratio = 1 + sum(own.values()) / job
    wall, control = _ratios(found, "wall")
    parts = ", ".join(f"{place} {seconds * 1e3:.1f}" for place, seconds in own.items())
    return Row(
        f"Spark, on / off: {what}, CPU",
        bar,
        f"{ratio:.3f}",
        ratio <= float(bar.removeprefix("≤ ")),
        f"accounted, in ms of {job:.2f} s: {parts}; {beside}wall, pairs {wall}, A/A {control}",
        {"accounted": ratio, "own_s": own, "job_s": job, "wall": vars(wall), "aa": vars(control)},
    )


def _counts(found: dict[str, Any]) -> list[Row]:
    """Actions that are no work, one by one."""
    calls = {
        variant: [seconds for batch in found[variant] for seconds in batch["calls"]]
        for variant in ("on", "off", "again")
    }
    walls = {variant: spread(seconds) for variant, seconds in calls.items()}
    added = (walls["on"].median - walls["off"].median) * 1e3
    control = (walls["again"].median - walls["off"].median) * 1e3
    low = (walls["on"].low - walls["off"].low) * 1e3
    number = len(calls["on"])
    return [
        _accounted(f"{number} small counts", found, "≤ 1.02"),
        Row(
            f"Spark, on − off: a small count, median of {number}",
            "≤ 1 ms",
            f"{added:+.2f} ms",
            added <= 1.0,
            f"in our code {found['waited'] * 1e3:.2f} ms; p25 {low:+.2f} ms; off "
            f"{walls['off'].median * 1e3:.1f} ms; A/A {control:+.2f} ms",
            {variant: vars(wall) for variant, wall in walls.items()},
        ),
    ]


def _tasks(found: dict[str, Any]) -> list[Row]:
    """Many events in a short time: the most there is for the listener to do."""
    low = {variant: spread(_of(found, variant, "wall")).low for variant in ("on", "off", "again")}
    ratio, control = low["on"] / low["off"], low["again"] / low["off"]
    jvm, jvm_control = _ratios(found, "jvm")
    own = found["own"]
    inside = own["listener"] + own["drain in the JVM"] + own["marks in the JVM"]
    cpu = statistics.median(_of(found, "off", "jvm"))
    beside = f"wall p25 {ratio:.3f}, A/A {control:.3f}; "
    return [
        _accounted("2,000 tiny tasks in one job", found, "≤ 1.03", beside),
        Row(
            "Spark, on / off: the same, CPU of the driver's JVM",
            "≤ 1.12",
            f"{jvm.median:.3f}",
            jvm.median <= 1.12,
            f"accounted {1 + inside / cpu:.3f}: {inside * 1e3:.0f} ms of {cpu:.2f} s; quartiles "
            f"{jvm.low:.2f}–{jvm.high:.2f}; A/A {jvm_control}",
            {"pairs": vars(jvm), "aa": vars(jvm_control), "own_s": own},
        ),
    ]


def _start(folder: Path) -> Row:
    folder.mkdir()
    answer = folder / "start.json"
    found: list[dict[str, float]] = []

    def start(**more: str) -> float:
        job = JOBS / "spark_start.py"
        run(instrumented(SPARK, job, answer), _environment(folder, **more))
        figures: dict[str, float] = json.loads(answer.read_text())
        if not more:
            found.append(figures)
        return figures["wall"]

    off = partial(start, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="pyspark")
    walls = interleave({"on": start, "off": off, "again": off}, STARTS, warm_up=1)
    first, *later = found  # which compiled the listener, and which found it compiled
    own = spread([one["own"] for one in later])
    beside = spread([one["beside"] for one in later])

    def added(variant: str) -> Spread:
        return spread([a - b for a, b in zip(walls[variant], walls["off"], strict=True)])

    most = own.median + beside.median  # where no core is free for what is done beside it
    return Row(
        "Spark, on − off: start of a session, at most",
        "≤ 0.3 s",
        f"{most:.2f} s",
        most <= 0.3,
        f"its thread waits {own.median:.2f} s for us; CPU beside it {beside.median:.2f} s, "
        f"{first['beside']:.2f} s the first time on a machine; pairs {added('on')} s, A/A "
        f"{added('again')} s; off {spread(walls['off']).median:.1f} s",
        {"found": found, "walls_s": walls},
    )
