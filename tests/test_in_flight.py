"""Real jobs that somebody watches while they run: what the backend and the history see of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from stagewatch import semconv
from stagewatch.model import Live, Outcome
from stagewatch.reading import take_in
from tests.jobs import Jobs, wait_for
from tests.otlp_receiver import OtlpReceiver

HOLDS_THE_GIL = """
    import re, stagewatch
    with stagewatch.stage("load") as stage:
        stage.records(in_=7)
        re.match(r"(a+)+$", "a" * 64 + "b")  # takes longer than anybody lives
"""


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


@contextmanager
def job_under_way(jobs: Jobs, source: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """One that is killed at the end, if it is there still."""
    process = jobs.start("python", jobs.script(source), **environment)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=30)


def to(receiver: OtlpReceiver) -> dict[str, str]:
    """Settings of a job that sends there."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_LOGS_EXPORTER": "otlp",
    }


def is_late(receiver: OtlpReceiver) -> bool:
    """Whether a span, a gauge and a log say so."""
    return (
        any(span.name == semconv.RUN_LATE for span in receiver.spans)
        and any(
            point.name == semconv.LATENESS.name and point.point.as_double > 0
            for point in receiver.metric_points
        )
        and any("is late" in str(log.body) for log in receiver.log_records)
    )


def test_late_is_said_while_c_code_holds_the_gil(jobs: Jobs, receiver: OtlpReceiver) -> None:
    """Span, gauge and log arrive while the job can say nothing; the run's span has the event."""
    (jobs.directory / "stagewatch.yaml").write_text("pipelines: {etl: {sla: {max_duration: 1s}}}\n")
    with job_under_way(jobs, HOLDS_THE_GIL, **to(receiver)) as process:
        receiver.wait_for(is_late, timeout=30)
        assert process.poll() is None
        by_name = {span.name: span for span in receiver.spans}
        assert by_name.keys() == {"run started", "run late"}
        late = by_name["run late"]
        (log,) = (log for log in receiver.log_records if "is late" in str(log.body))
    receiver.wait_for(lambda got: any(span.name == "etl" for span in got.spans), timeout=30)
    spans = {span.name: span for span in receiver.spans}
    assert len({span.span_id for span in spans.values()}) == len(receiver.spans) == 4
    run = spans["etl"]
    assert {span.trace_id for span in spans.values()} == {run.trace_id}
    assert {spans[name].parent_span_id for name in ("run started", "run late", "load")} == {
        run.span_id
    }
    (event,) = run.span.events
    assert (event.name, event.time_unix_nano) == (
        "pipeline.run.late", late.span.start_time_unix_nano,
    )  # fmt: skip
    assert log.record.span_id == run.span.span_id
    assert log.record.trace_id == run.span.trace_id
    (ended,) = jobs.runs()
    assert (ended.outcome, ended.error_type) == (Outcome.ERROR, "killed")
    assert (ended.last_stage, ended.records_in) == ("load", 7)


def test_the_history_shows_a_run_under_way(jobs: Jobs) -> None:
    """As of now, for who lets the recorder know; nothing any more once it is over."""
    with job_under_way(jobs, HOLDS_THE_GIL):

        def live() -> Live | None:
            try:
                with jobs.history() as history:
                    (run,) = history.active()
                    return history.live(run.run_id)
            except Exception:  # no run yet
                return None

        wait_for(lambda: (found := live()) is not None and found.stages)
        asked = time.time_ns()
        take_in(jobs.state)
        found = live()
        assert found is not None
        assert found.at > asked
        assert [(stage.name, stage.records_in) for stage in found.stages] == [("load", 7)]
    (run,) = jobs.runs()
    with jobs.history() as history:
        assert (history.active(), history.live(run.run_id)) == ([], None)


def test_a_killed_worker_is_told_from_the_run(jobs: Jobs) -> None:
    """The run goes on, and says which process died of what, in which stage."""
    result = jobs.run(
        """
        import os, signal, stagewatch
        with stagewatch.stage("prepare"):
            child = os.fork()
            if not child:
                with stagewatch.stage("work"):
                    os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
        print(child)
        """
    )
    (run,) = jobs.runs()
    assert (result.returncode, run.outcome) == (0, Outcome.SUCCESS)
    with jobs.history() as history:
        (notice,) = history.notices(run.run_id)
        stages = {stage.name: stage.error_type for stage in history.stages(run.run_id)}
    assert (notice.name, notice.attributes["process.pid"]) == (
        semconv.PROCESS_DIED, int(result.stdout),
    )  # fmt: skip
    assert notice.attributes["error.type"] == "killed"
    assert notice.attributes["pipeline.run.stage"] == "work"
    assert stages == {"prepare": None, "work": "killed"}


def test_suspended_jobs_are_under_way(jobs: Jobs, receiver: OtlpReceiver) -> None:
    """One that is stopped says nothing, and is still seen to get late."""
    (jobs.directory / "stagewatch.yaml").write_text("pipelines: {etl: {sla: {max_duration: 2s}}}\n")
    source = "import time; print('there', flush=True); time.sleep(600)"
    with job_under_way(jobs, source, **to(receiver)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        os.kill(process.pid, signal.SIGSTOP)
        receiver.wait_for(is_late, timeout=30)
        assert process.poll() is None
