"""Whether a run kept its promise, and by how much it did not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stagewatch import measures, semconv


def attributes(deadline: int | None, at: int) -> dict[str, Any]:
    """Span attributes of a run that ended (or is still going) *at*; nanoseconds since the epoch."""
    if deadline is None:
        return {}
    return {
        semconv.RUN_DEADLINE: iso_time(deadline),
        semconv.RUN_LATENESS: measures.lateness(deadline, at),
    }


def iso_time(nanoseconds: int) -> str:
    """Nanoseconds since the epoch as ISO 8601 in UTC, to the microsecond."""
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat().replace("+00:00", "Z")
