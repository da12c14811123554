"""What it costs to start: the whole launch, and our own share of it."""

from __future__ import annotations

import json
from functools import partial

from benchmarks.harness import (
    BENCH,
    JOBS,
    OURS,
    STOCK,
    Row,
    fresh_directory,
    instrumented,
    interleave,
    ours_environment,
    paired,
    plain_environment,
    receiver,
    run,
    spread,
    stock_environment,
)
from benchmarks.recorder_process import find_recorder, recorder_ends

ROUNDS = 21


def measure() -> list[Row]:
    """`opentelemetry-instrument python -c pass`, then announce, page and journal alone."""
    return [_launch(), *_own_share()]


def _launch() -> Row:
    state = fresh_directory("startup")
    with receiver() as live, recorder_ends(state):
        plain = [str(OURS / "python"), "-c", "pass"]
        ours = instrumented(OURS, "-c", "pass")
        ours_env = ours_environment(state, live.endpoint)
        run(ours, ours_env)
        recorder = find_recorder(state)
        cold = recorder.cpu()

        def cpu(command: list[str], environment: dict[str, str]) -> float:
            return run(command, environment).cpu

        before = recorder.cpu()
        seconds = interleave(
            {
                "python": partial(cpu, plain, plain_environment()),
                "ours": partial(cpu, ours, ours_env),
                "again": partial(cpu, ours, ours_env),
                "stock": partial(
                    cpu, instrumented(STOCK, "-c", "pass"), stock_environment(live.endpoint)
                ),
            },
            ROUNDS,
        )
        live.wait_until_quiet()
        per_run = (recorder.cpu() - before) / (2 * (ROUNDS + 2))
    of_stock = paired(seconds["ours"], seconds["stock"])
    control = paired(seconds["again"], seconds["ours"])
    medians = {name: spread(figures).median for name, figures in seconds.items()}
    return Row(
        "start-up CPU of `opentelemetry-instrument python -c pass`, against stock",
        "≤ 0.8×",
        f"{of_stock.median:.2f}×",
        of_stock.median <= 0.8,
        f"python {medians['python']:.3f}, ours {medians['ours']:.3f}, stock "
        f"{medians['stock']:.3f} s; quartiles {of_stock.low:.2f}–{of_stock.high:.2f}; A/A control "
        f"{control}; the recorder's own: {cold:.2f} s once, {per_run * 1e3:.1f} ms a run",
        {
            "of_stock": vars(of_stock),
            "control": vars(control),
            "seconds": medians,
            "recorder_start_seconds": cold,
            "recorder_seconds_per_run": per_run,
        },
    )


def _own_share() -> list[Row]:
    state = fresh_directory("starting")
    answer = BENCH / "starting.json"
    command = [str(OURS / "python"), str(JOBS / "starting.py"), str(state), str(answer)]

    def seconds() -> dict[str, float]:
        run(command, plain_environment())
        return dict(json.loads(answer.read_text()))

    cold, alive = [], []
    for _ in range(ROUNDS):
        cold.append(seconds())
        with recorder_ends(state):
            find_recorder(state)
            alive.append(seconds())
    rows = []
    for name, figures, bar in [("cold", cold, 3.0), ("alive", alive, 2.0)]:
        total = spread([sum(parts.values()) * 1e3 for parts in figures])
        parts = {part: spread([f[part] * 1e3 for f in figures]).median for part in figures[0]}
        rows.append(
            Row(
                f"CPU of announce, page and journal in the job, recorder {name}",
                f"≤ {bar:.0f} ms",
                f"{total.median:.2f} ms",
                total.median <= bar,
                ", ".join(f"{part} {ms:.2f}" for part, ms in parts.items())
                + f"; quartiles {total.low:.2f}–{total.high:.2f}, n={total.count}",
                {"ms": vars(total), "parts_ms": parts},
            )
        )
    return rows
