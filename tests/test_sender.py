"""Sending: to real receivers, through outages, exactly counted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from stagewatch.database import connect
from stagewatch.exporters.channels import open_channel
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.sending import outbox, sender, series
from stagewatch.exporters.recorder.sending.sender import Turn, ship
from stagewatch.exporters.state import destination
from stagewatch.history import open_history
from stagewatch.records import (
    ForeignMetric,
    ForeignPoint,
    LogEmitted,
    MetricsCollected,
    ScopeDefined,
)
from tests.otlp_decode import Request
from tests.otlp_fronts import Answer
from tests.otlp_receiver import OtlpReceiver, Protocol
from tests.scenes import FAILED, SECOND, START, Job, environment

Make = Callable[..., Intake]


@pytest.fixture(params=["http", "grpc"])
def receiver(request: pytest.FixtureRequest) -> Iterator[OtlpReceiver]:
    """Over both protocols."""
    with OtlpReceiver(request.param) as found:
        yield found


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Make]:
    """Intakes with running senders, stopped at the end."""
    opened: list[Intake] = []

    def make(receiver: OtlpReceiver, *, sends: bool = True, **settings: str) -> Intake:
        opened.append(Intake(tmp_path, settings_for(receiver, **settings), sends=sends))
        return opened[-1]

    yield make
    for one in opened:
        one.stop(2.0)


def settings_for(receiver: OtlpReceiver, **settings: str) -> dict[str, str]:
    """Environment of a recorder that sends to *receiver*."""
    protocol = {"http": "http/protobuf", "grpc": "grpc"}[receiver.protocol]
    return environment(receiver.endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, **settings)


def whole_run(intake: Intake, directory: Path, number: int = 0, **changes: Any) -> Job:
    """One run with a stage that writes 10 + *number* records, and a span of the user's."""
    job = Job(intake, directory, **changes)
    job.open()
    load = job.stage("load")
    job.put(job.span_ended("mine", parent_span_id=load.span_id))
    job.stage_ended(load, 1.0, records_out=10 + number)
    job.exits(2)
    job.dies()
    return job


def settled(intake: Intake) -> None:
    """Wait until nothing is pending."""
    until = time.monotonic() + 20
    while intake.is_busy():
        assert time.monotonic() < until, "still pending after 20 s"
        time.sleep(0.02)


def test_a_run_arrives_whole(tmp_path: Path, receiver: OtlpReceiver, made: Make) -> None:
    """Run and stage spans first, then the user's; resource and scope with them."""
    intake = made(receiver, sends=False)
    job = whole_run(intake, tmp_path)
    assert ship(tmp_path, settings_for(receiver), 10.0).pending == {}
    assert [(span.name, span.parent_span_id) for span in receiver.spans] == [
        ("flights", ""),
        ("load", job.span.hex()),
        ("mine", receiver.spans[1].span_id),
    ]
    for span in receiver.spans:
        assert span.trace_id == job.run
        assert span.scope == "stagewatch"
        assert span.resource["service.name"] == "etl"
        assert "process.pid" in span.resource


def test_a_new_total_is_0_first(tmp_path: Path, receiver: OtlpReceiver, made: Make) -> None:
    """What was never seen begins at 0 and is then what it is, later, from the same start."""
    whole_run(made(receiver), tmp_path)
    receiver.wait_for(lambda r: len(runs_of(r)) >= 2)
    first, second = runs_of(receiver)[:2]
    assert (first.value, second.value) == (0, 1)
    assert first.point.time_unix_nano < second.point.time_unix_nano
    assert first.point.start_time_unix_nano == second.point.start_time_unix_nano
    assert abs(second.point.time_unix_nano - time.time_ns()) < 60 * SECOND
    assert second.resource.keys() == {"service.name", "service.instance.id"}
    assert second.scope == "stagewatch"
    assert second.temporality == "cumulative"


def runs_of(receiver: OtlpReceiver) -> list[Any]:
    """Points of ``pipeline.runs``, in order of arrival."""
    return [point for point in receiver.metric_points if point.name == "pipeline.runs"]


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_ten_runs_add_up_exactly(
    tmp_path: Path, receiver: OtlpReceiver, made: Make, temporality: str
) -> None:
    """Whatever is sent when: what arrives is the figures of ten runs, not more and not less."""
    preference = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": temporality}
    intake = made(receiver, **preference)
    jobs = []
    for number in range(10):
        jobs.append(whole_run(intake, tmp_path, number))
        if number == 5:
            settled(intake)
    settled(intake)
    expected = {"pipeline.runs": 10, "pipeline.records": 145, "pipeline.stage.duration": 10}
    found = sums(receiver, temporality)
    assert {name: found[name] for name in expected} == expected
    assert found["sum pipeline.stage.duration"] == pytest.approx(10.0)
    points = [point for point in receiver.metric_points if point.name in expected]
    assert {point.temporality for point in points} == {temporality}
    if temporality == "delta":
        runs = {point.resource["pipeline.run.id"] for point in points}
        assert runs == {job.run for job in jobs}
        replays = {
            (p.name, p.resource["pipeline.run.id"], str(p.attributes),
             p.point.start_time_unix_nano, p.point.time_unix_nano)
            for p in points
        }  # fmt: skip
        assert len(replays) == len(points)
        assert all(p.point.start_time_unix_nano < p.point.time_unix_nano for p in points)


def sums(receiver: OtlpReceiver, temporality: str) -> dict[str, float]:
    """Totals by metric: of the newest points, or of all deltas; of histograms the counts."""
    series: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for point in receiver.metric_points:
        series[point.name, str(sorted(point.attributes.items()))].append(point.point)
    found: dict[str, float] = defaultdict(float)
    for (name, _), points in series.items():
        for point in points if temporality == "delta" else points[-1:]:
            if hasattr(point, "bucket_counts"):
                found[name] += point.count
                found["sum " + name] += point.sum
            else:
                found[name] += point.as_int or point.as_double
    return found


def test_an_outage_is_sat_out(tmp_path: Path, receiver: OtlpReceiver, made: Make) -> None:
    """Everything arrives once the backend is back; the intake did not wait for it."""
    receiver.refuse()
    intake = made(receiver)
    began = time.monotonic()
    jobs = [whole_run(intake, tmp_path) for _ in range(5)]
    assert time.monotonic() - began < 5
    time.sleep(0.5)
    assert intake.is_busy()
    receiver.serve()
    receiver.wait_for(lambda r: {span.trace_id for span in r.spans} == {j.run for j in jobs}, 30)
    receiver.wait_for(lambda r: sums(r, "cumulative").get("pipeline.runs") == 5, 30)
    assert len({(span.trace_id, span.span_id) for span in receiver.spans}) == 15


def test_a_hanging_backend_does_not_hold_up_a_stop(
    tmp_path: Path, receiver: OtlpReceiver, made: Make
) -> None:
    """SIGTERM flushes for its time and no longer; what was not sent stays pending."""
    receiver.hang()
    intake = made(receiver)
    whole_run(intake, tmp_path)
    time.sleep(0.3)
    began = time.monotonic()
    intake.stop(1.0)
    assert time.monotonic() - began < 5
    with open_history(tmp_path, readonly=True) as history:
        (waiting,) = history.pending().values()
        assert waiting["traces"] == 3


def test_a_stop_flushes(tmp_path: Path, receiver: OtlpReceiver, made: Make) -> None:
    """What has just been taken in is sent before the recorder goes."""
    intake = made(receiver)
    whole_run(intake, tmp_path)
    intake.stop(5.0)
    assert sorted(span.name for span in receiver.spans) == ["flights", "load", "mine"]
    assert sums(receiver, "cumulative")["pipeline.runs"] == 1


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """One that refuses every request with a span called ``bad`` for its content."""
    with OtlpReceiver() as found:
        genuine = found._handle

        def handle(kind: Any, headers: dict[str, str], body: bytes) -> Answer | None:
            if kind == "traces" and b"bad" in body:
                with found._changed:
                    found.requests.append(Request(kind, headers, body, 400, time.time()))
                return Answer(400, None)
            return genuine(kind, headers, body)

        assert found._front is not None
        monkeypatch.setattr(found, "_handle", handle)
        found.refuse()
        found.serve()
        yield found


def test_a_bad_span_does_not_block_the_others(
    tmp_path: Path, picky: OtlpReceiver, made: Make
) -> None:
    """It is found by halving, counted as dropped, and kept in the history."""
    intake = made(picky)
    job = Job(intake, tmp_path)
    job.open()
    job.put(*(job.span_ended("bad" if n in (3, 77) else f"good{n}") for n in range(100)))
    settled(intake)
    assert len(picky.spans) == 98
    with open_history(tmp_path, readonly=True) as history:
        states = [span.state for span in history.spans(job.run)]
        lost = history.counters("stagewatch.telemetry.dropped")
        sent = history.counters("stagewatch.telemetry.shipped")
    assert (states.count("rejected"), states.count("sent")) == (2, 98)
    assert {(dict(key)["signal"], dict(key)["reason"]): n for key, n in lost.items()} == {
        ("traces", "rejected"): 2
    }
    assert {dict(key)["signal"]: n for key, n in sent.items()}["traces"] == 98


@pytest.mark.internal_errors
def test_a_span_that_cannot_be_encoded_blocks_nothing(tmp_path: Path, made: Make) -> None:
    """A time before 1970, which OTLP does not know."""
    with OtlpReceiver() as receiver:
        intake = made(receiver)
        job = Job(intake, tmp_path)
        job.put(job.span_ended("good"), job.span_ended("bad", start=-5), job.span_ended("fine"))
        settled(intake)
        assert [span.name for span in receiver.spans] == ["good", "fine"]
    with open_history(tmp_path, readonly=True) as history:
        assert sum(history.counters("stagewatch.telemetry.dropped").values()) == 1


class _Partial(BaseHTTPRequestHandler):
    """Takes all but two items of each request, and says so."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = ExportTraceServiceResponse()
        answer.partial_success.rejected_spans = 2
        body = answer.SerializeToString()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_what_a_backend_takes_in_part_is_counted(tmp_path: Path) -> None:
    """It does not say which; they are not sent again."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Partial) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environ = environment(
            f"http://127.0.0.1:{server.server_port}", OTEL_METRICS_EXPORTER="none"
        )
        intake = Intake(tmp_path, environ, sends=False)
        whole_run(intake, tmp_path)
        intake.stop(0.0)
        shipped = ship(tmp_path, environ, 10.0)
        server.shutdown()
    assert shipped.pending == {}
    with open_history(tmp_path, readonly=True) as history:
        assert list(history.counters("stagewatch.telemetry.dropped").values()) == [2]
        assert list(history.counters("stagewatch.telemetry.shipped").values()) == [1]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 503])
def test_what_may_be_mended_is_kept(tmp_path: Path, made: Make, status: int) -> None:
    """A wrong token or path is no reason to throw anything away."""
    with OtlpReceiver() as receiver:
        receiver.fail(status=status, retry_after=0 if status in (429, 503) else None)
        intake = made(receiver, sends=False)
        whole_run(intake, tmp_path)
        shipped = ship(tmp_path, settings_for(receiver), 5.0)
        assert (shipped.sent, shipped.pending["traces"]) == (0, 3)
        assert shipped.reason == f"HTTP {status}"
        receiver.serve()
        assert ship(tmp_path, settings_for(receiver), 10.0).pending == {}


def test_shipping_stops_at_the_first_refusal(
    tmp_path: Path, receiver: OtlpReceiver, made: Make
) -> None:
    """Nobody waits for a backend that is not there."""
    whole_run(made(receiver, sends=False), tmp_path)
    receiver.refuse()
    began = time.monotonic()
    shipped = ship(tmp_path, settings_for(receiver), 30.0)
    assert time.monotonic() - began < 5
    assert (shipped.sent, shipped.pending["traces"], shipped.elsewhere) == (0, 3, {})
    assert shipped.reason in ("connection refused", "gRPC UNAVAILABLE")


def test_shipping_gives_up_in_time(tmp_path: Path, receiver: OtlpReceiver, made: Make) -> None:
    """A backend that hangs costs what was allowed."""
    whole_run(made(receiver, sends=False), tmp_path)
    receiver.hang()
    began = time.monotonic()
    shipped = ship(tmp_path, settings_for(receiver), 1.0)
    assert time.monotonic() - began < 6
    assert shipped.reason in ("no answer in time", "gRPC DEADLINE_EXCEEDED")


def test_other_destinations_are_named(tmp_path: Path, made: Make) -> None:
    """What waits for other settings is left to them."""
    with OtlpReceiver() as one, OtlpReceiver() as other:
        whole_run(made(one, sends=False), tmp_path)
        shipped = ship(tmp_path, settings_for(other), 5.0)
        assert (shipped.sent, shipped.pending) == (0, {})
        (waiting,) = shipped.elsewhere.values()
        assert waiting["traces"] == 3
        assert ship(tmp_path, environment(), 5.0).elsewhere == shipped.elsewhere


def test_newer_headers_end_an_outage(tmp_path: Path, made: Make) -> None:
    """A renewed token is used at once; header values are no part of the destination."""
    with OtlpReceiver() as receiver:
        receiver.fail(status=401)
        intake = made(receiver, OTEL_EXPORTER_OTLP_HEADERS="authorization=old")
        whole_run(intake, tmp_path)
        receiver.wait_for(lambda r: r.requests)
        intake.headers({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=new"})
        receiver.wait_for(lambda r: r.requests[-1].headers["authorization"] == "new")
        assert receiver.requests[0].headers["authorization"] == "old"
        receiver.serve()
        intake.headers({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=newest"})
        receiver.wait_for(lambda r: len(r.spans) == 3)


def test_headers_are_never_on_disk(tmp_path: Path, made: Make) -> None:
    """The token lives in the recorder's memory alone."""
    with OtlpReceiver() as receiver:
        intake = made(receiver, OTEL_EXPORTER_OTLP_HEADERS="authorization=hush-4711")
        whole_run(intake, tmp_path)
        receiver.wait_for(lambda r: len(r.spans) == 3)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"hush-4711" not in path.read_bytes(), path


def test_exception_messages_are_in_no_request(
    tmp_path: Path, receiver: OtlpReceiver, made: Make
) -> None:
    """Not in the run's span, not in a stage's, whatever the history knows."""
    intake = made(receiver)
    job = Job(intake, tmp_path)
    job.open()
    event = ("exception", START, {"exception.type": "KeyError", "exception.message": "hush"})
    job.put(job.span_ended("mine", status=2, status_description="hush", events=[event]))
    job.exits(1, error_type="KeyError", error_message="hush", error_place="a.py:1 in f")
    job.dies(FAILED)
    receiver.wait_for(lambda r: len(r.spans) == 2)
    assert all(b"hush" not in request.body for request in receiver.requests)
    assert {span.name: span.attributes.get("error.type") for span in receiver.spans} == {
        "mine": None,
        "flights": "KeyError",
    }


def test_logs_and_foreign_metrics_pass(tmp_path: Path, receiver: OtlpReceiver, made: Make) -> None:
    """With the whole resource of their process, once."""
    intake = made(receiver, OTEL_LOGS_EXPORTER="otlp")
    job = Job(intake, tmp_path)
    job.open()
    job.put(
        ScopeDefined(65536, "my.logger", None, None),
        LogEmitted(START, START, 9, "INFO", "hello", b"t" * 16, b"s" * 8, 65536, {"k": 1}),
        MetricsCollected(
            START, START + SECOND,
            [ForeignMetric("lib", None, "hits", "1", "", "sum", [ForeignPoint({"k": "v"}, 3)])],
        ),
    )  # fmt: skip
    job.dies()
    settled(intake)
    (log,) = receiver.log_records
    assert (log.body, log.scope, log.resource["process.pid"]) == ("hello", "my.logger", mine(job))
    hits = [point for point in receiver.metric_points if point.name == "hits"]
    assert [point.value for point in hits] == [0, 3]
    assert hits[-1].resource["process.pid"] == mine(job)
    assert hits[-1].attributes == {"k": "v"}


def mine(job: Job) -> int:
    """The job's pid."""
    return int(job.key.split(".")[0])


def test_totals_are_repeated_while_a_run_is_active(
    tmp_path: Path, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing changes, and the series go on; after the run they stop."""
    monkeypatch.setattr(sender, "_REPEAT_SECONDS", 0.1)
    with OtlpReceiver() as receiver:
        intake = made(receiver)
        whole_run(intake, tmp_path)
        job = Job(intake, tmp_path)
        job.open()
        receiver.wait_for(lambda r: len(runs_of(r)) >= 6)
        assert {point.value for point in runs_of(receiver)[2:]} == {1}
        job.dies()
        settled(intake)
        time.sleep(0.3)
        count = len(receiver.requests)
        time.sleep(0.5)
        assert len(receiver.requests) == count


def test_the_old_total_comes_before_a_late_increment(
    tmp_path: Path, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A series that may have gone stale is shown once more as it was."""
    monkeypatch.setattr(series, "_STALE_SECONDS", 0.0)
    with OtlpReceiver() as receiver:
        intake = made(receiver)
        for _ in range(2):
            whole_run(intake, tmp_path)
            settled(intake)
        values = [point.value for point in runs_of(receiver)]
        assert values[0] == 0
        assert [v for n, v in enumerate(values) if n == 0 or values[n - 1] != v] == [0, 1, 2]
        assert values.count(1) >= 2


def test_killed_between_sending_and_marking_the_same_comes_again(
    tmp_path: Path, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once: with identical ids, and identical bounds of deltas."""
    delta = {"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
    with OtlpReceiver() as receiver:
        whole_run(made(receiver, sends=False, **delta), tmp_path)
        for broken in (True, False):
            if broken:
                monkeypatch.setattr(outbox.Outbox, "_count", _broken)
            else:
                monkeypatch.undo()
            link = connect(tmp_path)
            environ = settings_for(receiver, **delta)
            box = outbox.Outbox(link, destination(environ), environ)
            for signal in ("traces", "metrics"):
                try:
                    box.send(signal, lambda: True)
                except ZeroDivisionError:
                    assert broken
            link.close()
            box.close()
        ids = [(span.name, span.span_id) for span in receiver.spans]
        assert (len(ids), len(set(ids))) == (6, 3)
        bounds = [
            (p.name, str(p.attributes), p.point.start_time_unix_nano, p.point.time_unix_nano)
            for p in receiver.metric_points
            if p.temporality == "delta" and p.name.startswith("pipeline.")
        ]
        assert len(bounds) == 2 * len(set(bounds))


def _broken(*_: object) -> None:
    raise ZeroDivisionError


def test_one_sender_per_destination(tmp_path: Path) -> None:
    """The right to send is exclusive among processes, and ends with them."""
    program = (
        "import sys, pathlib; from stagewatch.exporters.recorder.sending.sender import Turn\n"
        "turn = Turn(pathlib.Path(sys.argv[1]), 'k'); print(turn.take(), flush=True)\n"
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        turn = Turn(tmp_path, "k")
        assert not turn.take()
        assert Turn(tmp_path, "other").take()
        other.communicate(timeout=10)
    assert turn.take()
    turn.give_back()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_the_seam_to_the_official_exporters(signal: str, protocol: str) -> None:
    """What we use of their insides is there in the pinned version."""
    kind: Protocol = "grpc" if protocol == "grpc" else "http"
    with OtlpReceiver(kind) as receiver:
        environ = environment(receiver.endpoint, OTEL_EXPORTER_OTLP_HEADERS="k=v")
        channel = open_channel(signal, protocol, environ)
        reply = channel.send(b"")
        assert (reply.accepted, reply.rejected) == (True, 0)
        assert [(one.signal, one.headers["k"]) for one in receiver.requests] == [(signal, "v")]
        receiver.refuse()
        stop = threading.Timer(0.3, channel.hurry, [1.0])
        stop.start()
        began = time.monotonic()
        assert not channel.send(b"").accepted
        assert time.monotonic() - began < 4
        channel.close()
        stop.join()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_once_is_without_retries(protocol: str) -> None:
    """One that is sent once is not repeated; the next one is again."""
    kind: Protocol = "grpc" if protocol == "grpc" else "http"
    with OtlpReceiver(kind) as receiver:
        channel = open_channel("traces", protocol, environment(receiver.endpoint))
        receiver.fail(times=1)
        assert not channel.send(b"", once=True).accepted
        receiver.fail(times=1)
        assert channel.send(b"").accepted
        channel.close()


def test_who_refused_is_tried_with_a_few(tmp_path: Path, made: Make) -> None:
    """Most of what a dead backend costs is what is encoded for it in vain."""
    with OtlpReceiver() as receiver:
        job = Job(made(receiver, sends=False), tmp_path)
        job.open()
        job.put(*(job.span_ended("mine") for _ in range(120)))
        with closing(connect(tmp_path)) as link:
            box = outbox.Outbox(link, destination(settings_for(receiver)), settings_for(receiver))
            receiver.fail(times=1, status=401)
            assert not box.send("traces", lambda: True)
            assert box.send("traces", lambda: True)
            assert box.pending().get("traces") is None
            box.close()
        assert len({span.span_id for span in receiver.spans}) == len(receiver.spans) == 120
        sizes = [len(one.body) for one in receiver.requests if one.signal == "traces"]
        assert sizes[-2] < sizes[-1]
