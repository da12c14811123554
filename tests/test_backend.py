"""Whole jobs against a real OTLP receiver, alive, away, hanging and failing."""

from __future__ import annotations

import json
import sqlite3
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from stagewatch import semconv
from tests.jobs import BIN, Jobs, end_recorders, wait_for
from tests.otlp_decode import ReceivedSpan
from tests.otlp_receiver import OtlpReceiver

BURST = """
    from opentelemetry import trace
    tracer = trace.get_tracer("mine")
    for number in range(3000):
        with tracer.start_as_current_span("burst"):
            pass
"""


@pytest.fixture(params=["http/protobuf", "grpc"])
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def receiver(protocol: str) -> Iterator[OtlpReceiver]:
    with OtlpReceiver("grpc" if protocol == "grpc" else "http") as found:
        yield found


@pytest.fixture
def http() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


def to(receiver: OtlpReceiver, protocol: str = "http/protobuf") -> dict[str, str]:
    """Settings of a job that sends there."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }


def spans(receiver: OtlpReceiver) -> list[ReceivedSpan]:
    """Those that arrived, without the one that says of a run that takes a second that it began."""
    return [span for span in receiver.spans if span.name != semconv.RUN_STARTED]


def names(receiver: OtlpReceiver) -> list[str]:
    """Their names."""
    return [span.name for span in spans(receiver)]


def ids(receiver: OtlpReceiver) -> set[bytes]:
    """Their ids."""
    return {span.span.span_id for span in spans(receiver)}


def test_a_run_arrives(jobs: Jobs, receiver: OtlpReceiver, protocol: str) -> None:
    """Run, stage and the user's span, each once, under the ids they had in the job."""
    result = jobs.run(
        """
        import stagewatch
        from opentelemetry import trace
        with stagewatch.stage("load"), trace.get_tracer("mine").start_as_current_span("own") as s:
            print(f"{s.get_span_context().span_id:016x}")
        """,
        **to(receiver, protocol),
    )
    receiver.wait_for(lambda got: {"etl", "load", "own"} <= set(names(got)))
    assert sorted(names(receiver)) == ["etl", "load", "own"]
    own = next(span for span in receiver.spans if span.name == "own")
    assert own.span.span_id.hex() == result.stdout.strip()
    parents = {span.name: span.span.parent_span_id for span in spans(receiver)}
    by_name = {span.name: span.span.span_id for span in spans(receiver)}
    assert parents == {"etl": b"", "load": by_name["etl"], "own": by_name["load"]}


def test_a_burst_is_not_lost(jobs: Jobs, receiver: OtlpReceiver, protocol: str) -> None:
    """Thousands of spans at once, and the process gone at once: all of them arrive."""
    jobs.run(BURST, **to(receiver, protocol))
    receiver.wait_for(lambda got: len(ids(got)) == 3001, timeout=30)


@pytest.mark.parametrize("away", ["refuse", "hang", "fail"])
def test_backend_away(jobs: Jobs, http: OtlpReceiver, away: str) -> None:
    """The job ends all the same; everything arrives once the backend is back."""
    getattr(http, away)()
    jobs.run(BURST, **to(http))
    jobs.runs()
    http.serve()
    http.wait_for(lambda got: len(ids(got)) == 3001, timeout=60)


def totals(receiver: OtlpReceiver, metric: str) -> dict[tuple[Any, ...], float]:
    """Newest value of each series of a cumulative counter."""
    found: dict[tuple[Any, ...], float] = {}
    for point in receiver.metric_points:
        if point.name == metric:
            found[tuple(sorted(point.attributes.items()))] = point.value
    return found


def test_totals_of_short_runs_add_up(jobs: Jobs, http: OtlpReceiver) -> None:
    """The receiver's totals are exact over many runs, and each series began at 0."""
    script = """
        import stagewatch
        with stagewatch.stage("load") as s:
            s.records(out=7)
    """
    for _ in range(4):
        jobs.run(script, **to(http))
    http.wait_for(lambda got: list(totals(got, semconv.RUNS.name).values()) == [4], timeout=30)
    http.wait_for(lambda got: list(totals(got, semconv.RECORDS.name).values()) == [28], timeout=30)
    values = [p.value for p in http.metric_points if p.name == semconv.RUNS.name]
    assert values[0] == 0
    assert values == sorted(values)
    instances = {p.resource[semconv.SERVICE_INSTANCE_ID] for p in http.metric_points}
    assert len(instances) == 1


def test_reports_in_between_cost_no_run(jobs: Jobs, http: OtlpReceiver) -> None:
    """Who reads the history while a recorder that sends lives takes nothing away from it."""
    for number in range(1, 4):
        jobs.run("pass", **to(http), STAGEWATCH_RECORDER_IDLE="20")
        assert len(jobs.runs(ended=number)) == number
        report = subprocess.run(
            [BIN / "stagewatch", "report", "--json"],
            env=jobs.environment,
            capture_output=True,
            check=True,
        )
        assert len(json.loads(report.stdout)["runs"]) == number
    end_recorders(jobs)


SECRETS = """
    import os, sqlite3, requests, pandas as pd
    from opentelemetry import trace
    url = os.environ["API"]
    requests.get(url.replace("//", "//user:hunter2@") + "/x?token=hunter2", timeout=5)
    link = sqlite3.connect("w.db")
    pd.read_sql("select 'hunter2' as a", link)
    with trace.get_tracer("mine").start_as_current_span("own") as span:
        span.set_attribute("db.query.text", "select * from t where a = 'hunter2'")
        try:
            pd.Series(["hunter2"]).astype(float)
        except ValueError as error:
            span.record_exception(error)
            span.set_status(trace.StatusCode.ERROR, str(error))
    pd.DataFrame({"a": ["hunter2"]}).astype({"a": float})
"""


def test_secrets_stay_at_home(jobs: Jobs, http: OtlpReceiver) -> None:
    """Credentials, query strings, literals and cell values are neither sent nor stored."""
    jobs.run(
        SECRETS,
        **to(http),
        API=http.endpoint,
        OTEL_EXPORTER_OTLP_HEADERS="authorization=hunter2",
        OTHER_PASSWORD="hunter2",
    )
    http.wait_for(lambda got: "etl" in names(got), timeout=30)
    wait_for(lambda: not any(jobs.state.glob("rooms/*/*.journal")))
    assert {"own", "GET"} <= set(names(http))
    leaks = [request for request in http.requests if b"hunter2" in request.body]
    assert not leaks, [r.body[max(0, r.body.index(b"hunter2") - 300) :][:400] for r in leaks]
    for path in jobs.state.rglob("*"):
        if path.is_file():
            assert b"hunter2" not in path.read_bytes(), path
    with sqlite3.connect(jobs.state / "history.db") as link:
        dump = "\n".join(link.iterdump())
    assert "hunter2" not in dump


def test_messages_by_name_only(jobs: Jobs, http: OtlpReceiver) -> None:
    """Who asks for exception messages gets them."""
    jobs.run("raise ValueError('hunter2')", **to(http), STAGEWATCH_EXCEPTION_MESSAGES="1")
    (run,) = jobs.runs()
    assert run.error_message == "hunter2"


def test_exceptions_in_logs_are_redacted(jobs: Jobs) -> None:
    """A cell's value in its message is not on the disk, whoever has logged the exception."""
    jobs.run(
        """
        import logging
        try:
            raise ValueError("no number: 'hunt" + "er2'")
        except ValueError:
            logging.exception("look", extra={"url.full": "http://h/p?key=hunt" + "er2"})
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",  # nobody there: it stays on the disk
        OTEL_LOGS_EXPORTER="otlp",
        OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
    )
    assert jobs.runs()
    kept = b"".join(file.read_bytes() for file in jobs.state.rglob("*") if file.is_file())
    assert b"ValueError" in kept
    assert b"hunter2" not in kept


def test_metrics_and_logs_of_others_pass(jobs: Jobs, http: OtlpReceiver) -> None:
    """A counter of the user's own and, where asked for, log records arrive with their resource."""
    jobs.run(
        """
        import logging
        from opentelemetry import metrics
        metrics.get_meter("mine").create_counter("things").add(3, {"kind": "a"})
        logging.getLogger("mine").warning("look")
        """,
        **to(http),
        OTEL_LOGS_EXPORTER="otlp",
        OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
        OTEL_RESOURCE_ATTRIBUTES="team=data",
    )
    http.wait_for(lambda got: list(totals(got, "things").values()) == [3], timeout=30)
    point = next(p for p in http.metric_points if p.name == "things")
    assert point.resource["team"] == "data"
    http.wait_for(lambda got: any(b"look" in r.body for r in got.requests), timeout=30)
