"""What ``opentelemetry-instrument`` finds: the SDK wired up, and a loader that cannot hurt.

Order in the process: `Distro`, `Configurator`, `open_run` (before the instrumentors, which want to
know the pipeline), instrumentors. Where another distribution's configurator was chosen, `open_run`
attaches to its SDK.

Nothing of this happens in a helper of a library, such as the daemon that Spark forks its workers
from, so that little is imported here.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from opentelemetry.instrumentation.dependencies import DependencyConflictError
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]

from stagewatch.program import program
from stagewatch.safety import guarded

_logger = logging.getLogger(__name__)
_OURS = {"requests": "stagewatch_requests", "threading": "stagewatch_concurrent"}
"""Ours in place of upstream instrumentors: they load those when it is time, or do without."""
_IS_HELPER = program(sys.orig_argv).is_helper


class Distro(BaseDistro):  # type: ignore[misc]
    """Loads instrumentors so that none stops the next."""

    def _configure(self, **kwargs: Any) -> None: ...

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Check each library's version: upstream does so once per distribution, and ours holds
        them all. Raises ImportError and DependencyConflictError, which upstream's loader expects.
        """
        if _IS_HELPER:
            return
        name = entry_point.name
        if name in _OURS and _OURS[name] not in _disabled():
            return
        if not _disabled().isdisjoint(_other_names(name)):
            return
        kwargs |= {"skip_dep_check": False, "raise_exception_on_conflict": True}
        absent: Exception | None = None
        with guarded:
            try:
                super().load_instrumentor(entry_point, **kwargs)
            except (DependencyConflictError, ImportError) as error:
                absent = error
        if absent:
            raise absent


def _other_names(name: str) -> set[str]:
    """``pandas`` stands for ``stagewatch_pandas``, ``threading`` for ``stagewatch_concurrent``."""
    upstream = {theirs for theirs, ours in _OURS.items() if ours == name}
    return upstream | {name.removeprefix("stagewatch_")}


def _disabled() -> set[str]:
    """What the user does not want; ``pandas`` there means ``stagewatch_pandas`` too."""
    names = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    return {name.strip() for name in names}


class Configurator:
    """Sets up the SDK's tracer provider, and makes the others only where they are used."""

    @guarded
    def configure(self, **_: Any) -> None:
        """Called by ``opentelemetry-instrument``; never raises."""
        if not _IS_HELPER:
            from stagewatch import wiring

            wiring.configure()


@guarded
def open_run() -> None:
    """Entry point ``opentelemetry_pre_instrument``: the run is open before anything is patched."""
    if not _IS_HELPER:
        from stagewatch import wiring

        wiring.open_run()
