"""Stages from functions and methods that ``stagewatch.yaml`` declares.

A declared function is replaced by a closure (`stagewatch.wrapping`) the moment it is bound, which
`stagewatch.instrumentation._binding` watches for.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from stagewatch.instrumentation._binding import Binding, declared_targets
from stagewatch.tracing import declared_pipeline
from stagewatch.wrapping import wrap


class FunctionsInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Makes stages of the functions that the running pipeline declares; without any: nothing."""

    _binding: Binding | None = None

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **_: Any) -> None:
        pipeline = declared_pipeline()
        targets = declared_targets(pipeline) if pipeline else []
        if targets:
            self._binding = Binding(targets, wrap)
            self._binding.start()

    def _uninstrument(self, **_: Any) -> None:
        if self._binding is not None:
            self._binding.stop()
            self._binding = None
