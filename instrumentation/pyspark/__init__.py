"""PySpark, watched from its import on: actions, jobs, stages, streams, without a jar."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from typing import Any, Final

from stagewatch.failures import explanations, libraries
from stagewatch.instrumentation._base import UNSEEN, Function, Instrumentor, Patch
from stagewatch.safety import guarded

_OLDEST: Final = (3, 5)
_VERSION: Final = re.compile(r"__version__[^\n\"']*[\"'](\d+)\.(\d+)")


class PysparkInstrumentor(Instrumentor):
    """Actions become operations; what Spark does for them, and its figures, come from the driver's
    JVM when the listener there reports them."""

    library = "pyspark"
    requires = ()
    """The package itself says what it is: of several distributions one brings it, `pyspark` or
    `pyspark-client`, and under `spark-submit` none."""

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        """For those who ask what it is for."""
        return ("pyspark >= {}.{}".format(*_OLDEST),)

    def seen_as(self, original: Function) -> str:
        """A file of PySpark's: it looks for its first frame to find the user's, which the UI shows
        as the call site."""
        file = getattr(getattr(original, "__code__", None), "co_filename", "")
        return os.path.join(os.path.dirname(file), UNSEEN)

    def patches(self) -> tuple[Patch, ...]:
        """Made only where pyspark is imported."""
        release = _release()
        if release < _OLDEST:
            return ()
        from stagewatch.instrumentation.pyspark import (
            actions,
            attaching,
            connect,
            executors,
            failures,
            streaming,
        )

        if failures.cause not in explanations:
            explanations.append(failures.cause)
        libraries.update(("py4j", "pyspark"))
        attaching.find()
        return (
            *actions.patches(release),
            *connect.PATCHES,
            *executors.PATCHES,
            *streaming.PATCHES,
        )

    def _uninstrument(self, **kwargs: Any) -> None:
        super()._uninstrument(**kwargs)
        from stagewatch.instrumentation.pyspark import attaching, failures

        with guarded:
            attaching.detach()
        if failures.cause in explanations:
            explanations.remove(failures.cause)


def _release() -> tuple[int, int]:
    """Of the PySpark that is going to be imported; also from a zip file."""
    found = find_spec("pyspark")
    if found is None or found.origin is None or found.loader is None:
        return (0, 0)
    path = os.path.join(os.path.dirname(found.origin), "version.py")
    version = _VERSION.search(found.loader.get_data(path).decode())  # type: ignore[attr-defined]
    return (int(version[1]), int(version[2])) if version else (0, 0)
