"""What declared stages cost the code that is none: a loop of 10 million calls in the script.

Nothing of ours runs in that loop but the trace function that waits for the declared function to be
defined. So what it costs can be read in one process: the chunks of the loop while it lives,
against those without it. Whole runs differ by more than the bar on this kind of machine.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.harness import (
    OURS,
    Row,
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

CALLS = 10_000_000
CHUNKS = 100
ROUNDS = 9
DECLARED = "def declared():\n    return 1\n"
LOOP = f"""
import json, os, sys, time
def other():
    return 1
def chunk():
    start = time.thread_time()
    for _ in range({CALLS // CHUNKS}):
        other()
    return time.thread_time() - start
def hot():
    return [(sys.gettrace() is not None, chunk()) for _ in range({CHUNKS})]
chunks = hot()
with open(os.environ["BENCH_ANSWER"], "w") as file:
    json.dump(chunks, file)
"""
PIPELINE = """
pipelines:
  loop:
    match: {script: loop_*.py}
    stages: {declared: {}}
"""


def measure() -> list[Row]:
    """The declared function above the loop, as scripts mostly have it, and below."""
    folder = fresh_directory("functions")
    (folder / "loop_below_def.py").write_text(DECLARED + LOOP + "declared()\n")
    (folder / "loop_above_def.py").write_text(LOOP + DECLARED + "declared()\n")
    (folder / "stagewatch.yaml").write_text(PIPELINE)
    return [
        _row(folder, "loop_below_def.py", "declared function above", has_bar=True),
        _row(folder, "loop_above_def.py", "declared function below", has_bar=False),
    ]


def _row(folder: Path, script: str, words: str, *, has_bar: bool) -> Row:
    state, answer = folder / "state", folder / "answer"
    more = {"BENCH_ANSWER": str(answer)}
    environment = ours_environment(state, STAGEWATCH_CONFIG=str(folder / "stagewatch.yaml"), **more)
    added: list[float] = []

    def plain() -> float:
        run([str(OURS / "python"), str(folder / script)], plain_environment(**more))
        return _seconds(json.loads(answer.read_text()))

    def ours() -> float:
        run(instrumented(OURS, folder / script), environment)
        chunks = json.loads(answer.read_text())
        added.append(_traced_seconds(chunks))
        return _seconds(chunks)

    with recorder_ends(state):
        seconds = interleave({"plain": plain, "again": plain, "ours": ours}, ROUNDS, warm_up=1)
    job = spread(seconds["plain"]).median
    extra = spread(added).median
    accounted = 1 + extra / job
    ratio = paired(seconds["ours"], seconds["plain"])
    control = paired(seconds["again"], seconds["plain"])
    return Row(
        f"loop of {CALLS:,} calls of other code, {words}",
        "≤ 1.01×" if has_bar else "(≤ 0.1 s of our own)",
        f"{accounted:.3f}×",
        accounted <= 1.01 if has_bar else None,
        f"accounted: {extra * 1e3:.1f} ms of {job:.2f} s while a trace function lived; median of "
        f"pairs {ratio.median:.3f} ({ratio.low:.2f}–{ratio.high:.2f}), A/A control "
        f"{control.median:.3f} ({control.low:.2f}–{control.high:.2f})",
        {
            "accounted": accounted,
            "added_s": added,
            "pairs": vars(ratio),
            "control": vars(control),
            "plain_s": seconds["plain"],
        },
    )


def _seconds(chunks: list[tuple[bool, float]]) -> float:
    return sum(seconds for _, seconds in chunks)


def _traced_seconds(chunks: list[tuple[bool, float]]) -> float:
    """What the chunks that began under a trace function took longer than the others' median."""
    free = [seconds for traced, seconds in chunks if not traced]
    traced = [seconds for traced, seconds in chunks if traced]
    usual = spread(free).median if len(free) > 1 else 0.0
    return sum(traced) - usual * len(traced)
