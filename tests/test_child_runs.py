"""Runs of a process beside its own: they end when they are over, and with their process at the
latest."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewatch import records, semconv
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.history import open_history
from stagewatch.model import Outcome, Run
from tests import scenes
from tests.jobs import Jobs, wait_for
from tests.otlp_receiver import OtlpReceiver
from tests.scenes import Job, Looks
from tests.test_worlds import by_outcome, container, root, total

QUERY = """
    import os, sys, time
    from pathlib import Path
    from stagewatch import child_runs
    from stagewatch.model import Outcome

    def query(name="clicks", attempt=1):
        return child_runs.open_child_run(name, {"spark.streaming.query.id": name}, attempt)

    def wait_while(name):
        Path(name).touch()
        while Path(name).exists():
            time.sleep(0.02)
"""
"""What an instrumentor does that sees a streaming query."""


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    yield from scenes.intake(tmp_path, scenes.environment("http://127.0.0.1:1"))


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


def by_pipeline(jobs: Jobs, ended: int) -> dict[str, Run]:
    """The runs, each pipeline's newest, once *ended* of them are over."""
    return {run.pipeline: run for run in jobs.runs(ended)}


def run_of(directory: Path, job: Job) -> Run:
    with open_history(directory, readonly=True) as history:
        return history.run(job.run)


# --- the recorder -------------------------------------------------------------------------------


def test_its_own_word_ends_it(intake: Intake, tmp_path: Path) -> None:
    """It is over while its process lives, also for a recorder that comes only then; the process's
    death afterwards changes nothing."""
    job = Job(intake, tmp_path)
    job.open(parent_run_id="p" * 32)
    assert intake.over() == []
    job.exits(8, error_type="stopped", outcome="cancellation", cpu_seconds=0.0, memory_peak=0)
    assert intake.over() == [job.key]
    intake.stop(0)
    later = Intake(tmp_path, scenes.environment(), sends=False)
    assert later.resume(job.key) == (0, job.offset)
    assert later.over() == [job.key]
    job.intake = later
    job.dies(signal.SIGKILL, at=20)
    run = run_of(tmp_path, job)
    assert (run.outcome, run.error_type, run.end) == (
        Outcome.CANCELLATION,
        "stopped",
        job.start + 8 * scenes.SECOND,
    )
    assert (run.wait_status, run.cpu_seconds, later.over()) == (None, None, [])
    later.stop(0)


def test_each_run_has_what_its_process_used(
    intake: Intake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Since it began: a process with several runs has used as much for each."""
    from stagewatch.exporters.recorder.watching.vitals import Vitals

    looks = Looks(intake, monkeypatch)
    first, second = Job(intake, tmp_path, cpu_seconds=1.0), Job(intake, tmp_path, cpu_seconds=5.0)
    second.key = first.key.rpartition(".")[0] + ".ffffffff"
    second.put(
        records.ProcessStarted(
            second.key, 1, 10, 1, "host", "boot", 1, second.run, second.trace, True,
            second.start, {}, "query", cpu_seconds=5.0,
        )
    )  # fmt: skip
    for job in (first, second):
        job.open()
        job.shows = {"vitals": Vitals(cpu_seconds=7.0, memory=1 << 20)}
    looks.at(10, first, second)
    intake.note(scenes.START)
    with open_history(tmp_path, readonly=True) as history:
        used = [live.cpu_seconds for job in (first, second) if (live := history.live(job.run))]
    assert used == [6.0, 2.0]


def test_traces_are_settled_before_the_run_is_over(intake: Intake, tmp_path: Path) -> None:
    """Details of a trace that is kept are sent at once, those of another are forgotten, and its
    open spans with them; the rest waits for the run's end."""
    job = Job(intake, tmp_path)
    job.open()
    kept, dropped, other = b"\x01" * 16, b"\x02" * 16, b"\x03" * 16
    spans = {trace: job.detail("detail", trace_id=trace) for trace in (kept, dropped, other)}
    job.put(
        records.SpanStarted("batch", dropped, b"\x09" * 8, b"", job.start, 0, 0, None),
        *spans.values(),
    )
    job.put(records.TraceSettled(kept, [spans[kept].span_id], True, "c"))
    job.put(records.TraceSettled(dropped, [spans[dropped].span_id], False))
    with open_history(tmp_path, readonly=True) as history:
        found = {span.trace_id: span.state for span in history.spans(job.run)}
        marks = history.link.execute("select trace_id, threshold from span order by 1").fetchall()
    assert found == {kept: "pending", other: "held"}
    assert marks == [(kept, "c"), (other, None)]
    job.dies(scenes.FAILED, at=5)
    with open_history(tmp_path, readonly=True) as history:
        assert {span.name for span in history.spans(job.run)} == {"detail", "flights"}


# --- real processes -----------------------------------------------------------------------------


def test_a_query_ends_while_its_process_goes_on(jobs: Jobs) -> None:
    """Its run is closed at once with what it says, as a child of the process's run, in its trace;
    the journal's files are gone then."""
    script = jobs.script(
        QUERY
        + """
    one = query()
    two = query("orders", 3)
    one.end(Outcome.FAILURE, "ValueError", "no float: 'Smith'")
    wait_while("held")
    two.end(Outcome.SUCCESS)
    one.recording.sink.append("goes nowhere")
    """
    )
    job = jobs.start("python", script)
    failed = by_pipeline(jobs, 1)["etl.clicks"]
    assert (failed.outcome, failed.error_type) == (Outcome.FAILURE, "ValueError")
    assert failed.error_message == "no float: ?"
    wait_for(lambda: len(list(jobs.state.glob("rooms/*/*.page"))) == 2)
    (jobs.directory / "held").unlink()
    assert job.communicate(timeout=30) == ("", "")
    runs = by_pipeline(jobs, 3)
    assert {name: (run.outcome, run.attempt) for name, run in runs.items()} == {
        "etl": (Outcome.SUCCESS, 1),
        "etl.clicks": (Outcome.FAILURE, 1),
        "etl.orders": (Outcome.SUCCESS, 3),
    }
    assert runs["etl"].parent_run_id is None
    assert runs["etl.orders"].parent_run_id == runs["etl"].run_id
    assert runs["etl.orders"].trace_id == runs["etl"].trace_id
    with jobs.history() as history:
        (span,) = history.spans(failed.run_id)
    assert span.parent_span_id == runs["etl"].span_id
    assert span.attributes["spark.streaming.query.id"] == "clicks"
    assert span.failed


@pytest.mark.parametrize(
    ("ending", "status", "outcome", "error_type"),
    [
        ("pass", 0, Outcome.SUCCESS, None),
        ("raise KeyError", 1, Outcome.FAILURE, "KeyError"),
        ("os.kill(os.getpid(), 9)", -9, Outcome.ERROR, "killed"),
        ("os._exit(3)", 3, Outcome.FAILURE, "exit_3"),
    ],
)
def test_its_process_ends_first(
    jobs: Jobs, ending: str, status: int, outcome: Outcome, error_type: str | None
) -> None:
    """A query that is under way when its process ends, ends as that does."""
    result = jobs.run(QUERY + f"\n    running = query()\n    {ending}\n")
    assert result.returncode == status
    found = by_pipeline(jobs, 2)
    assert {name: (run.outcome, run.error_type) for name, run in found.items()} == {
        "etl": (outcome, error_type),
        "etl.clicks": (outcome, error_type),
    }


def test_a_declared_query(jobs: Jobs) -> None:
    """Its pipeline is the declared one of its name, with owner and deadline."""
    (jobs.directory / "stagewatch.yaml").write_text(
        "pipelines:\n  clicks: {owner: web, sla: {max_duration: 1h}}\n"
    )
    jobs.run(QUERY + "\n    query().end(Outcome.SUCCESS)\n")
    run = by_pipeline(jobs, 2)["clicks"]
    assert run.deadline == run.start + 3600 * scenes.SECOND


def test_it_goes_on_in_a_process_that_forks(jobs: Jobs) -> None:
    """A forked child neither writes for it nor ends it; both go on to count for their own."""
    result = jobs.run(
        QUERY
        + """
    import stagewatch
    running = query()
    running.recording.add(5, None, 0, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        running.end(Outcome.FAILURE, "in the child")
        running.recording.sink.append("in the child")
        assert query("child") is not None
        with stagewatch.stage("work") as stage:
            stage.records(out=3)
        sys.exit(0)
    os.waitpid(pid, 0)
    running.recording.add(5, None, 0, 0, 0, 0)
    running.end(Outcome.SUCCESS)
    """
    )
    assert (result.returncode, result.stderr) == (0, "")
    runs = by_pipeline(jobs, 3)
    assert {name: run.outcome for name, run in runs.items()} == dict.fromkeys(
        ["etl", "etl.clicks", "etl.child"], Outcome.SUCCESS
    )
    assert (runs["etl.clicks"].records_in, runs["etl"].records_out) == (10, 3)


def test_its_process_calls_exec(jobs: Jobs) -> None:
    """What became of it nobody sees; it is over with the process, whose run goes on."""
    jobs.run(QUERY + '\n    query()\n    os.execv(sys.executable, ["python", "-c", "exit(4)"])\n')
    runs = by_pipeline(jobs, 2)
    assert {run.error_type for run in runs.values()} == {"exit_4"}


def test_a_thousand_queries_leave_nothing(jobs: Jobs) -> None:
    """No descriptor, no mapping, no file; and all are in the history."""
    result = jobs.run(
        QUERY
        + """
    def held():
        maps = Path("/proc/self/maps").read_text()
        return len(os.listdir("/proc/self/fd")), maps.count(".journal") + maps.count(".page")

    query().end(Outcome.SUCCESS)
    before = held()
    for _ in range(1000):
        one = query()
        one.recording.new_tally("", "pandas.merge")(1, 1, 1)
        one.end(Outcome.SUCCESS)
    del one
    print(held() == before, before, held())
    many = [query(f"q{n}") for n in range(50)]
    for one in many:
        one.end(Outcome.SUCCESS)
    """
    )
    assert result.stderr == ""
    assert result.stdout.startswith("True"), result.stdout
    wait_for(lambda: not list(jobs.state.glob("rooms/*/*.journal")), 60)
    with jobs.history() as history:
        (count,) = history.link.execute(
            "select count(*) from run where outcome = 'success'"
        ).fetchone()
        (tallies,) = history.link.execute("select sum(calls) from operation").fetchone()
    assert (count, tallies) == (1052, 1000)


def test_counts_after_the_end_do_no_harm(jobs: Jobs) -> None:
    """A thread of the user's may still count for a query that is over."""
    result = jobs.run(
        QUERY
        + """
    one = query()
    add = one.recording.new_tally("", "pandas.merge")
    add(1, 1, 1)
    one.end(Outcome.SUCCESS)
    for _ in range(1000):
        add(1, 1, 1)
    one.recording.add(1, 1, 0, 0, 0, 0)
    one.recording.new_tally("", "pandas.concat")(1, 1, 1)
    one.span.set_attribute("a", 1)
    """
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_a_child_process_of_a_stage(jobs: Jobs) -> None:
    """A subprocess belongs to the stage that started it, whatever pages its parent has besides."""
    child = jobs.script("import stagewatch\nwith stagewatch.stage('inner'): pass\n", "child.py")
    jobs.run(
        QUERY
        + f"""
    import stagewatch, subprocess
    with stagewatch.stage("outer"):
        query()
        subprocess.run([sys.executable, {str(child)!r}], check=True)
    """
    )
    assert jobs.tree(by_pipeline(jobs, 2)["etl"]) == [{"outer": [{"inner": []}]}]


def test_traces_of_its_own(jobs: Jobs, receiver: OtlpReceiver) -> None:
    """What is kept arrives while the query goes on, linked to its run; what is not never does, but
    the user's own spans do; all is its own, not the process's."""
    jobs.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    script = jobs.script(
        QUERY
        + """
    from opentelemetry import trace
    running = query()
    mine = trace.get_tracer("mine")
    for number, keep in enumerate([True, False]):
        root = running.start_trace("batch", {"pipeline.stage.name": "batch"}, time.time_ns())
        context = trace.set_span_in_context(root)
        detail = {"stagewatch.span.role": "detail"}
        running.recording.tracer.start_span(f"job {number}", context, attributes=detail).end()
        assert not running.has_users_spans(root)
        mine.start_span(f"mine {number}", context).end()
        assert running.has_users_spans(root)
        if keep:
            root.end()
        running.settle(root, keep=keep, threshold="8" if keep else "")
    wait_while("held")
    """
    )
    job = jobs.start("python", script)

    def names(found: OtlpReceiver) -> set[str]:
        return {span.name for span in found.spans} - {semconv.RUN_STARTED}

    receiver.wait_for(lambda r: names(r) == {"batch", "job 0", "mine 0", "mine 1"}, 20)
    (jobs.directory / "held").unlink()
    job.communicate(timeout=30)
    receiver.wait_for(lambda r: {"etl", "etl.clicks"} <= names(r), 20)
    spans = {span.name: span for span in receiver.spans}
    assert "job 1" not in spans
    query, batch = spans["etl.clicks"], spans["batch"]
    assert [(link.trace_id, link.span_id) for link in batch.span.links] == [
        (query.span.trace_id, query.span.span_id)
    ]
    assert batch.trace_id == spans["job 0"].trace_id != query.trace_id
    assert spans["job 0"].span.trace_state == "ot=th:8"
    runs = by_pipeline(jobs, 2)
    assert jobs.tree(runs["etl"]) == []


def test_under_way(jobs: Jobs, receiver: OtlpReceiver) -> None:
    """It has its own heartbeat, and counts among the active."""
    jobs.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    job = jobs.start("python", jobs.script(QUERY + "\n    query()\n    wait_while('held')\n"))
    named = {semconv.PIPELINE_NAME: "etl.clicks"}
    receiver.wait_for(lambda r: total(r, semconv.HEARTBEAT.name, **named), 20)
    receiver.wait_for(lambda r: total(r, semconv.RUN_ACTIVE.name, **named) == 1, 20)
    os.kill(job.pid, signal.SIGKILL)
    job.communicate()
    receiver.wait_for(lambda r: total(r, semconv.RUN_ACTIVE.name, **named) == 0, 20)
    assert by_outcome(jobs.runs(2)) == [(Outcome.ERROR, "killed")] * 2


@root
def test_first_process_of_a_container(jobs: Jobs, receiver: OtlpReceiver) -> None:
    """Where nothing outlives the process, what it says of its queries at its end counts."""
    jobs.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    script = jobs.script(
        QUERY + "\n    one, two = query('one'), query('two')\n    one.end(Outcome.FAILURE, 'x')\n"
    )
    process = container(jobs, "alone", f"exec opentelemetry-instrument python {script}")
    assert process.communicate(timeout=60)[1] == ""
    runs = by_pipeline(jobs, 3)
    assert {name: (run.outcome, run.error_type) for name, run in runs.items()} == {
        "etl": (Outcome.SUCCESS, None),
        "etl.one": (Outcome.FAILURE, "x"),
        "etl.two": (Outcome.SUCCESS, None),
    }
    receiver.wait_for(lambda r: total(r, semconv.RUN_ACTIVE.name) == 0, 20)
