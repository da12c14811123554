"""OpenTelemetry for data pipelines.

Nothing of this needs to be imported: ``opentelemetry-instrument python etl.py`` is enough. For
those who want to name a stage themselves or count what only they know::

    with stagewatch.stage("load") as s:
        s.records(out=written, rejected=bad)
"""

from stagewatch.tracing import stage

__all__ = ["stage"]
