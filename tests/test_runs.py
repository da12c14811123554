"""Every way a run begins and ends, with real processes and a real recorder."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stagewatch.model import Outcome
from tests.jobs import Jobs, end_recorders, wait_for

ENDS = [
    ("pass", 0, Outcome.SUCCESS, None),
    ("raise SystemExit(0)", 0, Outcome.SUCCESS, None),
    ("raise SystemExit(3)", 3, Outcome.FAILURE, "exit_3"),
    ("raise KeyError('x')", 1, Outcome.FAILURE, "KeyError"),
    ("import os; os._exit(0)", 0, Outcome.SUCCESS, None),
    ("import os; os._exit(4)", 4, Outcome.FAILURE, "exit_4"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, Outcome.ERROR, "killed"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11, Outcome.ERROR, "segfault"),
    ("import os; os.abort()", -6, Outcome.ERROR, "abort"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -15, Outcome.CANCELLATION, None),
    ("raise KeyboardInterrupt", -2, Outcome.CANCELLATION, None),
    ("import sys\ntry: sys.exit(3)\nexcept SystemExit: pass", 0, Outcome.SUCCESS, None),
]


@pytest.mark.parametrize(("ending", "status", "outcome", "error_type"), ENDS)
def test_ways_to_end(
    jobs: Jobs, ending: str, status: int, outcome: Outcome, error_type: str | None
) -> None:
    """Exit status as without us, and the true outcome in the history; the open stage is closed."""
    script = "import stagewatch\nwith stagewatch.stage('load') as s:\n    s.records(out=3)\n"
    script += "\n".join(f"    {line}" for line in ending.splitlines())
    result = jobs.run(script)
    assert result.returncode == status
    (run,) = jobs.runs()
    assert run.outcome == outcome
    if error_type is not None or outcome == Outcome.SUCCESS:
        assert run.error_type == error_type
    assert run.records_out == 3
    with jobs.history() as history:
        (stage,) = history.stages(run.run_id)
        assert (stage.name, stage.calls, stage.records_out) == ("load", 1, 3)
    assert jobs.tree(run) == [{"load": []}]


def test_exception_is_described(jobs: Jobs) -> None:
    """Type, place in the user's file and redacted message; the traceback is the user's own."""
    result = jobs.run("def load():\n    float('Sm' + 'ith')\nload()\n")
    assert "sitecustomize" not in result.stderr
    assert result.stderr.count("File ") == 2
    (run,) = jobs.runs()
    assert run.error_type == "ValueError"
    assert run.error_place == f"{jobs.directory}/etl.py:2 in load"
    assert run.error_message == "could not convert string to float: ?"


def test_open_spans_leave_no_orphans(jobs: Jobs) -> None:
    """A user's span that was open when the process was killed is closed with the id it had; one
    that a forked child inherited is its parent's to end."""
    jobs.run(
        """
        import os, signal, stagewatch
        from opentelemetry import trace

        span = trace.get_tracer("mine").start_as_current_span
        with stagewatch.stage("load"), span("outer"), span("inner", attributes={"n": 1}):
            if (child := os.fork()) == 0:
                with span("child"), span("grandchild"):
                    pass
                os._exit(0)
            os.waitpid(child, 0)
            with span("ended"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    (run,) = jobs.runs()
    inner = {"inner": [{"child": [{"grandchild": []}]}, {"ended": []}]}
    assert jobs.tree(run) == [{"load": [{"outer": [inner]}]}]
    with jobs.history() as history:
        spans = {span.name: span for span in history.spans(run.run_id)}
    assert len(spans) == 7
    assert spans["inner"].attributes == {"n": 1, "error.type": "killed"}
    assert spans["inner"].failed
    assert spans["ended"].end <= spans["inner"].end == spans["outer"].end


def test_exec_goes_on_with_the_run(jobs: Jobs) -> None:
    """After exec it is the same run, and its outcome is that of the second program."""
    second = jobs.script("import sys; sys.exit(5)", "second.py")
    jobs.run(f"import os, sys\nos.execv(sys.executable, [sys.executable, {str(second)!r}])")
    (run,) = jobs.runs()
    assert (run.outcome, run.error_type) == (Outcome.FAILURE, "exit_5")
    assert run.pipeline == "etl"


def test_children_join(jobs: Jobs) -> None:
    """A Python child belongs to the run, its stage to the stage that started it."""
    child = jobs.script(
        "import stagewatch\nwith stagewatch.stage('child') as s: s.records(out=2)", "child.py"
    )
    jobs.run(
        "import stagewatch, subprocess, sys\n"
        f"with stagewatch.stage('outer'): subprocess.run([sys.executable, {str(child)!r}])"
    )
    (run,) = jobs.runs()
    wait_for(lambda: jobs.tree(run) == [{"outer": [{"child": []}]}])
    with jobs.history() as history:
        assert {stage.name for stage in history.stages(run.run_id)} == {"outer", "child"}


def test_declared_child_is_a_run_of_its_own(jobs: Jobs) -> None:
    """A child that is another declared pipeline is a child run in the same trace."""
    (jobs.directory / "stagewatch.yaml").write_text("pipelines: {etl: {}, child: {}}\n")
    child = jobs.script("pass", "child.py")
    jobs.run(f"import subprocess, sys; subprocess.run([sys.executable, {str(child)!r}])")
    outer, inner = jobs.runs(ended=2)
    assert (outer.pipeline, inner.pipeline) == ("etl", "child")
    assert inner.trace_id == outer.trace_id
    assert inner.parent_run_id == outer.run_id


def test_traceparent_alone_is_a_run_in_that_trace(jobs: Jobs) -> None:
    """A scheduler's trace is joined; the run is ours."""
    jobs.run("pass", TRACEPARENT=f"00-{'ab' * 16}-{'cd' * 8}-01")
    (run,) = jobs.runs()
    assert run.trace_id.hex() == "ab" * 16


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_joins(jobs: Jobs, method: str) -> None:
    """Pool workers of every start method count for the run, exactly once."""
    jobs.run(
        f"""
        import multiprocessing, stagewatch

        def work(number):
            with stagewatch.stage("work") as s:
                s.records(out=number)

        if __name__ == "__main__":
            with multiprocessing.get_context({method!r}).Pool(2) as pool:
                pool.map(work, range(5))
                pool.close()
                pool.join()
        """
    )
    (run,) = jobs.runs()

    def counted() -> bool:
        with jobs.history() as history:
            stages = history.stages(run.run_id)
            return [(s.name, s.calls, s.records_out) for s in stages] == [("work", 5, 10)]

    wait_for(counted)
    assert len(jobs.runs()) == 1


def test_threads_and_tasks_are_in_the_trace(jobs: Jobs) -> None:
    """Plain threads, pools and asyncio: no span is an orphan; a pool knows the stage."""
    jobs.run(
        """
        import asyncio, threading, stagewatch
        from concurrent.futures import ThreadPoolExecutor
        from opentelemetry import trace

        def span(name):
            with trace.get_tracer("mine").start_as_current_span(name): pass

        async def main():
            await asyncio.to_thread(span, "to_thread")

        with stagewatch.stage("load"):
            with ThreadPoolExecutor(1) as pool:
                pool.submit(span, "pool").result()
            asyncio.run(main())
        thread = threading.Thread(target=span, args=("plain",)); thread.start(); thread.join()
        """
    )
    (run,) = jobs.runs()
    assert jobs.tree(run) == [{"load": [{"pool": []}, {"to_thread": []}]}, {"plain": []}]


def test_output_ends_with_the_job(jobs: Jobs) -> None:
    """``out=$(job)`` and ``job | cat`` end with the job: the recorder holds none of its files."""
    jobs.script("print('hello')")
    for command in (
        "out=$(opentelemetry-instrument python etl.py); echo $out",
        "opentelemetry-instrument python etl.py | cat",
    ):
        result = subprocess.run(
            ["sh", "-c", command],
            cwd=jobs.directory,
            env={**jobs.environment, "STAGEWATCH_RECORDER_IDLE": "20"},
            capture_output=True,
            text=True,
            timeout=15,
        )
        assert result.stdout == "hello\n"
    end_recorders(jobs)


def test_wait_is_the_users(jobs: Jobs) -> None:
    """os.wait() in the job sees the user's children only."""
    result = jobs.run(
        """
        import os
        try:
            os.wait()
        except ChildProcessError:
            print("no child")
        """
    )
    assert result.stdout == "no child\n"


def test_nothing_at_all_when_disabled(jobs: Jobs) -> None:
    """OTEL_SDK_DISABLED means: not there."""
    result = jobs.run(
        "import os; print(os.environ.get('STAGEWATCH_RUN'))", OTEL_SDK_DISABLED="true"
    )
    assert (result.stdout, result.stderr) == ("None\n", "")
    assert not jobs.state.exists()


def test_broken_configuration_warns_and_runs(jobs: Jobs) -> None:
    """One warning with file, line and what was expected; the job runs with defaults."""
    (jobs.directory / "stagewatch.yaml").write_text(
        "pipelines:\n  etl:\n    sla:\n      deadline: 45x\n"
    )
    result = jobs.run("print('ran')")
    assert result.stdout == "ran\n"
    assert result.stderr.count("\n") == 1
    assert 'stagewatch.yaml:4: pipelines.etl.sla.deadline: "45x" is not a duration' in result.stderr
    assert len(jobs.runs()) == 1


def test_unwritable_state_directory(jobs: Jobs, tmp_path: Path) -> None:
    """A state directory that cannot be made is replaced by a temporary one, with one warning."""
    (tmp_path / "file").write_text("")
    result = jobs.run(
        "print('ran')", STAGEWATCH_STATE_DIR=str(tmp_path / "file" / "state"), TMPDIR=str(tmp_path)
    )
    assert result.stdout == "ran\n"
    assert result.stderr.count("\n") == 1
    jobs.state = next(tmp_path.glob("stagewatch-*"))
    assert len(jobs.runs()) == 1


def test_an_instrumentor_that_raises_stops_nobody(jobs: Jobs, tmp_path: Path) -> None:
    """A broken instrumentor of somebody else's costs one line; ours are loaded after it."""
    site = tmp_path / "site"
    info = site / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "broken_instrumentor.py").write_text("raise RuntimeError('boom')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[opentelemetry_instrumentor]\naaa_broken = broken_instrumentor:Broken\n"
    )
    result = jobs.run(
        """
        import pandas
        print(hasattr(pandas.read_csv, "__wrapped__"))
        """,
        PYTHONPATH=str(site),
    )
    assert result.stdout == "True\n"
    assert "RuntimeError" in result.stderr
    assert len(jobs.runs()) == 1


def test_another_configurator_was_chosen(jobs: Jobs, tmp_path: Path) -> None:
    """Ours attach to its SDK: it exports the spans, the history has everything."""
    site = tmp_path / "site"
    info = site / "other-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "other_sdk.py").write_text(
        textwrap.dedent(
            """
            from opentelemetry import trace
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

            class Configurator:
                def configure(self, **_):
                    provider = TracerProvider()
                    exporter = ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")
                    provider.add_span_processor(SimpleSpanProcessor(exporter))
                    trace.set_tracer_provider(provider)
            """
        )
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[opentelemetry_configurator]\nother = other_sdk:Configurator\n"
    )
    result = jobs.run(
        "import stagewatch\nwith stagewatch.stage('load'): pass",
        PYTHONPATH=str(site),
        OTEL_PYTHON_CONFIGURATOR="other",
    )
    assert result.stdout == "load\n"
    (run,) = jobs.runs()
    assert jobs.tree(run) == [{"load": []}]


def test_sampled_out_is_still_counted(jobs: Jobs) -> None:
    """OTEL_TRACES_SAMPLER=always_off: no span, but the run and its records are known."""
    jobs.run(
        "import stagewatch\nwith stagewatch.stage('load') as s: s.records(out=3)",
        OTEL_TRACES_SAMPLER="always_off",
    )
    (run,) = jobs.runs()
    assert (run.outcome, run.records_out) == (Outcome.SUCCESS, 3)
    with jobs.history() as history:
        assert [stage.calls for stage in history.stages(run.run_id)] == [1]


def test_service_is_called_as_the_pipeline(jobs: Jobs) -> None:
    """Without OTEL_SERVICE_NAME the service is the pipeline; with it, what the user says."""
    script = """
        from opentelemetry import trace
        print(trace.get_tracer_provider().resource.attributes["service.name"])
    """
    assert jobs.run(script).stdout == "etl\n"
    assert jobs.run(script, OTEL_SERVICE_NAME="mine").stdout == "mine\n"
    assert sys.platform == "linux"


@pytest.mark.parametrize(
    ("disabled", "ours", "upstream"),
    [
        ("", True, True),
        ("requests", False, False),
        ("stagewatch_requests", False, True),
        ("pandas, requests", False, False),
    ],
)
def test_disabled_instrumentations(jobs: Jobs, disabled: str, ours: bool, upstream: bool) -> None:
    """The plain name disables ours too; ours alone leaves the upstream one."""
    result = jobs.run(
        """
        import requests
        from opentelemetry.instrumentation.requests import RequestsInstrumentor as Upstream
        from stagewatch.instrumentation.requests import RequestsInstrumentor as Ours
        print(*(it().is_instrumented_by_opentelemetry for it in (Ours, Upstream)))
        """,
        OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=disabled,
    )
    assert result.stdout.split() == [str(ours), str(upstream)]
