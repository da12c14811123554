"""What an exception says about a stage or a run, and how it stands on a span."""

from __future__ import annotations

import os
from types import TracebackType

from opentelemetry.trace import Span, StatusCode

from stagewatch import semconv
from stagewatch.model import Outcome

_LIBRARY = os.path.dirname(os.__file__)
_CANCELLATIONS = {"KeyboardInterrupt", "CancelledError"}


def verdict(error: BaseException | None) -> tuple[Outcome, str | None]:
    """Outcome and ``error.type`` of what ended with *error*."""
    if error is None:
        return Outcome.SUCCESS, None
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or code == 0:
            return Outcome.SUCCESS, None
        return Outcome.FAILURE, f"exit_{code if isinstance(code, int) else 1}"
    if type(error).__name__ in _CANCELLATIONS:
        return Outcome.CANCELLATION, error_type(error)
    return Outcome.FAILURE, error_type(error)


def error_type(error: BaseException) -> str:
    """Name of its class, with the module unless that is ``builtins``."""
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def error_place(error: BaseException) -> str | None:
    """``file:line in function`` of the innermost frame of the user's own code, else of any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    tb: TracebackType | None = error.__traceback__
    innermost = of_the_user = None
    while tb is not None:
        innermost = tb
        if _is_users(tb.tb_frame.f_code.co_filename):
            of_the_user = tb
        tb = tb.tb_next
    found = of_the_user or innermost
    if found is None:
        return None
    code = found.tb_frame.f_code
    return f"{code.co_filename}:{found.tb_lineno} in {code.co_qualname}"


def fail_span(span: Span, error: BaseException, *, recorded: bool) -> None:
    """Mark *span* as failed; the exception's event is left out where an inner span has it."""
    span.set_attribute(semconv.ERROR_TYPE, verdict(error)[1] or error_type(error))
    place = error_place(error)
    if place is not None:
        span.set_attribute(semconv.ERROR_PLACE, place)
    span.set_status(StatusCode.ERROR)
    if not recorded and not isinstance(error, SystemExit):
        span.record_exception(error, escaped=True)


def _is_users(filename: str) -> bool:
    # What Cython compiled has a path relative to where it was compiled.
    return os.path.isabs(filename) and not (
        filename.startswith((_LIBRARY, "<"))
        or "site-packages" in filename
        or "dist-packages" in filename
        or "pyspark.zip" in filename  # of a Spark that pip has not installed
    )
