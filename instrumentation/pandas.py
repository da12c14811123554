"""pandas, watched from its import on; what exactly stands in `_pandas_patches`."""

from __future__ import annotations

from stagewatch.instrumentation._base import Instrumentor, Patch


class PandasInstrumentor(Instrumentor):
    """Readers and writers, merge, join, concat, groupby, apply, sort, drop, fill and query."""

    library = "pandas"
    requires = ("pandas >= 2.2",)

    def patches(self) -> tuple[Patch, ...]:
        """Made only where pandas is imported: its kinds and patterns take milliseconds."""
        from stagewatch.instrumentation._pandas_patches import PATCHES

        return PATCHES
