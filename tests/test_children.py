"""What a run's processes share: its clock, and nothing that is counted twice."""

from __future__ import annotations

import subprocess
import sys

from stagewatch.model import Outcome
from tests.jobs import Jobs, wait_for

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
