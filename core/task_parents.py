"""What a Spark task can know of its parent, the span of its Spark stage: the same here, on the
driver, and there, where that span does not exist yet."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

PROPERTY: Final = "stagewatch.traceparent"
"""Name of the local property; tasks read it with `TaskContext.getLocalProperty`."""
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
# Spark Connect has tags in place of local properties, and its server puts them into this one.
_TAGS: Final = "spark.job.tags"
_TAG: Final = re.compile(f"stagewatch-{_TRACEPARENT.pattern}")


def stage_span_id(value: str, stage: int, attempt: int) -> int:
    """Span id of a Spark stage of the action with this `traceparent`: a task can work it out before
    that span exists."""
    digest = hashlib.sha1(f"{value}/{stage}.{attempt}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") or 1


def parent_of_task(properties: Mapping[str, str], stage: int) -> tuple[bytes, bytes, bool] | None:
    """Trace id, span id and whether it is sampled, of the parent of a task with these local
    properties; None if they name none.

    That is the span of the stage's first attempt: a task is not told which attempt it belongs to.
    Under Spark Connect, where nobody sees stages, it is the operation's.
    """
    value = properties.get(PROPERTY, "")
    if found := _TRACEPARENT.fullmatch(value):
        span_id = stage_span_id(value, stage, 0).to_bytes(8, "big")
    elif found := _TAG.search(properties.get(_TAGS, "")):
        span_id = bytes.fromhex(found[2])
    else:
        return None
    return bytes.fromhex(found[1]), span_id, bool(int(found[3], 16) & 1)
