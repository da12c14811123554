"""What a run's processes share: its clock, and nothing that is counted twice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from stagewatch.model import Outcome
from tests.jobs import Jobs, wait_for
from tests.otlp_receiver import OtlpReceiver
from tests.test_sender import sums


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


STEPPED = """
    import os, sys, time

    back = False
    true_time, true_time_ns = time.time, time.time_ns
    time.time = lambda: true_time() - 3600 * back
    time.time_ns = lambda: true_time_ns() - 3600 * 10**9 * back

    sys.path.insert(0, os.getcwd())
    from opentelemetry.instrumentation.auto_instrumentation import initialize
    initialize()
"""
"""The clock of the host, set back when `back` is True: faked before any module takes it."""


def test_a_clock_set_back_changes_nothing(jobs: Jobs) -> None:
    """Stages, operations and the user's spans keep their durations and lie in their parents, in a
    child that starts after the step as well."""
    child = jobs.script(
        STEPPED
        + """
    back = True
    import stagewatch
    with stagewatch.stage("child"): pass
""",
        "child.py",
    )
    source = (
        STEPPED
        + f"""
    import subprocess, pandas, stagewatch
    from opentelemetry import trace
    tracer = trace.get_tracer("mine")
    with stagewatch.stage("load"):
        with tracer.start_as_current_span("user"):
            with stagewatch.stage("inner"):
                back = True
                pandas.DataFrame({{"a": [1]}}).to_csv("a.csv")
        subprocess.run([sys.executable, {str(child)!r}])
        with tracer.start_as_current_span("later"): pass
"""
    )
    subprocess.run(
        [sys.executable, jobs.script(source)],
        cwd=jobs.directory,
        env=jobs.environment,
        timeout=60,
        check=True,
    )
    (run,) = jobs.runs()
    assert run.outcome == Outcome.SUCCESS
    tree = [
        {
            "load": [
                {"user": [{"inner": [{"pandas.to_csv": []}]}]},
                {"child": []},
                {"later": []},
            ]
        }
    ]
    wait_for(lambda: jobs.tree(run) == tree)
    with jobs.history() as history:
        spans = {row.span_id: row for row in history.spans(run.run_id)}
    for span in spans.values():
        assert 0 <= span.end - span.start < 60e9
        outer = spans.get(span.parent_span_id)
        start, end = (outer.start, outer.end) if outer else (run.start, run.end)
        assert end is not None and start <= span.start <= span.end <= end


COUNTED = """
    import multiprocessing, os, signal, sys, threading, time
    from concurrent.futures import ProcessPoolExecutor
    from opentelemetry import metrics

    meter = metrics.get_meter("mine")
    hits = meter.create_counter("hits")
    level = meter.create_up_down_counter("level")
    sizes = meter.create_histogram("sizes")
    fine = meter.create_histogram("fine", explicit_bucket_boundaries_advisory=range(1, 41))
    many = meter.create_counter("many")

    def count(number=1):
        hits.add(1, {"kind": "a"})
        hits.add(2, {"kind": "b"})
        level.add(-1.5)
        sizes.record(number * 20)
        fine.record(number)
        for label in range(60): many.add(1, {"label": label})

    def child(ending):
        pid = os.fork()
        if not pid:
            count()
            ending()
        os.waitpid(pid, 0)

    count()                                                          # 1
    child(lambda: os._exit(0))                                       # 2
    child(lambda: os.kill(os.getpid(), signal.SIGKILL))              # 3
    child(lambda: os.execvp("true", ["true"]))                       # 4
    count()                                                          # 5
    with multiprocessing.get_context("fork").Pool(2) as pool:        # 9: its workers are terminated
        pool.map(count, [1] * 4, chunksize=1)
    with ProcessPoolExecutor(2) as executor:                         # 12
        list(executor.map(count, [1] * 3))
    process = multiprocessing.Process(target=count); process.start(); process.join()   # 13
    count()                                                          # 14
"""


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_metrics_of_parent_and_children_add_up(
    jobs: Jobs, receiver: OtlpReceiver, temporality: str
) -> None:
    """What an instrument counts is counted once, in whatever process and however that ends."""
    result = jobs.run(
        COUNTED,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=temporality,
        OTEL_METRIC_EXPORT_INTERVAL="1",
    )
    assert (result.returncode, result.stderr) == (0, "")
    expected = {"hits": 42.0, "level": -21.0, "sizes": 14.0, "fine": 14.0, "many": 840.0}
    expected |= {"sum sizes": 280.0, "sum fine": 14.0}

    def seen() -> dict[str, float]:
        found = sums(receiver, temporality)
        # What goes up and down is a total for every backend.
        found["level"] = sums(receiver, "cumulative")["level"]
        return {name: value for name, value in found.items() if name in expected}

    wait_for(lambda: seen() == expected)


def test_a_busy_lock_holds_no_child_up(jobs: Jobs) -> None:
    """A thread of the parent's holds our lock and the SDK's at the fork: the child counts, records
    and ends."""
    result = jobs.run(
        """
        import os, threading, stagewatch
        from opentelemetry import metrics
        from stagewatch import recording

        meter = metrics.get_meter("mine")
        hits = meter.create_counter("hits")
        taken, over = threading.Event(), threading.Event()

        def hold():
            real = metrics.get_meter_provider()._real._meters
            with recording.active.lock, next(iter(real.values()))._instrument_registration_lock:
                taken.set()
                over.wait()

        thread = threading.Thread(target=hold); thread.start(); taken.wait()
        pid = os.fork()
        if not pid:
            hits.add(1)
            meter.create_counter("others").add(1)
            with stagewatch.stage("child") as s: s.records(out=1)
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        over.set()
        """
    )
    assert (result.stdout, result.stderr) == ("0\n", "")
    (run,) = jobs.runs()
    wait_for(lambda: jobs.tree(run) == [{"child": []}])


def test_logs_of_children_arrive(jobs: Jobs, receiver: OtlpReceiver) -> None:
    """A forked child's log records are sent, each once."""
    jobs.run(
        """
        import logging, os
        logging.getLogger("mine").warning("of the parent")
        if not os.fork():
            logging.getLogger("mine").warning("of the child")
            os._exit(0)
        os.wait()
        """,
        OTEL_EXPORTER_OTLP_ENDPOINT=receiver.endpoint,
        OTEL_LOGS_EXPORTER="otlp",
        OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
    )

    def times(text: bytes) -> int:
        return sum(request.body.count(text) for request in receiver.requests)

    receiver.wait_for(lambda _: (times(b"of the parent"), times(b"of the child")) == (1, 1))


def test_children_that_exec_leave_nothing(jobs: Jobs) -> None:
    """A child that records nothing has no page, no journal and no thread of ours, however many."""
    result = jobs.run(
        """
        import os, stagewatch
        state = os.environ["STAGEWATCH_STATE_DIR"]

        def files(): return sorted(name for *_, names in os.walk(state) for name in names)

        with stagewatch.stage("fork"):
            before = [name for name in files() if name.endswith((".page", ".journal"))]
            for number in range(200):
                pid = os.fork()
                if not pid:
                    if number % 2: os.execvp("true", ["true"])
                    os._exit(len(os.listdir("/proc/self/task")) - 1)
                assert os.waitpid(pid, 0)[1] == 0
            assert [name for name in files() if name.endswith((".page", ".journal"))] == before
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    (run,) = jobs.runs()
    assert jobs.tree(run) == [{"fork": []}]


def test_a_grandchild_without_a_word_of_its_parent(jobs: Jobs) -> None:
    """What a grandchild counts for the stage it was forked in counts, though its parent said
    nothing."""
    jobs.run(
        """
        import os, stagewatch
        with stagewatch.stage("fork") as stage:
            if not os.fork():
                if not os.fork():
                    stage.records(out=2)
                    os._exit(0)
                os.wait()
                os._exit(0)
            os.wait()
            stage.records(out=1)
        """
    )
    (run,) = jobs.runs()

    def counted() -> list[tuple[str, int, int | None]]:
        with jobs.history() as history:
            return [(s.name, s.calls, s.records_out) for s in history.stages(run.run_id)]

    wait_for(lambda: counted() == [("fork", 1, 3)])
