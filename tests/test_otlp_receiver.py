"""The receiver the other tests rely on does what it is told, with the official exporters."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
    OTLPMetricExporter as GrpcMetricExporter,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from tests.otlp_decode import read_requests, spans_of
from tests.otlp_receiver import OtlpReceiver, Protocol

ROOT = Path(__file__).parent.parent
PROTOCOLS: list[Protocol] = ["http", "grpc"]


@pytest.fixture(params=PROTOCOLS)
def receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    """One of each kind."""
    with OtlpReceiver(request.param) as started:
        yield started


def export_span(receiver: OtlpReceiver, name: str = "work", timeout: float = 5.0) -> None:
    """Send one span with the official exporter, gzip and a header, and shut it down."""
    headers = {"authorization": "Bearer hunter2"}
    exporter: Any
    if receiver.protocol == "http":
        exporter = HttpSpanExporter(
            receiver.endpoint + "/v1/traces",
            headers=headers,
            timeout=timeout,
            compression=Compression.Gzip,
        )
    else:
        exporter = GrpcSpanExporter(
            receiver.endpoint, insecure=True, headers=headers, timeout=timeout
        )
    provider = TracerProvider(resource=Resource({"service.name": "etl"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with provider.get_tracer("scope").start_as_current_span(name) as span:
        span.set_attribute("rows", [1, 2])
        span.add_event("happened", {"where": "here"})
    provider.shutdown()


def test_spans_arrive_decoded(receiver: OtlpReceiver) -> None:
    """A span, its resource, scope, attributes, events, and the request's headers."""
    export_span(receiver)
    receiver.wait_for(lambda r: r.spans)
    (span,) = receiver.spans
    (request,) = receiver.requests
    assert (span.name, span.scope, span.parent_span_id) == ("work", "scope", "")
    assert span.resource["service.name"] == "etl"
    assert span.attributes == {"rows": [1, 2]}
    assert span.events == [("happened", {"where": "here"})]
    assert (len(span.trace_id), len(span.span_id)) == (32, 16)
    assert request.headers["authorization"] == "Bearer hunter2"
    assert b"happened" in request.body
    receiver.clear()
    assert not receiver.spans and not receiver.requests


def test_metric_points_arrive_decoded(receiver: OtlpReceiver) -> None:
    """A counter's total and a histogram, with kind, temporality and attributes."""
    exporter: Any
    if receiver.protocol == "http":
        exporter = HttpMetricExporter(receiver.endpoint + "/v1/metrics")
    else:
        exporter = GrpcMetricExporter(receiver.endpoint, insecure=True)
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], shutdown_on_exit=False)
    meter = provider.get_meter("scope")
    meter.create_counter("rows", "{record}").add(7, {"stage": "load"})
    meter.create_histogram("took", "s").record(0.25)
    provider.shutdown()
    receiver.wait_for(lambda r: len(r.metric_points) == 2)
    rows, took = sorted(receiver.metric_points, key=lambda point: point.name)
    assert (rows.kind, rows.temporality, rows.monotonic) == ("sum", "cumulative", True)
    assert (rows.value, rows.unit, rows.attributes) == (7.0, "{record}", {"stage": "load"})
    assert (took.kind, took.value, took.point.count) == ("histogram", 0.25, 1)


def test_fails_as_often_as_told(receiver: OtlpReceiver) -> None:
    """One 503, then well again: the exporter's retry gets through; both requests are kept."""
    receiver.fail(times=1)
    export_span(receiver)
    receiver.wait_for(lambda r: r.spans)
    assert [request.status for request in receiver.requests] == [503, 200]
    assert len(receiver.spans) == 1


def test_hangs_until_it_serves_again(receiver: OtlpReceiver) -> None:
    """A hanging server accepts nothing; afterwards the same port works."""
    receiver.hang()
    export_span(receiver, "lost", timeout=0.5)
    assert not receiver.spans
    assert {request.status for request in receiver.requests} <= {0}
    receiver.serve()
    export_span(receiver, "kept")
    receiver.wait_for(lambda r: r.spans)
    assert [span.name for span in receiver.spans] == ["kept"]


def test_comes_back_on_the_same_port(receiver: OtlpReceiver) -> None:
    """Killed it refuses, keeps what it had, and comes back where it was."""
    endpoint = receiver.endpoint
    export_span(receiver, "before")
    receiver.refuse()
    export_span(receiver, "lost", timeout=0.5)
    receiver.serve()
    assert receiver.endpoint == endpoint
    export_span(receiver, "after", timeout=10.0)
    receiver.wait_for(lambda r: len(r.spans) == 2)
    assert [span.name for span in receiver.spans] == ["before", "after"]


def test_a_wait_is_bounded_and_says_what_came() -> None:
    """A predicate that never holds raises, with what had arrived."""
    with OtlpReceiver() as receiver:
        export_span(receiver, "only")
        with pytest.raises(AssertionError, match="got 1 requests.*1 spans: .*only"):
            receiver.wait_for(lambda r: len(r.spans) == 2, timeout=0.1)


def test_refuses_connections_while_dead() -> None:
    """The port is reserved, and nobody listens."""
    with OtlpReceiver() as receiver:
        receiver.refuse()
        with pytest.raises(requests.ConnectionError, match="refused"):
            requests.post(receiver.endpoint + "/v1/traces", b"", timeout=5)


def test_status_and_retry_after_reach_the_client() -> None:
    """What an unknown path and a throttled request are answered with."""
    with OtlpReceiver() as receiver:
        receiver.fail(status=429, retry_after=7)
        throttled = requests.post(receiver.endpoint + "/v1/traces", b"", timeout=5)
        unknown = requests.post(receiver.endpoint + "/v2/traces", b"", timeout=5)
    assert (throttled.status_code, throttled.headers["Retry-After"]) == (429, "7")
    assert unknown.status_code == 404


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_runs_as_a_process(protocol: Protocol, tmp_path: Path) -> None:
    """It prints its endpoint, writes requests down as they are, and ends on SIGTERM."""
    out = tmp_path / "got.jsonl"
    command = [sys.executable, "-m", "tests.otlp_receiver", "--protocol", protocol]
    with subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        exporter: Any
        if protocol == "http":
            exporter = HttpSpanExporter(endpoint + "/v1/traces")
        else:
            exporter = GrpcSpanExporter(endpoint, insecure=True)
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("scope").start_span("far").end()
        provider.shutdown()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    (request,) = read_requests(out)
    assert [span.name for span in spans_of(request.body)] == ["far"]
    assert (request.signal, request.status) == ("traces", 200)
