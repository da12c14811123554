"""A real SDK and a real journal in a temporary directory.

An internal error that `stagewatch.safety` had to swallow fails the test that caused it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from stagewatch import operations, safety, tracing
from stagewatch.model import Pipeline
from tests.jobs import Jobs, end_recorders
from tests.recorded import Clock, Recorded

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time of stages and operations; their wall clock and their monotonic one alike."""
    fake = Clock()
    for module in (tracing, operations):
        monkeypatch.setattr(module, "_clock", fake)
        monkeypatch.setattr(module, "_ticks", fake)
    return fake


@pytest.fixture
def recorded(tmp_path: Path, clock: Clock) -> Iterator[Recorded]:
    """A run of the undeclared pipeline ``test``."""
    found = Recorded(tmp_path, clock, Pipeline(name="test"))
    yield found
    found.close()


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Real jobs; their recorders, which would wait for a backend long gone, end with the test."""
    found = Jobs(tmp_path)
    yield found
    end_recorders(found)


@pytest.fixture(autouse=True)
def no_internal_errors(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail the test if an error of ours had to be swallowed in this process."""
    swallowed: list[Exception] = []
    genuine = safety.report

    def watched(error: Exception) -> None:
        swallowed.append(error)
        genuine(error)

    for module in (safety, tracing, operations):
        monkeypatch.setattr(module, "report", watched, raising=False)
    yield
    if not request.node.get_closest_marker("internal_errors") and swallowed:
        raise swallowed[0]


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No state and no settings of the person who runs the tests."""
    for name in tuple(os.environ):
        if name.startswith(("STAGEWATCH_", "OTEL_")) and name != "STAGEWATCH_REQUIRE_ALL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))
    logging.getLogger("stagewatch").setLevel(logging.NOTSET)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where everything is to be tested (``.ci/run``), what a test lacks is a failure."""
    report = yield
    if report.skipped and os.environ.get("STAGEWATCH_REQUIRE_ALL") and call.excinfo is not None:
        report.outcome = "failed"
        report.longrepr = f"skipped, but everything is required: {call.excinfo.value}"
    return report
