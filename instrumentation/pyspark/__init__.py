"""PySpark, watched from its import on: actions, jobs, stages, streams, without a jar."""

from __future__ import annotations

import os
from typing import Any

from stagewatch.instrumentation._base import UNSEEN, Function, Instrumentor, Patch
from stagewatch.safety import guarded


class PysparkInstrumentor(Instrumentor):
    """Actions become operations; what Spark does for them, and its figures, come from the driver's
    JVM when the listener there reports them."""

    library = "pyspark"
    requires = ("pyspark >= 3.5",)

    def seen_as(self, original: Function) -> str:
        """A file of PySpark's: it looks for its first frame to find the user's, which the UI shows
        as the call site."""
        file = getattr(getattr(original, "__code__", None), "co_filename", "")
        return os.path.join(os.path.dirname(file), UNSEEN)

    def patches(self) -> tuple[Patch, ...]:
        """Made only where pyspark is imported."""
        from stagewatch.instrumentation.pyspark import actions, streaming

        return (*actions.PATCHES, *streaming.PATCHES)

    def _uninstrument(self, **kwargs: Any) -> None:
        super()._uninstrument(**kwargs)
        from stagewatch.instrumentation.pyspark import attaching

        with guarded:
            attaching.detach()
