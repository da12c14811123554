"""What a recorded span costs: the job's CPU, and the job's and the recorder's together."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import (
    JOBS,
    OURS,
    STOCK,
    Row,
    Worker,
    fresh_directory,
    instrumented,
    interleave,
    ours_environment,
    paired,
    plain_environment,
    receiver,
    spread,
    stock_environment,
)
from benchmarks.recorder_process import find_recorder, recorder_ends

BATCH = 1_500
"""Below the stock processor's queue of 2,048, so that it loses none."""
ROUNDS = 21
WARM_UP = 2


def measure() -> list[Row]:
    """Bare SDK, stock and stagewatch in turn, each flushing its own batch."""
    state = fresh_directory("spans")
    job = JOBS / "spans.py"
    bare = [str(OURS / "python"), str(job), "--bare"]
    with (
        receiver() as stock_receiver,
        receiver() as our_receiver,
        recorder_ends(state),
        Worker(bare, plain_environment()) as first,
        Worker(bare, plain_environment()) as second,
        Worker(instrumented(STOCK, job), stock_environment(stock_receiver.endpoint)) as stock,
        Worker(instrumented(OURS, job), ours_environment(state, our_receiver.endpoint)) as ours,
    ):
        recorder = find_recorder(state)
        # Its start (0.2 s of imports) is no cost of a span, as little as those of the others.
        ours.batch(BATCH)
        our_receiver.wait_for_spans("work", BATCH)
        before = recorder.cpu()
        workers = {"bare": first, "again": second, "stock": stock, "ours": ours}
        seconds = interleave(
            {name: partial(worker.batch, BATCH) for name, worker in workers.items()},
            ROUNDS,
            WARM_UP,
        )
        spans = BATCH * (ROUNDS + WARM_UP)
        arrived = our_receiver.wait_for_spans("work", BATCH + spans) - BATCH
        recorder_us = (recorder.cpu() - before) / spans * 1e6
        stock_arrived = len(set(stock_receiver.span_ids("work")))
    us = {name: spread([s / BATCH * 1e6 for s in figures]) for name, figures in seconds.items()}
    of_stock = paired(seconds["ours"], seconds["stock"])
    of_bare = paired(seconds["ours"], seconds["bare"])
    control = paired(seconds["again"], seconds["bare"])
    together = (us["ours"].median + recorder_us) / us["stock"].median
    costs = ", ".join(f"{name} {us[name].median:.1f}" for name in ("bare", "ours", "stock"))
    figures = {
        "us_per_span": {name: vars(value) for name, value in us.items()},
        "recorder_us_per_span": recorder_us,
        "of_stock": vars(of_stock),
        "of_bare": vars(of_bare),
        "control": vars(control),
        "together_of_stock": together,
        "spans": spans,
        "arrived": {"ours": arrived, "stock": stock_arrived},
    }
    what = "CPU of the job per recorded span, 5 attributes"
    return [
        Row(
            f"{what}, against stock",
            "≤ 0.45×",
            f"{of_stock.median:.2f}×",
            of_stock.median <= 0.45,
            f"{costs} µs; quartiles {of_stock.low:.2f}–{of_stock.high:.2f}, n={of_stock.count}",
            figures,
        ),
        Row(
            f"{what}, against the bare SDK",
            "≤ 1.35×",
            f"{of_bare.median:.2f}×",
            of_bare.median <= 1.35,
            f"quartiles {of_bare.low:.2f}–{of_bare.high:.2f}; A/A control {control}",
        ),
        Row(
            "CPU of job and recorder together per span, against stock",
            "≤ 0.8×",
            f"{together:.2f}×",
            together <= 0.8,
            f"recorder {recorder_us:.1f} µs a span; {arrived:,} of {spans:,} spans arrived",
        ),
    ]
