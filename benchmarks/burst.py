"""How many spans of a burst get through."""

from __future__ import annotations

from benchmarks.harness import (
    JOBS,
    OURS,
    STOCK,
    Row,
    fresh_directory,
    instrumented,
    ours_environment,
    receiver,
    run,
    stock_environment,
)
from benchmarks.recorder_process import recorder_ends

SPANS = 20_000


def measure() -> list[Row]:
    """20,000 spans as fast as they come, then the process ends; both to a live receiver."""
    state = fresh_directory("burst")
    job = (JOBS / "burst.py", str(SPANS))
    with receiver() as live:
        run(instrumented(STOCK, *job), stock_environment(live.endpoint))
        stock = live.wait_for_spans("work", SPANS, patience=10.0)
    with receiver() as live, recorder_ends(state):
        run(instrumented(OURS, *job), ours_environment(state, live.endpoint))
        ours = live.wait_for_spans("work", SPANS, patience=60.0)
        times = len(live.span_ids("work"))
    return [
        Row(
            f"{SPANS:,} spans in a burst: lost",
            "0",
            f"{SPANS - ours:,}",
            ours == SPANS,
            f"stock {(SPANS - stock) / SPANS:.0%}; {times - ours:,} arrived twice (same ids)",
            {"spans": SPANS, "ours": ours, "stock": stock, "arrivals": times},
        )
    ]
