"""Which details of a run are sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stagewatch import measures
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.history import open_history
from stagewatch.records import ScopeDefined
from tests.scenes import FAILED, OK, SECOND, START, Job, environment

Make = Callable[..., Intake]


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """An intake with an endpoint that is never used, by settings."""
    opened: list[Intake] = []

    def make(**settings: str) -> Intake:
        environ = environment("http://127.0.0.1:1", **settings)
        opened.append(Intake(tmp_path, environ, sends=False))
        return opened[-1]

    yield make
    for one in opened:
        one.stop(0.0)


def states(directory: Path, job: Job) -> dict[str, str]:
    """What became of each span, by its name."""
    with open_history(directory, readonly=True) as history:
        return {span.name: span.state for span in history.spans(job.run)}


def none_sampled(**more: str) -> dict[str, str]:
    """Settings under which only what is slow or failed is sent."""
    return {"STAGEWATCH_DETAIL_RATIO": "0", **more}


def test_a_success_sends_the_slow_and_the_failed(tmp_path: Path, made: Make) -> None:
    """Slow is a hundredth of the run; all else but the user's own spans stays."""
    job = Job(made(**none_sampled()), tmp_path)
    job.open()
    job.put(
        job.detail("quick", 0.09),
        job.detail("slow", 0.1),
        job.detail("broken", 0.01, status=2),
        job.span_ended("mine", 0.01),
    )
    assert states(tmp_path, job) == {
        "quick": "held", "slow": "held", "broken": "held", "mine": "pending",
    }  # fmt: skip
    job.exits(10)
    job.dies(OK)
    assert states(tmp_path, job) == {
        "quick": "kept", "slow": "pending", "broken": "pending", "mine": "pending",
        "flights": "pending",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("status", "deadline", "expected"),
    [
        (FAILED, 60, "pending"),
        (9, 60, "pending"),
        (OK, 5, "pending"),
        (OK, 60, "kept"),
        (15, 60, "kept"),
    ],
    ids=["failed", "killed", "late", "on time", "terminated"],
)
def test_failed_and_late_runs_send_all(
    tmp_path: Path, made: Make, status: int, deadline: int, expected: str
) -> None:
    """Who asks what went wrong needs everything; a cancellation went as somebody wanted."""
    job = Job(made(**none_sampled()), tmp_path)
    job.open(deadline=START + deadline * SECOND)
    job.put(job.detail("quick", 0.01))
    job.exits(10)
    job.dies(status, at=10)
    assert states(tmp_path, job)["quick"] == expected


def test_ancestors_of_what_is_sent_are_sent(tmp_path: Path, made: Make) -> None:
    """A detail under which something hangs that is sent: another detail, or a user's span."""
    job = Job(made(**none_sampled()), tmp_path)
    job.open()
    top, middle, other = (job.detail(name) for name in ("top", "middle", "other"))
    middle = job.detail("middle", parent_span_id=top.span_id)
    job.put(
        job.detail("broken", status=2, parent_span_id=middle.span_id),
        job.span_ended("mine", parent_span_id=other.span_id),
        job.detail("leaf", parent_span_id=other.span_id),
        middle,
        top,
        other,
    )
    job.exits(10)
    job.dies()
    found = states(tmp_path, job)
    assert [found[name] for name in ("top", "middle", "broken", "other")] == ["pending"] * 4
    assert found["leaf"] == "kept"


def test_the_sample_is_of_the_right_size_and_marked(tmp_path: Path, made: Make) -> None:
    """About the configured share, the same every time; only those say that they stand for more."""
    intake = made(STAGEWATCH_DETAIL_RATIO="0.25")
    job = Job(intake, tmp_path)
    job.open()
    ids = [(number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(8, "big") for number in range(1, 2001)]
    job.put(*(job.detail("quick", span_id=one) for one in ids))
    job.put(job.detail("slow", 5.0, span_id=ids[0][::-1]))
    job.exits(10)
    job.dies()
    link = intake._link
    rows = link.execute("select span_id, threshold, seconds from span where role = 3 and state = 0")
    sent = {span_id: (mark, seconds) for span_id, mark, seconds in rows}
    limit = measures.sampling_threshold(0.25)
    chosen = {one for one in ids if measures.is_sampled(one, limit)}
    assert sent.keys() == chosen | {ids[0][::-1]}
    assert 400 < len(chosen) < 600
    assert {sent[one] for one in chosen} == {("c", 0.01)}
    assert sent[ids[0][::-1]] == (None, 5.0)


@pytest.mark.parametrize(
    ("ratio", "state"), [(1.0, "0"), (0.5, "8"), (0.25, "c"), (0.05, "f333333333333")]
)
def test_the_threshold_is_open_telemetrys(ratio: float, state: str) -> None:
    """`th` is the rejection threshold in hex, without trailing zeros."""
    assert measures.threshold_value(ratio) == state


def test_the_cap_cuts_and_is_counted(tmp_path: Path, made: Make) -> None:
    """Failures first, then by their start; the run's span says how many are missing."""
    job = Job(made(STAGEWATCH_DETAIL_CAP="5"), tmp_path)
    job.open()
    job.put(*(job.detail(f"d{n}", start=START + n, end=START + n + 1) for n in range(20)))
    parent = job.detail("parent", start=START + 100, end=START + 200)
    broken = job.detail("broken", start=START + 150, parent_span_id=parent.span_id, status=2)
    job.put(broken, parent)
    job.exits(10)
    job.dies(FAILED)
    found = states(tmp_path, job)
    assert {name for name, state in found.items() if state == "pending"} == {
        "flights", "broken", "parent", "d0", "d1", "d2",
    }  # fmt: skip
    with open_history(tmp_path, readonly=True) as history:
        (run,) = (span for span in history.spans(job.run) if span.name == "flights")
        assert run.attributes["stagewatch.run.details_cut"] == 17
        lost = history.counters("stagewatch.telemetry.dropped")
    assert lost == {(("reason", "cap"), ("signal", "traces"), ("source", "recorder")): 17}


def test_late_details_follow_the_runs_decision(tmp_path: Path, made: Make) -> None:
    """A child that outlives its run: as the run went, and within the same cap."""
    intake = made(**none_sampled(STAGEWATCH_DETAIL_CAP="3"))
    for status, expected in ((OK, "kept"), (FAILED, "pending")):
        job = Job(intake, tmp_path)
        job.open()
        child = Job(intake, tmp_path, opens=False, run=job.run)
        child.put(ScopeDefined(0, "stagewatch", None, None))
        job.put(job.detail("early"))
        job.exits(10)
        job.dies(status)
        child.put(child.detail("late"))
        child.put(*(child.detail("later", 1.0) for _ in range(4)))
        found = states(tmp_path, job)
        assert (found["early"], found["late"]) == (expected, expected)
        with open_history(tmp_path, readonly=True) as history:
            sent = [
                s for s in history.spans(job.run) if s.role == "detail" and s.state == "pending"
            ]
        assert len(sent) == 3
        child.dies()


def test_details_of_a_child_that_died_first_wait_for_its_run(tmp_path: Path, made: Make) -> None:
    """When the run fails afterwards they are sent."""
    intake = made(**none_sampled())
    job = Job(intake, tmp_path)
    child = Job(intake, tmp_path, opens=False, run=job.run)
    child.put(child.span_ended("long", 10.0), child.detail("early"))
    child.dies()  # nothing is known of its run yet
    assert states(tmp_path, job)["early"] == "kept"
    job.open()
    second = Job(intake, tmp_path, opens=False, run=job.run)
    second.put(second.detail("second"))
    second.dies()
    assert states(tmp_path, job)["second"] == "held"
    job.exits(10)
    job.dies(FAILED)
    assert states(tmp_path, job) == dict.fromkeys(["long", "early", "second", "flights"], "pending")


def test_what_another_sdk_exports_is_not_sent(tmp_path: Path, made: Make) -> None:
    """Its spans stay in the history whatever the outcome; the run's own span is ours to send."""
    job = Job(made(), tmp_path, spans_elsewhere=True)
    job.open()
    job.put(job.detail("detail"), job.span_ended("mine"))
    job.exits(10)
    job.dies(FAILED)
    assert states(tmp_path, job) == {"detail": "local", "mine": "local", "flights": "pending"}


def test_clients_of_libraries_are_details(tmp_path: Path, made: Make) -> None:
    """HTTP and DB client spans of instrumentations are; what the user opens never is."""
    job = Job(made(), tmp_path)
    job.open()
    job.put(
        ScopeDefined(1, "opentelemetry.instrumentation.requests", "1", None),
        ScopeDefined(2, "my.module", None, None),
        job.span_ended("GET", kind=2, scope=1),
        job.span_ended("send", kind=3, scope=1),
        job.span_ended("serve", kind=1, scope=1),
        job.span_ended("client", kind=2, scope=2),
        job.span_ended("unknown", kind=2, scope=77),
    )
    assert states(tmp_path, job) == {
        "GET": "held", "send": "held", "serve": "pending", "client": "pending",
        "unknown": "pending",
    }  # fmt: skip
