"""What the recorder takes: memory idle and after 50,000 spans, CPU a span, CPU when idle."""

from __future__ import annotations

import time

from benchmarks.harness import (
    JOBS,
    OURS,
    Row,
    Worker,
    fresh_directory,
    instrumented,
    ours_environment,
    plain_environment,
    receiver,
    run,
    spread,
)
from benchmarks.recorder_process import find_recorder, recorder_ends

SPANS = 50_000
IDLE_SECONDS = 20.0
MEGABYTE = 1e6


def measure() -> list[Row]:
    """Over HTTP, then over gRPC."""
    rows = []
    for protocol, name, memory_bar in [
        ("http", "http/protobuf", 55.0),
        ("grpc", "grpc", 75.0),
    ]:
        rows += _rows(protocol, name, memory_bar)
    return rows


def _rows(protocol: str, otlp_protocol: str, memory_bar: float) -> list[Row]:
    state = fresh_directory(f"recorder-{protocol}")
    with receiver(protocol) as live, recorder_ends(state):
        environment = ours_environment(state, live.endpoint, STAGEWATCH_RECORDER_IDLE="10m")
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = otlp_protocol
        run(instrumented(OURS, "-c", "pass"), environment)
        recorder = find_recorder(state)
        live.wait_until_quiet()
        before, since = recorder.cpu(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle = (recorder.cpu() - before) / (time.monotonic() - since)
        idle_rss = recorder.rss() / MEGABYTE
        before = recorder.cpu()
        run(instrumented(OURS, JOBS / "burst.py", str(SPANS)), environment)
        arrived = live.wait_for_spans("work", SPANS, patience=60.0)
        us = (recorder.cpu() - before) / SPANS * 1e6
        bare = _bare_us()
        rss, peak = recorder.rss() / MEGABYTE, recorder.peak_rss() / MEGABYTE
    figures = {
        "idle_rss": idle_rss,
        "rss": rss,
        "peak_rss": peak,
        "us_per_span": us,
        "bare_us_per_span": bare,
        "idle_cpu": idle,
        "arrived": arrived,
    }
    return [
        Row(
            f"recorder over {protocol.upper()}: memory after {SPANS:,} spans",
            f"≤ {memory_bar:.0f} MB",
            f"{rss:.1f} MB",
            rss <= memory_bar,
            f"idle {idle_rss:.1f}, peak {peak:.1f} MB",
            figures,
        ),
        Row(
            f"recorder over {protocol.upper()}: CPU a span",
            "≤ 25 µs",
            f"{us:.1f} µs",
            us <= 25.0 and arrived == SPANS,
            f"{arrived:,} of {SPANS:,} arrived; a bare SDK span took {bare:.1f} µs just then",
        ),
        Row(
            f"recorder over {protocol.upper()}: CPU when idle",
            "≤ 0.1 %",
            f"{idle:.2%}",
            idle <= 0.001,
            f"over {IDLE_SECONDS:.0f} s",
        ),
    ]


def _bare_us() -> float:
    """How fast the machine is at the moment: a span of the bare SDK with five attributes."""
    size = 2_000
    with Worker(
        [str(OURS / "python"), str(JOBS / "spans.py"), "--bare"], plain_environment()
    ) as bare:
        return spread([bare.batch(size) / size * 1e6 for _ in range(5)]).median
