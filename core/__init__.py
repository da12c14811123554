"""OpenTelemetry for data pipelines.

Nothing of this needs to be imported: ``opentelemetry-instrument python etl.py`` is enough. For
those who want to name a stage themselves or count what only they know::

    with stagewatch.stage("load") as s:
        s.records(out=written, rejected=bad)
"""

from __future__ import annotations

TYPE_CHECKING = False  # of `typing`, whose import costs a short command more than all of this
if TYPE_CHECKING:
    from typing import Any

    from stagewatch.stages import stage

__all__ = ["stage"]


def __getattr__(name: str) -> Any:
    # Late, because the command line and the recorder need no tracing, and start with this import.
    if name == "stage":
        from stagewatch.stages import stage

        return stage
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
