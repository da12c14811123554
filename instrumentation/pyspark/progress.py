"""Figures of a streaming query's progress, as Spark tells it: `StreamingQueryProgress.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from math import isfinite
from typing import Any, Final

from opentelemetry.util.types import AttributeValue

from stagewatch import semconv
from stagewatch.semconv import Metric

_SECOND: Final = 1_000_000_000

Progress = Mapping[str, Any]


def has_batch(progress: Progress) -> bool:
    """Whether there was anything to do."""
    return "addBatch" in progress.get("durationMs", {})


def started(progress: Progress) -> int:
    """When its trigger fired: milliseconds since the epoch."""
    return _milliseconds(progress.get("timestamp")) or 0


def duration(progress: Progress) -> float:
    """Seconds of the trigger's execution."""
    return float((progress.get("durationMs") or {}).get("triggerExecution") or 0) / 1e3


def rows_in(progress: Progress) -> int:
    """Rows of all sources."""
    return int(progress.get("numInputRows") or 0)


def rows_out(progress: Progress) -> int | None:
    """Rows that the sink has taken; None: it does not count them."""
    rows = (progress.get("sink") or {}).get("numOutputRows", -1)
    return int(rows) if rows is not None and rows >= 0 else None


def times(progress: Progress) -> dict[str, AttributeValue]:
    """Seconds of a batch's parts, as attributes."""
    took = progress.get("durationMs") or {}
    return {
        name: took[part] / 1e3 for part, name in semconv.SPARK_BATCH_TIMES.items() if part in took
    }


def measured(progress: Progress, interval: float | None, now: int) -> dict[str, float]:
    """Values of `semconv.MEASURED` in a `StreamingQueryProgress`; what is unknown is absent.

    *interval* of the trigger, seconds; *now*: nanoseconds since the epoch. Watermark lateness: now
    - watermark; source lag: latest offset - end offset, summed over sources and partitions.
    """
    states = progress.get("stateOperators") or []
    seconds = duration(progress)
    watermark = _milliseconds((progress.get("eventTime") or {}).get("watermark"))
    sources = progress.get("sources") or []
    lags = [lag for source in sources if (lag := _lag(source)) is not None]
    found: dict[Metric, float | None] = {
        semconv.SPARK_STREAM_INPUT_RATE: progress.get("inputRowsPerSecond"),
        semconv.SPARK_STREAM_PROCESSING_RATE: progress.get("processedRowsPerSecond"),
        semconv.SPARK_STREAM_BATCH_DURATION: seconds,
        semconv.SPARK_STREAM_TRIGGER_RATIO: seconds / interval if interval else None,
        # Before the first event it is at the epoch.
        semconv.SPARK_STREAM_WATERMARK_LATENESS: now / _SECOND - watermark / 1e3
        if watermark
        else None,
        semconv.SPARK_STREAM_SOURCE_LAG: sum(lags) if lags else None,
        semconv.SPARK_STREAM_STATE_ROWS: _sum(states, "numRowsTotal"),
        semconv.SPARK_STREAM_STATE_MEMORY: _sum(states, "memoryUsedBytes"),
        semconv.SPARK_STREAM_ROWS_DROPPED: _sum(states, "numRowsDroppedByWatermark"),
    }
    return {
        metric.name: float(value)
        for metric, value in found.items()
        if isinstance(value, int | float) and isfinite(value)
    }


def _milliseconds(text: object) -> int | None:
    """Since the epoch, of a time as Spark writes it; None if it is none."""
    with suppress(ValueError):
        return (
            round(datetime.fromisoformat(text).timestamp() * 1e3) if isinstance(text, str) else None
        )
    return None


def _lag(source: Mapping[str, Any]) -> int | None:
    latest, end = _offset(source.get("latestOffset")), _offset(source.get("endOffset"))
    return None if latest is None or end is None else max(latest - end, 0)


def _offset(value: object) -> int | None:
    """A number, also within text; of topics and their partitions the sum."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    if isinstance(value, dict):
        parts = [_offset(part) for part in value.values()]
        known = [part for part in parts if part is not None]
        return sum(known) if known and len(known) == len(parts) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _sum(states: Iterable[Mapping[str, Any]], name: str) -> int | None:
    found = [state[name] for state in states if name in state]
    return sum(found) if found else None
