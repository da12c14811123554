"""How a stage ended, and which share of its records did not make it."""

from __future__ import annotations

from typing import Any

from stagewatch import measures, semconv
from stagewatch.model import Outcome
from stagewatch.records import StageEnded


def attributes(stage: StageEnded) -> dict[str, Any]:
    """Span attributes of an ended stage."""
    found: dict[str, Any] = {
        semconv.RUN_OUTCOME: stage.outcome,
        semconv.CICD_TASK_RESULT: stage.outcome,
    }
    if stage.error_type is not None:
        found[semconv.ERROR_TYPE] = stage.error_type
    if stage.retries:
        found[semconv.STAGE_RETRIES] = stage.retries
    failed = stage.outcome != Outcome.SUCCESS
    if failed or stage.records_out is not None or stage.records_rejected:
        found[semconv.STAGE_ERROR_RATIO] = measures.error_ratio(
            stage.records_out, stage.records_rejected, failed=failed
        )
    return found
