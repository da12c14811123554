"""How requests reach the OTLP receiver: an HTTP server and a gRPC server that die on command."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

import grpc

from tests.otlp_decode import Signal

HTTP_PATHS: dict[str, Signal] = {
    "/v1/traces": "traces",
    "/v1/metrics": "metrics",
    "/v1/logs": "logs",
}
GRPC_SERVICES: dict[Signal, str] = {
    "traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}
GRPC_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


@dataclass(frozen=True)
class Answer:
    status: int
    retry_after: int | None


Handle = Callable[[Signal, dict[str, str], bytes], Answer | None]


def bound(port: int) -> socket.socket:
    """A TCP socket bound to loopback in a way that a listener can share its port with it."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind(("127.0.0.1", port))
    return bound


class HttpFront:
    """One thread that accepts, one per connection; `close` breaks the connections too."""

    def __init__(self, port: int, handle: Handle) -> None:
        self.handle = handle
        self._listener = bound(port)
        self._listener.listen(128)
        self._lock = threading.Lock()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._closed = False
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._talk, args=(connection, address), daemon=True)
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._open[connection] = thread
                thread.start()

    def _talk(self, connection: socket.socket, address: tuple[str, int]) -> None:
        try:
            _HttpHandler(connection, address, self)  # type: ignore[arg-type]
        except OSError:
            pass  # the client went away, or `close` did its work
        finally:
            with self._lock:
                self._open.pop(connection, None)
                connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            threads = [self._acceptor, *self._open.values()]
            _shut(self._listener)
            for connection in self._open:
                _shut(connection)
        for thread in threads:
            thread.join(5.0)
        self._listener.close()


def _shut(connection: socket.socket) -> None:
    """Wake whoever blocks in this socket; `close` alone would not."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        kind = HTTP_PATHS.get(self.path)
        if kind is None:
            self._answer(404)
            return
        answer = self.server.handle(kind, headers, _inflated(headers, body))  # type: ignore[attr-defined]
        if answer is None:
            self.close_connection = True
            return
        self._answer(answer.status, answer.retry_after)

    def _answer(self, status: int, retry_after: int | None = None) -> None:
        self.send_response_only(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        if retry_after is not None:
            self.send_header("Retry-After", str(retry_after))
        self.end_headers()
        self.wfile.flush()


def _inflated(headers: dict[str, str], body: bytes) -> bytes:
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding == "gzip":
        return gzip.decompress(body)
    if encoding == "deflate":
        return zlib.decompress(body)
    return body


class GrpcFront:
    """The three collector services; bodies stay bytes, so no generated stubs are needed."""

    def __init__(self, port: int, handle: Handle) -> None:
        # A hanging handler occupies its thread until it is released.
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=16), options=[("grpc.so_reuseport", 1)]
        )
        for kind, service in GRPC_SERVICES.items():
            handler: Any = grpc.unary_unary_rpc_method_handler(_exporter(kind, handle))
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
            )
        if self._server.add_insecure_port(f"127.0.0.1:{port}") != port:
            raise OSError(f"gRPC could not listen on port {port}")
        self._server.start()

    def close(self) -> None:
        self._server.stop(grace=None).wait(5.0)


def _exporter(kind: Signal, handle: Handle) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        headers = {str(key).lower(): str(value) for key, value in context.invocation_metadata()}
        answer = handle(kind, headers, body)
        if answer is None:
            context.abort(grpc.StatusCode.CANCELLED, "released without an answer")
        elif answer.status != 200:
            context.abort(GRPC_STATUS.get(answer.status, grpc.StatusCode.UNKNOWN), "as told")
        return b""

    return export
