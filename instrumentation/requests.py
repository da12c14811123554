"""requests: upstream's instrumentor with the stable conventions, and what it lacks.

Upstream opens the span, one for a request with all its redirects and retries. Added here: retries
as they happen, sizes (a body that is sent again counts once), URLs without query string, the
operation's count, and tracebacks without instrumentation in them. Upstream's module imports
requests, so it is imported after requests was.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from opentelemetry.trace import Span

from stagewatch import recording, redaction, semconv
from stagewatch.failures import error_type
from stagewatch.instrumentation._base import (
    Function,
    Instrumentor,
    Patch,
    argument,
    beside,
    on_import,
)
from stagewatch.records import OperationEnded
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import drop_first_frame
from stagewatch.tracing import current_stage, retried, transferred

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WITHOUT_BODY = frozenset({204, 304})
_LONGEST_SIZE = 15
"""Digits of a size that can be true."""
_now = time.monotonic_ns


class _UnderWay(threading.local):
    """The request this thread is sending."""

    active = False
    span: Span | None = None
    retries = 0


_under_way = _UnderWay()


def _send(wrapped: Function) -> Function:
    from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        # A redirect is sent by the session itself, from inside the request it belongs to.
        counts = (
            recording.active is not None
            and not _under_way.active
            and is_http_instrumentation_enabled()
        )
        started = _now()
        try:
            if counts:
                _under_way.active, _under_way.span, _under_way.retries = True, None, 0
            response = wrapped(*args, **kwargs)
            if counts:
                status = getattr(response, "status_code", 0)
                failed = isinstance(status, int) and status >= 400
                _ended(args, kwargs, started, str(status) if failed else None, response)
        except BaseException as error:
            if counts:
                _ended(args, kwargs, started, error_type(error))
            _drop_frames(error)
            raise
        return response

    return wrapper


def _ended(args: Any, kwargs: Any, started: int, failure: str | None, response: Any = None) -> None:
    nanoseconds = _now() - started
    _under_way.active, _under_way.span = False, None
    try:
        current = recording.here()
        if current is None:
            return
        request = argument(args, kwargs, 1, "request")
        method = str(request.method).upper()
        stage = current_stage()
        current.sink.append(
            OperationEnded(
                current.run.run_id,
                stage.name if stage else "",
                f"requests.{method if method in _METHODS else 'OTHER'}",
                nanoseconds,
                0,
                0,
                failure,
            )
        )
        if response is not None:
            answers = [*response.history, response]
            received = sum(_received(answer) or 0 for answer in answers)
            transferred(bytes_in=received, bytes_out=_size(request.headers) or 0)
    except Exception as fault:
        report(fault)


def _drop_frames(error: BaseException) -> None:
    drop_first_frame(error)
    while (tb := error.__traceback__) is not None:
        if tb.tb_frame.f_globals.get("__name__") != _UPSTREAM:
            return
        drop_first_frame(error)


def _tried_again(*_: Any) -> None:
    """`Retry.increment` returns where urllib3 tries again, and raises where it gives up."""
    if _under_way.active:
        _under_way.retries += 1
        retried()
        if _under_way.span is not None:
            _under_way.span.set_attribute(semconv.HTTP_RESEND_COUNT, _under_way.retries)


# --- upstream ---------------------------------------------------------------------------------

_UPSTREAM = "opentelemetry.instrumentation.requests"


@guarded
def _on_request(span: Span, request: Any) -> None:
    _under_way.span = span
    if not span.is_recording():
        return
    for name in getattr(span, "attributes", None) or ():
        if name in (semconv.URL_FULL, "http.url"):
            span.set_attribute(name, redaction.url(request.url))
    if (sent := _size(request.headers)) is not None:
        span.set_attribute(semconv.HTTP_REQUEST_BODY_SIZE, sent)


@guarded
def _on_response(span: Span, request: Any, response: Any) -> None:
    received = _received(response)
    if received is not None:
        span.set_attribute(semconv.HTTP_RESPONSE_BODY_SIZE, received)


def _received(response: Any) -> int | None:
    """Bytes of the body as it is sent; None if unknown."""
    if response.status_code in _WITHOUT_BODY or str(response.request.method).upper() == "HEAD":
        return 0  # the header speaks of another answer's body
    if (announced := _size(response.headers)) is not None:
        return announced
    body = response.__dict__.get("_content")  # never `content`: that would read a stream
    return len(body) if isinstance(body, bytes) else None


def _size(headers: Any) -> int | None:
    length = headers.get("Content-Length") if headers else None
    digits = str(length)
    return int(digits) if digits.isdecimal() and len(digits) <= _LONGEST_SIZE else None


@contextmanager
def _stable_names() -> Iterator[None]:
    """Upstream still emits the old names unless a variable says otherwise, which it reads once
    for all instrumentors. A user's choice stands; else this instrumentor alone gets the new ones,
    and no variable reaches the environment of children.
    """
    from opentelemetry.instrumentation import _semconv

    # Read by now: `BaseInstrumentor.instrument`, ours as well, sees to that.
    modes = (
        _semconv._OpenTelemetrySemanticConventionStability._OTEL_SEMCONV_STABILITY_SIGNAL_MAPPING
    )
    http = _semconv._OpenTelemetryStabilitySignalType.HTTP
    before = modes[http]
    if "OTEL_SEMCONV_STABILITY_OPT_IN" not in os.environ:
        modes[http] = _semconv._StabilityMode.HTTP
    try:
        yield
    finally:
        modes[http] = before


class RequestsInstrumentor(Instrumentor):
    """Watches requests from its import on; upstream's own entry point must not be loaded too."""

    library = "requests"
    requires = ("requests ~= 2.0", "opentelemetry-instrumentation-requests >= 0.66b0")
    _upstream: Any = None

    def patches(self) -> tuple[Patch, ...]:
        """Applied at the end of the package's import, and after upstream's: ours lie outside."""
        on_import("requests", self._start_upstream)
        return (
            Patch("requests", "sessions.Session.send", _send),
            Patch("requests", "adapters.Retry.increment", beside(after=_tried_again)),
        )

    def _start_upstream(self, _: ModuleType) -> None:
        if self._session is None or self._upstream is not None:
            return
        from opentelemetry.instrumentation.requests import RequestsInstrumentor as Upstream

        upstream = Upstream()
        if upstream.is_instrumented_by_opentelemetry:
            return  # loaded by another distribution, with hooks of its own
        with _stable_names():
            upstream.instrument(
                skip_dep_check=True, request_hook=_on_request, response_hook=_on_response
            )
        self._upstream = upstream

    def _uninstrument(self, **kwargs: Any) -> None:
        super()._uninstrument(**kwargs)
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            with guarded:
                upstream.uninstrument()
