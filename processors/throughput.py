"""Records, their rate, and bytes."""

from __future__ import annotations

from typing import Any

from stagewatch import measures, semconv
from stagewatch.records import StageEnded


def attributes(stage: StageEnded) -> dict[str, Any]:
    """Span attributes of an ended stage; what nobody counted is absent, not 0."""
    found: dict[str, Any] = {}
    if stage.records_in is not None:
        found[semconv.STAGE_RECORDS_IN] = stage.records_in
    if stage.records_out is not None:
        found[semconv.STAGE_RECORDS_OUT] = stage.records_out
    if stage.records_rejected:
        found[semconv.STAGE_RECORDS_REJECTED] = stage.records_rejected
    rate = measures.throughput(stage.records_in, stage.records_out, stage.active_seconds)
    if rate is not None:
        found[semconv.STAGE_THROUGHPUT] = rate
    if stage.bytes_in:
        found[semconv.STAGE_BYTES_IN] = stage.bytes_in
    if stage.bytes_out:
        found[semconv.STAGE_BYTES_OUT] = stage.bytes_out
    return found
