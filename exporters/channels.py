"""The official OTLP exporters as carriers of requests that are encoded already.

Endpoint, headers, TLS, compression, timeout and retries are theirs, from ``OTEL_EXPORTER_OTLP_*``.
The seam is private in the pinned version, and tested: `_client.export(bytes)` over HTTP, `_export`
with `_translate_data` replaced over gRPC.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from msgspec import Struct
from opentelemetry import context
from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY

_CREDENTIALS: Final = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_"
_BAD_REQUEST: Final = frozenset({400, 413, 422})
"""What no repetition mends. A wrong token (401, 403) or path (404) may be mended: that waits."""
_BAD_CALL: Final = frozenset({"INVALID_ARGUMENT"})
_environment: Final = threading.Lock()


class Reply(Struct, frozen=True):
    """What became of a request."""

    accepted: bool
    is_bad: bool = False
    """Refused for what is in it: the same again will be refused again."""
    rejected: int = 0
    """Items of an accepted request that the backend did not take."""
    reason: str = ""
    """Why it was not accepted, in a few words for people: nothing of settings or answer in them."""


class Channel:
    """Carries the requests of one signal. Made by `open_channel`; never raises."""

    def __init__(self, exporter: Any, signal: str, fault: str = "") -> None:
        """*fault*: why there is no exporter; all is refused then."""
        self._exporter = exporter
        self._fault = fault
        self._signal = signal
        self._changing = threading.Lock()
        self._is_hurried = False

    def send(self, request: bytes, *, once: bool = False) -> Reply:
        """Send, with the exporter's own retries; at most its timeout (10 s by default).

        *once*: without the retries.
        """
        # In a job, the requests that we make are none of its own.
        token = context.attach(context.set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))
        _quiet.threads.add(threading.get_ident())
        try:
            return self._carry_once(request) if once else self._carry(request)
        except Exception as error:
            return Reply(False, reason=self._fault or _words(error))
        finally:
            _quiet.threads.discard(threading.get_ident())
            context.detach(token)

    def hurry(self, seconds: float) -> None:
        """From now on one attempt a request, of so many seconds at most.

        One that waits for its next attempt ends now. May be called from another thread.
        """
        with self._changing:
            self._is_hurried = True
            self._shorten(seconds)
            self._impatient().set()

    def close(self) -> None:
        """Let go of connections; a request under way may fail."""
        with suppress(Exception):
            self._exporter.shutdown()

    def _carry_once(self, request: bytes) -> Reply:
        impatient = self._impatient()
        impatient.set()
        try:
            return self._carry(request)
        finally:
            with self._changing:
                if not self._is_hurried:
                    impatient.clear()

    def _carry(self, request: bytes) -> Reply:
        raise NotImplementedError

    def _shorten(self, seconds: float) -> None:
        """From now on this is the timeout, if it was longer."""
        raise NotImplementedError

    def _impatient(self) -> threading.Event:
        """The exporter's, which keeps it from trying again."""
        raise NotImplementedError


def _words(error: object) -> str:
    """What the system says is at the bottom of *error*, else its type."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, TimeoutError) or "Timeout" in type(one).__name__:
            return "no answer in time"
        if isinstance(one, OSError) and one.errno and one.strerror and not one.filename:
            return one.strerror.lower().removeprefix("[ssl: certificate_verify_failed] ")
        waiting += [*one.args, one.__cause__, one.__context__, getattr(one, "reason", None)]
    return type(error).__name__


class _Http(Channel):
    answer: bytes = b""
    session: Any = None
    """Of `requests`, where it is ours."""

    def close(self) -> None:
        # urllib3 leaves this to `weakref.finalize`, which does nothing any more when our exit
        # handler runs, last of all: the sockets would complain into the user's stderr.
        with suppress(Exception):
            for adapter in self.session.adapters.values():
                pools = adapter.poolmanager.pools
                for key in pools.keys():  # noqa: SIM118
                    pools[key].close()
        super().close()

    def _shorten(self, seconds: float) -> None:
        client = self._exporter._client
        client._timeout = min(client._timeout, seconds)

    def _impatient(self) -> threading.Event:
        event: threading.Event = self._exporter._client._shutdown_event
        return event

    def _carry(self, request: bytes) -> Reply:
        self.answer = b""
        result = self._exporter._client.export(request)
        if result.success:
            return Reply(True, rejected=_rejected(self._signal, self.answer))
        status = result.status_code
        reason = f"HTTP {status}" if status else _words(result.error)
        return Reply(False, is_bad=status in _BAD_REQUEST, reason=reason)

    def keep_answer(self, response: Any, **_: Any) -> None:
        """Hook of `requests`: the exporter does not hand out the answer, which may be partial."""
        self.answer = response.content if response.status_code == 200 else b""


class _Grpc(Channel):
    def _shorten(self, seconds: float) -> None:
        self._exporter._timeout = min(self._exporter._timeout, seconds)

    def _impatient(self) -> threading.Event:
        event: threading.Event = self._exporter._shutdown_in_progress
        return event

    def _carry(self, request: bytes) -> Reply:
        result = self._exporter._export(_message(self._signal, "Request").FromString(request))
        stub = self._exporter._client
        if result.name == "SUCCESS":
            return Reply(True, rejected=_rejected_of(self._signal, stub.answer))
        code = stub.code
        return Reply(False, is_bad=code in _BAD_CALL, reason=f"gRPC {code}")


class _Stub:
    """The service's stub, and what it last answered."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.answer: Any = None
        self.code = "UNAVAILABLE"

    def Export(self, **call: Any) -> Any:
        self.answer = None
        try:
            self.answer = self._stub.Export(**call)
        except Exception as error:
            self.code = getattr(getattr(error, "code", lambda: None)(), "name", "UNKNOWN")
            raise
        return self.answer


def open_channel(signal: str, protocol: str, environ: Mapping[str, str]) -> Channel:
    """The carrier of *signal*; gRPC is imported only if *protocol* asks for it.

    Raises what the exporter raises for settings it cannot use.
    """
    with _settings_of(environ):
        return _open_grpc(signal) if protocol == "grpc" else _open_http(signal)


def _open_http(signal: str) -> Channel:
    import requests

    if signal == "traces":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Made
    elif signal == "metrics":
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # type: ignore[assignment]
            OTLPMetricExporter as Made,
        )
    else:
        from opentelemetry.exporter.otlp.proto.http._log_exporter import (  # type: ignore[assignment]
            OTLPLogExporter as Made,
        )
    # A session of our own would take the place of one that a credential provider makes.
    provided = any(
        name.startswith(_CREDENTIALS) and name.endswith("CREDENTIAL_PROVIDER")
        for name in os.environ
    )
    session = None if provided else requests.Session()
    channel = _Http(Made(session=session), signal)
    if session is not None:
        channel.session = session
        session.hooks["response"].append(channel.keep_answer)
    return channel


def _open_grpc(signal: str) -> Channel:
    if signal == "traces":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Made
    elif signal == "metrics":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # type: ignore[assignment]
            OTLPMetricExporter as Made,
        )
    else:
        from opentelemetry.exporter.otlp.proto.grpc._log_exporter import (  # type: ignore[assignment]
            OTLPLogExporter as Made,
        )
    exporter: Any = Made()
    stub = exporter._stub
    exporter._stub = lambda channel: _Stub(stub(channel))  # it makes a new one on a reconnect
    exporter._client = _Stub(exporter._client)
    exporter._translate_data = lambda request: request
    exporter._count_data = lambda request: 1
    return _Grpc(exporter, signal)


def _rejected(signal: str, answer: bytes) -> int:
    if not answer:
        return 0
    try:
        return _rejected_of(signal, _message(signal, "Response").FromString(answer))
    except Exception:  # some backends answer a protobuf request in JSON
        return 0


def _message(signal: str, kind: str) -> Any:
    """Class of a signal's ``Request`` or ``Response``."""
    from importlib import import_module

    name = {"traces": "trace"}.get(signal, signal)
    module = import_module(f"opentelemetry.proto.collector.{name}.v1.{name}_service_pb2")
    return getattr(module, f"Export{name.title()}Service{kind}")


def _rejected_of(signal: str, answer: Any) -> int:
    field = {
        "traces": "rejected_spans",
        "metrics": "rejected_data_points",
        "logs": "rejected_log_records",
    }
    return int(getattr(answer.partial_success, field[signal]))


@contextmanager
def _settings_of(environ: Mapping[str, str]) -> Iterator[None]:
    # The exporters read os.environ; in a recorder and in a job *environ* is just that.
    wanted = {name: value for name, value in environ.items() if name.startswith("OTEL_EXPORTER_")}
    with _environment:
        before = {
            name: value for name, value in os.environ.items() if name.startswith("OTEL_EXPORTER_")
        }
        if wanted == before:
            yield
            return
        try:
            _replace(before, wanted)
            yield
        finally:
            _replace(wanted, before)


def _replace(old: Mapping[str, str], new: Mapping[str, str]) -> None:
    for name in old.keys() - new.keys():
        del os.environ[name]
    os.environ.update(new)


class _Quiet(logging.Filter):
    """Says nothing of what the exporters log in our threads: the outbox keeps, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread not in self.threads


_quiet: Final = _Quiet()
for _name in (
    "grpc.exporter",
    "http.trace_exporter",
    "http.metric_exporter",
    "http._log_exporter",
):
    logging.getLogger(f"opentelemetry.exporter.otlp.proto.{_name}").addFilter(_quiet)
