"""What the example job pays for being watched, start-up apart.

The difference of two runs is smaller than what this kind of machine varies by itself, so the bar
is judged by direct accounting: what a job of these imports pays without doing anything, plus the
number of stages, spans and folded calls times what one of each costs. The plain comparison stands
beside it, with an A/A control.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.harness import (
    BENCH,
    DEV,
    JOBS,
    ROOT,
    Row,
    Worker,
    fresh_directory,
    instrumented,
    interleave,
    ours_environment,
    paired,
    plain_environment,
    run,
    spread,
)
from benchmarks.recorder_process import recorder_ends
from examples import flights_data
from stagewatch.history import open_history

ROUNDS = 9
SCRIPT = ROOT / "examples" / "flights_etl.py"
FIRST_LINE = (
    "import os, time; open(os.environ['BENCH_FIRST_LINE'], 'w').write(str(time.process_time()))\n"
)


def measure() -> list[Row]:
    """The script as it is but for a first line that notes the CPU spent until there."""
    folder = fresh_directory("flights")
    data = BENCH / "data"
    flights_data.write(data)
    imports, rest = _halves(SCRIPT.read_text())
    script, idle = folder / "flights_etl.py", folder / "idle" / "flights_etl.py"
    idle.parent.mkdir()
    script.write_text(FIRST_LINE + imports + rest)
    idle.write_text(FIRST_LINE + imports)
    state = folder / "state"
    mark = folder / "first-line"
    more = {
        "BENCH_FIRST_LINE": str(mark),
        "STAGEWATCH_CONFIG": str(ROOT / "examples" / "stagewatch.yaml"),
        "STAGEWATCH_RECORDER_IDLE": "5m",
    }
    ours_environ = ours_environment(state, **more)
    walls: dict[str, list[float]] = {"ours": [], "plain": []}

    with airports_api(data) as api, recorder_ends(state):
        options = ["--data", str(data), "--api", api, "--out", str(folder / "out")]

        def plain(path: Path, arguments: list[str]) -> float:
            cost = run([str(DEV / "python"), str(path), *arguments], plain_environment(**more))
            if path == script:
                walls["plain"].append(cost.wall)
            return cost.cpu - float(mark.read_text())

        def ours(path: Path, arguments: list[str]) -> float:
            cost = run(instrumented(DEV, path, *arguments), ours_environ)
            if path == script:
                walls["ours"].append(cost.wall)
            return cost.cpu - float(mark.read_text())

        base = interleave(
            {"plain": partial(plain, idle, []), "ours": partial(ours, idle, [])}, 2 * ROUNDS
        )
        whole = interleave(
            {
                "plain": partial(plain, script, options),
                "again": partial(plain, script, options),
                "ours": partial(ours, script, options),
            },
            ROUNDS,
            warm_up=1,
        )
        counts = _counts(state)
        units = _unit_costs(folder, f"{api}/airports?page=1", data / "airlines.csv")

    start = spread([a - b for a, b in zip(base["ours"], base["plain"], strict=True)]).median
    parts = {name: counts[name] * units[name] for name in counts}
    share = start + sum(parts.values())
    job = spread(whole["plain"]).median
    accounted = 1 + share / job
    ratio, control = paired(whole["ours"], whole["plain"]), paired(whole["again"], whole["plain"])
    wall = paired(walls["ours"][1:], walls["plain"][1 : ROUNDS + 1])
    listed = ", ".join(f"{counts[name]} × {name} {units[name] * 1e6:.0f} µs" for name in counts)
    return [
        Row(
            "example job with / without, CPU from its first line on",
            "≤ 1.02",
            f"{accounted:.3f}",
            accounted <= 1.02,
            f"accounted: {share * 1e3:.1f} ms of {job:.2f} s ({start * 1e3:.1f} ms hooks and exit, "
            f"{listed}); median of pairs {ratio.median:.3f} ({ratio.low:.2f}–{ratio.high:.2f}), "
            f"wall {wall.median:.3f}, A/A control {control.median:.3f} "
            f"({control.low:.2f}–{control.high:.2f})",
            {
                "accounted": accounted,
                "hooks_and_exit_s": start,
                "parts_s": parts,
                "counts": counts,
                "units_s": units,
                "job_s": job,
                "pairs": vars(ratio),
                "control": vars(control),
                "wall": vars(wall),
            },
        )
    ]


def _halves(script: str) -> tuple[str, str]:
    """What stands above the first function, and the rest."""
    at = script.index("\n\n\n")
    return script[:at], script[at:]


@contextmanager
def airports_api(data: Path) -> Iterator[str]:
    """The address of the example's API, in a process of its own."""
    command = [sys.executable, str(ROOT / "examples" / "airports_api.py")]
    with subprocess.Popen(
        [*command, str(data / "airports.csv")], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def _counts(state: Path) -> dict[str, int]:
    """What the last run of the example recorded, by what it costs."""
    run(instrumented(DEV, "-c", "pass"), ours_environment(state))
    run([str(DEV / "stagewatch"), "report"], ours_environment(state))
    history = open_history(state, readonly=True)
    last = history.runs("flights", limit=1)[0]
    operations = history.operations(last.run_id)
    requests = sum(o.calls - o.folded for o in operations if not o.name.startswith("pandas."))
    spans = sum(o.calls - o.folded for o in operations if o.name.startswith("pandas."))
    return {
        "stage": sum(stage.calls for stage in history.stages(last.run_id)),
        "pandas span": spans,
        "request": requests,
        "folded call": sum(o.folded for o in operations),
    }


def _unit_costs(folder: Path, url: str, file: Path) -> dict[str, float]:
    """Seconds of CPU that one of each adds: with − without, median of pairs."""
    state = folder / "units"
    jobs = {
        "stage": (["stage"], 50, 1),
        "pandas span": (["read", str(file)], 100, 15),
        "request": (["get", url], 50, 15),
        "folded call": (["fill"], 4_000, 15),
    }
    units = {}
    for name, (arguments, size, rounds) in jobs.items():
        script = [str(JOBS / "calls.py"), *arguments]
        with (
            recorder_ends(state),
            Worker([str(DEV / "python"), *script], plain_environment()) as without,
            Worker(instrumented(DEV, *script), ours_environment(state)) as within,
        ):
            # Stages fold after a hundred calls: two batches are all there is to measure.
            pairs = [(within.batch(size), without.batch(size)) for _ in range(rounds + 1)]
        units[name] = spread([(a - b) / size for a, b in pairs]).median
    return units
