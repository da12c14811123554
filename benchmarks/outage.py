"""What an absent backend costs a job at its end, and whether its spans arrive when it is back."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from benchmarks.harness import (
    BENCH,
    JOBS,
    OURS,
    STOCK,
    Row,
    fresh_directory,
    instrumented,
    ours_environment,
    plain_environment,
    run,
    spread,
    stock_environment,
)
from benchmarks.recorder_process import recorder_ends
from tests.otlp_receiver import OtlpReceiver

SPANS = 200
ROUNDS = 5
BACK_WITHIN = 120.0
"""Seconds in which everything has to be there once the backend answers."""


def measure() -> list[Row]:
    """Refused, hanging and 503: seconds from the last line to the end of the process."""
    return [_row("refuse", "refused"), _row("hang", "hanging"), _row("fail", "answering 503")]


def _row(behaviour: str, words: str) -> Row:
    state = fresh_directory(f"outage-{behaviour}")
    mark = BENCH / "last-line"
    job = (JOBS / "burst.py", str(SPANS), str(mark))
    bare = [str(OURS / "python"), *map(str, job)]
    with OtlpReceiver() as backend, recorder_ends(state):
        getattr(backend, behaviour)()
        without = [_exit_seconds(bare, plain_environment(), mark) for _ in range(ROUNDS)]
        ours = [
            _exit_seconds(instrumented(OURS, *job), ours_environment(state, backend.endpoint), mark)
            for _ in range(ROUNDS)
        ]
        back = time.monotonic()
        backend.clear()
        backend.serve()
        with suppress(AssertionError):  # what is missing then is the figure
            backend.wait_for(lambda r: len(_work(r)) >= SPANS * ROUNDS, BACK_WITHIN)
        arrived, took = len(_work(backend)), time.monotonic() - back
        getattr(backend, behaviour)()
        stock = _exit_seconds(instrumented(STOCK, *job), stock_environment(backend.endpoint), mark)
    added = max(ours) - spread(without).median
    return Row(
        f"exit with the backend {words}: added, and spans lost once it is back",
        "≤ 0.2 s, 0",
        f"{added:.2f} s, {SPANS * ROUNDS - arrived:,}",
        added <= 0.2 and arrived == SPANS * ROUNDS,
        f"worst of {ROUNDS} (median {spread(ours).median - spread(without).median:.2f} s); "
        f"stock {stock:.1f} s; all there {took:.1f} s after it came back",
        {"ours": ours, "without": without, "stock": stock, "arrived": arrived, "back": took},
    )


def _exit_seconds(command: list[str], environment: dict[str, str], mark: Path) -> float:
    """From the job's last line to its parent's knowing that it ended."""
    ended = run(command, environment).ended
    return ended - float(mark.read_text())


def _work(backend: OtlpReceiver) -> set[str]:
    return {span.trace_id + span.span_id for span in backend.spans if span.name == "work"}
