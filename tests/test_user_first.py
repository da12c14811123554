"""Law 1 in odd moments: signals, finalizers, forks, seeds. Each of these broke a job once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stagewatch import safety
from tests.jobs import Jobs, wait_for


def test_random_numbers_are_the_users(jobs: Jobs) -> None:
    """Ids come from a source of our own: a seeded job draws what it draws without us."""
    script = """
        import random, stagewatch
        random.seed(0)
        with stagewatch.stage("a"):
            print(random.random())
        random.seed(0)
        with stagewatch.stage("b"):
            print(random.random())
    """
    bare = subprocess.run(
        [sys.executable, jobs.script(script)], capture_output=True, text=True, check=True
    )
    assert jobs.run(script).stdout == bare.stdout
    (run,) = jobs.runs()
    assert jobs.tree(run) == [{"a": []}, {"b": []}]


def test_timeouts_of_signal_handlers_arrive(jobs: Jobs) -> None:
    """An exception that a signal handler raises inside our code is not swallowed."""
    result = jobs.run(
        """
        import signal, time
        import pandas as pd

        class SoftTimeLimit(Exception): ...

        def handler(*_): raise SoftTimeLimit

        signal.signal(signal.SIGALRM, handler)
        frame = pd.DataFrame({"a": [1.0]})
        lost = 0
        for _ in range(150):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                end = time.monotonic() + 2
                while time.monotonic() < end:
                    frame.fillna(0)
                lost += 1
            except SoftTimeLimit:
                pass
            signal.setitimer(signal.ITIMER_REAL, 0)
        print("lost", lost)
        """
    )
    assert result.stdout == "lost 0\n", result.stderr
    assert len(jobs.runs()) == 1


def test_finalizers_that_record_while_we_do(tmp_path: Path) -> None:
    """The collector may run a finalizer, which rolls the journal, in the middle of an append."""
    script = tmp_path / "job.py"
    script.write_text(
        """
import gc, sys
from pathlib import Path
from stagewatch.exporters.journal import JournalWriter, new_key
from stagewatch.records import NameDefined
journal = JournalWriter(Path(sys.argv[1]), new_key(), max_bytes=1 << 30)
armed = []

class Final:
    def __del__(self):
        if armed:
            armed.pop()
            journal.append(NameDefined(1, "y" * (journal._limit - journal._at)))

class Indexed:
    def __getitem__(self, _):
        journal.append(NameDefined(2, "x" * 200))

indexed, low, high = Indexed(), 1, 2
gc.set_threshold(1)
for _ in range(300):
    final = Final()
    final.me = final
    del final
    armed[:] = [1]
    indexed[low:high]
print("survived")
"""
    )
    done = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_fork_without_room_for_a_journal(jobs: Jobs) -> None:
    """A child that can make no journal records nothing, least of all into its parent's."""
    result = jobs.run(
        """
        import os, resource
        from opentelemetry import trace
        tracer = trace.get_tracer("mine")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 64))
        if os.fork() == 0:
            for _ in range(100):
                with tracer.start_as_current_span("child"): pass
            os._exit(0)
        os.wait()
        with tracer.start_as_current_span("parent"): pass
        """
    )
    assert result.returncode == 0, result.stderr
    (run,) = jobs.runs()
    wait_for(lambda: {"parent": []} in jobs.tree(run))
    assert jobs.tree(run) == [{"parent": []}]


def test_files_may_have_a_largest_size(jobs: Jobs) -> None:
    """A job that may be killed for too large a file is not killed for one of ours."""
    result = jobs.run(
        """
        import os, resource, signal, stagewatch
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for number in range(200):
            with stagewatch.stage(f"{number} " + "x" * 1000): pass
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            with stagewatch.stage("child"): pass
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        """
    )
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr
    (run,) = jobs.runs()
    assert run.outcome == "success"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="the module has another name")
def test_an_interpreter_within_is_no_process(jobs: Jobs) -> None:
    """A sub-interpreter of the job opens nothing, says nothing, and ends nothing."""
    result = jobs.run(
        """
        import _xxsubinterpreters as interpreters, stagewatch
        inner = interpreters.create()
        interpreters.run_string(inner, "import sys; print('stagewatch.tracing' in sys.modules)")
        interpreters.destroy(inner)
        with stagewatch.stage("after"): pass
        """
    )
    assert (result.returncode, result.stderr) == (0, "")
    (run,) = jobs.runs()
    assert jobs.tree(run) == [{"after": []}]
    assert len(list(jobs.state.glob("rooms/*/*.page"))) <= 1


def test_daemon_threads_that_die_with_our_lock(jobs: Jobs) -> None:
    """Finalizers that record do not wait for what a thread held when the interpreter ended it."""
    result = jobs.run(
        """
        import sys, threading, time
        from opentelemetry import metrics, trace
        from stagewatch import stage
        tracer = trace.get_tracer("mine")
        counter = metrics.get_meter("mine").create_counter("hits")

        def forever():
            while True:
                with stage("a"), tracer.start_as_current_span("b"): counter.add(1)

        class Recording:
            def __del__(self):
                with stage("late"): print("deleted")

        for _ in range(3): threading.Thread(target=forever, daemon=True).start()
        sys.modules["kept"] = Recording()              # what the interpreter finalizes last
        time.sleep(0.3)
        sys.exit(5)
        """
    )
    assert (result.returncode, result.stdout, result.stderr) == (5, "deleted\n", "")
    (run,) = jobs.runs()
    assert run.outcome == "failure"


def test_fork_inside_a_stage_counts_each_call_once(jobs: Jobs) -> None:
    """A child's folded calls are counted in its own page, not in its parent's."""
    jobs.run(
        """
        import os, stagewatch
        import pandas as pd
        frame = pd.DataFrame({"a": range(10)})
        with stagewatch.stage("clean"):
            for _ in range(10): frame.fillna(0)
            if os.fork() == 0:
                for _ in range(50): frame.fillna(0)
                os._exit(0)
            os.wait()
            for _ in range(5): frame.fillna(0)
        for _ in range(3): frame.fillna(0)
        """,
        STAGEWATCH_SPAN_THRESHOLD="60s",
    )
    (run,) = jobs.runs()

    def counted() -> bool:
        with jobs.history() as history:
            calls = {op.stage: op.calls for op in history.operations(run.run_id)}
        return calls == {"clean": 65, "": 3}

    wait_for(counted)


def test_observable_callbacks_are_not_called(jobs: Jobs) -> None:
    """They are the user's code, and would run in the middle of the job."""
    result = jobs.run(
        """
        from opentelemetry import metrics
        metrics.get_meter("m").create_observable_gauge("g", [lambda _: print("called") or []])
        """
    )
    assert result.stdout == ""


def test_attributes_of_the_runs_span(jobs: Jobs) -> None:
    """What the user sets on the run's own span is cleaned, and odd values do not cost the end."""
    jobs.run(
        """
        import numpy
        from opentelemetry import trace
        span = trace.get_current_span()
        span.set_attribute("url.full", "http://u:hunter2@h/?token=hunter2")
        span.set_attribute("ratio", numpy.float64(0.5))
        raise KeyError("x")
        """
    )
    (run,) = jobs.runs()
    assert run.error_type == "KeyError"
    for path in jobs.state.rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path


def test_file_names_that_are_no_text(jobs: Jobs) -> None:
    """A lone surrogate costs a character, not the span."""
    result = jobs.run(
        """
        from opentelemetry import trace
        with trace.get_tracer("mine").start_as_current_span("s", attributes={"f": "x\\udcff.csv"}):
            pass
        """
    )
    assert result.stderr == ""
    (run,) = jobs.runs()
    assert jobs.tree(run) == [{"s": []}]


@pytest.mark.internal_errors
def test_our_errors_are_swallowed_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """One line per place, without the message, which may hold a value."""
    before = safety.swallowed
    for _ in range(3):
        with safety.guarded:
            raise ValueError("hunter2")
    assert safety.swallowed == before + 3
    assert caplog.text.count("stagewatch failed (ValueError") == 1
    assert "hunter2" not in caplog.text
