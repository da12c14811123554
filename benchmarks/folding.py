"""What a pandas call costs that folds into its stage's tally instead of becoming a span."""

from __future__ import annotations

from functools import partial

from benchmarks.harness import (
    DEV,
    JOBS,
    Row,
    Worker,
    fresh_directory,
    instrumented,
    interleave,
    ours_environment,
    plain_environment,
    spread,
)
from benchmarks.recorder_process import recorder_ends

BATCH = 4_000
ROUNDS = 25


def measure() -> list[Row]:
    """`df.fillna` on 10 rows with and without us, folded and (threshold 0) as a span."""
    state = fresh_directory("folding")
    job = (JOBS / "calls.py", "fill")
    plain = [str(DEV / "python"), *map(str, job)]
    ours = instrumented(DEV, *job)
    with (
        recorder_ends(state),
        Worker(plain, plain_environment()) as first,
        Worker(plain, plain_environment()) as second,
        Worker(ours, ours_environment(state, STAGEWATCH_SPAN_THRESHOLD="60s")) as folding,
        Worker(ours, ours_environment(state, STAGEWATCH_SPAN_THRESHOLD="0s")) as spanning,
    ):
        workers = {"without": first, "again": second, "folded": folding, "span": spanning}
        seconds = interleave(
            {name: partial(worker.batch, BATCH) for name, worker in workers.items()}, ROUNDS
        )

    def added(name: str) -> list[float]:
        pairs = zip(seconds[name], seconds["without"], strict=True)
        return [(ours - plain) / BATCH * 1e6 for ours, plain in pairs]

    folded, control, span = spread(added("folded")), spread(added("again")), spread(added("span"))
    without = spread([s / BATCH * 1e6 for s in seconds["without"]])
    figures = {
        "us_without": vars(without),
        "us_added_folded": vars(folded),
        "us_added_span": vars(span),
        "us_added_control": vars(control),
    }
    return [
        Row(
            "folded pandas call (`df.fillna` on 10 rows), with − without",
            "≤ 2 µs",
            f"{folded.median:.2f} µs",
            folded.median <= 2.0,
            f"without {without.median:.1f} µs; quartiles {folded.low:.2f}–{folded.high:.2f}; "
            f"A/A control {control.median:+.2f}; the same call as a span {span.median:.1f} µs",
            figures,
        )
    ]
