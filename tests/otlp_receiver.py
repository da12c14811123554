"""A real OTLP receiver on loopback, HTTP (protobuf) or gRPC, that can misbehave on request.

In a test (a thread of the test process)::

    with OtlpReceiver() as receiver:                  # or OtlpReceiver("grpc")
        ...                                           # export to receiver.endpoint
        receiver.wait_for(lambda r: len(r.spans) == 3)

`spans`, `metric_points` and `log_records` hold what was accepted, in order of arrival; `requests`
holds everything that came in, refused or not, for a search for secrets. It behaves well until
told otherwise: `hang`, `fail`, `refuse`, and `serve` to be well again, on the same port.

As a process of its own (benchmarks: its CPU is then not the caller's; bodies are written down
as they are and decoded by `otlp_decode.read_requests`, later)::

    python -m tests.otlp_receiver --port 4318 --out got.jsonl
"""

from __future__ import annotations

import argparse
import base64
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.otlp_decode import (
    LogRecord,
    MetricPoint,
    ReceivedSpan,
    Request,
    Signal,
    log_records_of,
    metric_points_of,
    spans_of,
)
from tests.otlp_fronts import Answer, GrpcFront, HttpFront, bound

Protocol = Literal["http", "grpc"]


class OtlpReceiver:
    """A receiver on 127.0.0.1. The port is taken at construction and stays ours until `close`."""

    def __init__(
        self,
        protocol: Protocol = "http",
        port: int = 0,
        on_request: Callable[[Request], None] | None = None,
    ) -> None:
        """Start serving. With `on_request` requests go there, undecoded, and are not kept."""
        self.protocol = protocol
        self.requests: list[Request] = []
        self.spans: list[ReceivedSpan] = []
        self.metric_points: list[MetricPoint] = []
        self.log_records: list[LogRecord] = []
        self._on_request = on_request or self._keep
        self._changed = threading.Condition()
        self._failures = 0
        self._failure_status = 503
        self._retry_after: int | None = None
        self._hanging = False
        self._released = threading.Event()
        # Bound, never listening: while we refuse, nobody else can be given this port.
        self._placeholder = bound(port)
        self.port: int = self._placeholder.getsockname()[1]
        self._front: HttpFront | GrpcFront | None = None
        self.serve()

    @property
    def endpoint(self) -> str:
        """For ``OTEL_EXPORTER_OTLP_ENDPOINT``."""
        return f"http://127.0.0.1:{self.port}"

    def serve(self) -> None:
        """Behave: answer 200, and come back on the same port if it was closed."""
        self._behave(hanging=False, failures=0)
        self._listen()

    def hang(self) -> None:
        """Read requests and never answer; what came in is not kept as accepted."""
        self._behave(hanging=True, failures=0)
        self._listen()

    def fail(self, times: int = -1, status: int = 503, retry_after: int | None = None) -> None:
        """Answer `times` requests (-1: all) with `status`, then 200."""
        self._failure_status, self._retry_after = status, retry_after
        self._behave(hanging=False, failures=times)
        self._listen()

    def refuse(self) -> None:
        """Die: connections break, new ones are refused, until `serve`. What was got is kept."""
        front, self._front = self._front, None
        self._behave(hanging=False, failures=0)
        if front is not None:
            front.close()

    def close(self) -> None:
        """Refuse, and give the port back."""
        self.refuse()
        self._placeholder.close()

    def clear(self) -> None:
        """Forget what came in so far."""
        with self._changed:
            for kept in (self.requests, self.spans, self.metric_points, self.log_records):
                kept.clear()

    def wait_for(self, predicate: Callable[[Self], object], timeout: float = 10.0) -> None:
        """Wait until ``predicate(self)`` holds; it is asked after every request.

        Raises AssertionError with what has come in when `timeout` seconds are over.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                names = [span.name for span in self.spans]
                raise AssertionError(
                    f"not within {timeout} s; got {len(self.requests)} requests, "
                    f"{len(self.metric_points)} metric points, {len(self.log_records)} logs, "
                    f"{len(names)} spans: {names[-20:]}"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _listen(self) -> None:
        if self._front is None:
            front = HttpFront if self.protocol == "http" else GrpcFront
            self._front = front(self.port, self._handle)

    def _behave(self, *, hanging: bool, failures: int) -> None:
        with self._changed:
            self._hanging, self._failures = hanging, failures
            self._released.set()  # what hung so far is dropped now
            self._released = threading.Event()

    def _handle(self, kind: Signal, headers: dict[str, str], body: bytes) -> Answer | None:
        """Decide on one request; None: drop the connection without an answer."""
        now = time.time()
        with self._changed:
            hanging, released = self._hanging, self._released
            failing = not hanging and self._failures != 0
            status = 0 if hanging else self._failure_status if failing else 200
            retry_after = self._retry_after if failing else None
            if failing and self._failures > 0:
                self._failures -= 1
            self._on_request(Request(kind, headers, body, status, now))
            self._changed.notify_all()
        if hanging:
            released.wait()
            return None
        return Answer(status, retry_after)

    def _keep(self, request: Request) -> None:
        self.requests.append(request)
        if request.status != 200:
            return
        if request.signal == "traces":
            self.spans.extend(spans_of(request.body, request.time))
        elif request.signal == "metrics":
            self.metric_points.extend(metric_points_of(request.body))
        else:
            self.log_records.extend(log_records_of(request.body))


def main(arguments: list[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT; the first line on stdout is the endpoint, when it is up."""
    parser = argparse.ArgumentParser(description="An OTLP receiver that writes down what it gets.")
    parser.add_argument("--port", type=int, default=0, help="0 (default): any free one")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per request")
    parser.add_argument("--protocol", choices=["http", "grpc"], default="http")
    parser.add_argument("--behave", choices=["serve", "hang", "fail"], default="serve")
    options = parser.parse_args(arguments)
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before threads exist, so all inherit it
    with options.out.open("a", buffering=1) as out:

        def write(request: Request) -> None:
            body = base64.b64encode(request.body).decode()
            out.write(json.dumps({**vars(request), "body": body}) + "\n")

        with OtlpReceiver(options.protocol, options.port, write) as receiver:
            if options.behave != "serve":
                getattr(receiver, options.behave)()
            print(receiver.endpoint, flush=True)
            signal.sigwait(signals)


if __name__ == "__main__":
    main()
