"""How spans of Spark's jobs and stages read in the tree.

Pure functions over attributes of spans.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from stagewatch.figures import size
from stagewatch.semconv import (
    SPARK_JOB,
    SPARK_JOB_ID,
    SPARK_SPILL_DISK,
    SPARK_STAGE,
    SPARK_STAGE_ATTEMPT,
    SPARK_STAGE_ID,
    SPARK_STAGE_NAME,
    SPARK_TASK_DURATION_MAX,
    SPARK_TASK_SKEW,
)

_SKEW: Final = 5.0
_SKEW_SECONDS: Final = 1.0
"""A task that takes less holds nobody up."""
_SPILL: Final = 1_000_000
_CALL_SITE: Final = re.compile(r"(?P<what>.+) at (?:.*[/\\])?(?P<where>[^/\\]+\.py:\d+)")
"""Of the user's code; what is called from the JVM has a line of Spark's own."""


def label(name: str, attributes: Mapping[str, Any]) -> str | None:
    """``spark.job 2``, ``spark.stage 3 collect at etl.py:12``; with its attempt, if that is not
    the first (``spark.stage 3.1``). None of other spans."""
    if name == SPARK_JOB and SPARK_JOB_ID in attributes:
        return f"{name} {attributes[SPARK_JOB_ID]}"
    if name != SPARK_STAGE or SPARK_STAGE_ID not in attributes:
        return None
    number = str(attributes[SPARK_STAGE_ID])
    if attempt := attributes.get(SPARK_STAGE_ATTEMPT):
        number += f".{attempt}"
    site = _CALL_SITE.fullmatch(str(attributes.get(SPARK_STAGE_NAME, "")))
    return f"{name} {number}" + (f" {site['what']} at {site['where']}" if site else "")


def note(name: str, attributes: Mapping[str, Any]) -> str:
    """What is remarkable of a stage: ``skew ×12``, ``spill 300 MB``."""
    if name != SPARK_STAGE:
        return ""
    words = []
    skew = attributes.get(SPARK_TASK_SKEW, 0)
    if skew >= _SKEW and attributes.get(SPARK_TASK_DURATION_MAX, 0) >= _SKEW_SECONDS:
        words.append(f"skew ×{skew:.0f}")
    spilled = attributes.get(SPARK_SPILL_DISK, 0)
    if spilled >= _SPILL:
        words.append(f"spill {size(spilled)}")
    return ", ".join(words)
