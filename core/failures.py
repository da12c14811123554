"""What an exception says about a stage or a run, and how it stands on a span."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Final

from msgspec import Struct
from opentelemetry.trace import Span, StatusCode

from stagewatch import semconv
from stagewatch.model import Outcome
from stagewatch.safety import report

_LIBRARY = os.path.dirname(os.__file__)
_CANCELLATIONS = {"KeyboardInterrupt", "CancelledError"}


class Cause(Struct, frozen=True):
    """What is behind an exception that an engine has wrapped."""

    error_type: str
    outcome: Outcome = Outcome.FAILURE
    place: str | None = None
    """As `error_place` says it; None where the exception's own traceback knows."""
    message: str | None = None
    """In one line, raw."""


explanations: Final[list[Callable[[BaseException], Cause | None]]] = []
"""What instrumentors know of the exceptions of their libraries; None is for others'. Asked more
than once of one exception, and first, wherever it is recorded: operation, stage and run agree."""
libraries: Final[set[str]] = set()
"""Import names of packages that may lie where users' own code does."""


def cause(error: BaseException) -> Cause | None:
    """What is behind *error*, if it is one of an engine's."""
    for explain in explanations:
        try:
            found = explain(error)
        except Exception as fault:
            report(fault)
        else:
            if found is not None:
                return found
    return None


def verdict(error: BaseException | None) -> tuple[Outcome, str | None]:
    """Outcome and ``error.type`` of what ended with *error*."""
    if error is None:
        return Outcome.SUCCESS, None
    if isinstance(error, SystemExit):
        code = error.code
        if code is None or code == 0:
            return Outcome.SUCCESS, None
        return Outcome.FAILURE, f"exit_{code if isinstance(code, int) else 1}"
    if (found := cause(error)) is not None:
        return found.outcome, found.error_type
    if type(error).__name__ in _CANCELLATIONS:
        return Outcome.CANCELLATION, _class_name(error)
    return Outcome.FAILURE, _class_name(error)


def error_type(error: BaseException) -> str:
    """That of its cause, else the name of its class, with the module unless that is
    ``builtins``."""
    found = cause(error)
    return found.error_type if found is not None else _class_name(error)


def error_message(error: BaseException) -> str | None:
    """That of its cause, else its own; None where it has none that can be read."""
    found = cause(error)
    if found is not None:
        return found.message
    try:
        return str(error)
    except Exception:  # their __str__, not ours
        return None


def error_place(error: BaseException) -> str | None:
    """``file:line in function`` of the innermost frame of the user's own code, also of one that has
    called what raised *error*; else of any."""
    found = cause(error)
    if found is not None and found.place is not None:
        return found.place
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    tb: TracebackType | None = error.__traceback__
    innermost = of_the_user = None
    outer = tb.tb_frame.f_back if tb is not None else None
    while tb is not None:
        innermost = tb
        if _is_users(tb.tb_frame):
            of_the_user = tb
        tb = tb.tb_next
    while of_the_user is None and outer is not None:
        if _is_users(outer):
            return _place(outer.f_code, outer.f_lineno)
        outer = outer.f_back
    shown = of_the_user or innermost
    return None if shown is None else _place(shown.tb_frame.f_code, shown.tb_lineno)


def fail_span(span: Span, error: BaseException, *, recorded: bool) -> None:
    """Mark *span* as failed; the exception's event is left out where an inner span has it."""
    span.set_attribute(semconv.ERROR_TYPE, verdict(error)[1] or error_type(error))
    place = error_place(error)
    if place is not None:
        span.set_attribute(semconv.ERROR_PLACE, place)
    span.set_status(StatusCode.ERROR)
    if recorded or isinstance(error, SystemExit):
        return
    found = cause(error)
    if found is None:
        span.record_exception(error, escaped=True)
    else:
        span.add_event("exception", _without_asking(error, found))


def _without_asking(error: BaseException, found: Cause) -> dict[str, str]:
    """What `Span.record_exception` says, but for its ``str(error)``: it may ask another process,
    which may be gone."""
    name, message = _class_name(error), found.message or ""
    lines = traceback.format_tb(error.__traceback__)
    return {
        "exception.type": name,
        "exception.message": message,
        "exception.stacktrace": "".join(
            ("Traceback (most recent call last):\n", *lines, f"{name}: {message}\n")
        ),
        "exception.escaped": "True",
    }


def _class_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _place(code: CodeType, line: int | None) -> str:
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def _is_users(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package not in libraries and is_users_file(frame.f_code.co_filename)


def is_users_file(filename: str) -> bool:
    """Whether it holds the user's own code, as far as its path tells."""
    # What Cython compiled has a path relative to where it was compiled.
    return os.path.isabs(filename) and not (
        filename.startswith(_LIBRARY)
        or "/<" in filename
        or "site-packages" in filename
        or "dist-packages" in filename
        or "pyspark.zip" in filename  # of a Spark that pip has not installed
    )
