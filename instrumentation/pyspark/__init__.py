"""PySpark, watched from its import on: actions, jobs, stages, streams, without a jar."""

from __future__ import annotations

from stagewatch.instrumentation._base import Instrumentor, Patch


class PysparkInstrumentor(Instrumentor):
    """Actions become operations; what Spark does for them, and its figures, come from the driver's
    JVM when the listener there reports them."""

    library = "pyspark"
    requires = ("pyspark >= 3.5",)

    def patches(self) -> tuple[Patch, ...]:
        """Made only where pyspark is imported."""
        from stagewatch.instrumentation.pyspark import executors

        return (*executors.PATCHES,)
