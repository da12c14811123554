"""What the example job pays for being watched, start-up apart.

The difference of two runs is smaller than what this kind of machine varies by itself, so the bar
is judged by direct accounting: what a job of these imports pays without doing anything, plus the
number of stages, spans and folded calls times what one of each costs. The plain comparison stands
beside it, with an A/A control.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
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

ROUNDS = 7
SCRIPT = ROOT / "examples" / "flights_etl.py"
FIRST_LINE = (
    "import json, os, time; json.dump([time.process_time(), time.time()], "
    "open(os.environ['BENCH_FIRST_LINE'], 'w'))\n"
)


def measure() -> list[Row]:
    """The script as it is but for a first line that notes the CPU spent until there."""
    folder = fresh_directory("flights")
    data = BENCH / "data"
    flights_data.write(data)
    top, rest = _halves(SCRIPT.read_text())
    script, idle = folder / "flights_etl.py", folder / "idle" / "flights_etl.py"
    idle.parent.mkdir()
    script.write_text(top + rest)
    idle.write_text(top)
    state = folder / "state"
    mark = folder / "first-line"
    more = {
        "BENCH_FIRST_LINE": str(mark),
        "STAGEWATCH_CONFIG": str(ROOT / "examples" / "stagewatch.yaml"),
        "STAGEWATCH_RECORDER_IDLE": "5m",
    }
    ours_environ = ours_environment(state, **more)
    walls: dict[str, list[float]] = {"plain": [], "again": [], "ours": []}

    with airports_api(data) as api, recorder_ends(state):
        options = ["--data", str(data), "--api", api, "--out", str(folder / "out")]

        def cpu(name: str, path: Path, arguments: list[str]) -> float:
            """From the first line on; the wall clock's figure is put aside."""
            if name == "ours":
                cost = run(instrumented(DEV, path, *arguments), ours_environ)
            else:
                cost = run([str(DEV / "python"), str(path), *arguments], plain_environment(**more))
            cpu_before, began = json.loads(mark.read_text())
            if path == script:
                walls[name].append(cost.ended - began)
            return float(cost.cpu - cpu_before)

        base = interleave({name: partial(cpu, name, idle, []) for name in walls}, 2 * ROUNDS)
        whole = interleave(
            {name: partial(cpu, name, script, options) for name in walls}, ROUNDS, warm_up=1
        )
        counts = _counts(state)
        units = _unit_costs(folder, f"{api}/airports?page=1", data / "airlines.csv")

    start = spread([a - b for a, b in zip(base["ours"], base["plain"], strict=True)]).median
    parts = {name: counts[name] * units[name] for name in counts}
    share = start + sum(parts.values())
    job = spread(whole["plain"]).median
    accounted = 1 + share / job
    ratio, control = paired(whole["ours"], whole["plain"]), paired(whole["again"], whole["plain"])
    wall = paired(walls["ours"], walls["plain"])
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
    """What stands above the first function, with the line that notes the CPU, and the rest."""
    script = script.replace("import ", f"{FIRST_LINE}import ", 1)
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
    spans = dict.fromkeys(("pandas I/O", "pandas span", "request"), 0)
    operations = history.operations(last.run_id)
    for operation in operations:
        library, _, name = operation.name.partition(".")
        is_io = name.startswith(("read_", "to_"))
        kind = "request" if library != "pandas" else "pandas I/O" if is_io else "pandas span"
        spans[kind] += operation.calls - operation.folded
    return {
        "stage": sum(stage.calls for stage in history.stages(last.run_id)),
        **spans,
        "folded call": sum(operation.folded for operation in operations),
    }


def _unit_costs(folder: Path, url: str, file: Path) -> dict[str, float]:
    """Seconds of CPU that one of each adds: with − without, median of batches."""
    at_once = {"STAGEWATCH_SPAN_THRESHOLD": "0s"}
    return {
        # A stage's calls fold after a hundred: several short-lived workers.
        "stage": spread([_added(folder, ["stage"], 40, 1) for _ in range(5)]).median,
        "pandas I/O": _added(folder, ["read", str(file)], 50, 15),
        "pandas span": _added(folder, ["fill"], 500, 15, at_once),
        "request": _added(folder, ["get", url], 10, 15),
        "folded call": _added(folder, ["fill"], 4_000, 15),
    }


def _added(
    folder: Path,
    arguments: list[str],
    size: int,
    rounds: int,
    settings: Mapping[str, str] | None = None,
) -> float:
    """Seconds of CPU a call, after one batch to warm up."""
    script = [str(JOBS / "calls.py"), *arguments]
    ours = ours_environment(folder / "units", **(settings or {}))
    with (
        recorder_ends(folder / "units"),
        Worker([str(DEV / "python"), *script], plain_environment()) as without,
        Worker(instrumented(DEV, *script), ours) as within,
    ):
        pairs = [(within.batch(size), without.batch(size)) for _ in range(rounds + 1)]
    added = [(ours - plain) / size for ours, plain in pairs[1:]]
    return statistics.median(added)
