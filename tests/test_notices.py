"""What is said of a run while it runs: when, once, and where it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from stagewatch import semconv
from stagewatch.database import PENDING
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.judging import notices
from stagewatch.exporters.recorder.watching.vitals import Vitals
from stagewatch.history import open_history
from stagewatch.model import DeclaredStage, Escalation, Notice, Outcome, Pipeline, Role, Sla
from stagewatch.records import LogEmitted, MetricsCollected, NameDefined, Noted, SpanEnded, decode
from tests import scenes
from tests.scenes import FAILED, OK, SECOND, START, UPTIME, Job, Looks, environment

KILLED, TERMINATED = 9, 15
ENVIRONMENT = environment("http://127.0.0.1:1", OTEL_LOGS_EXPORTER="otlp")


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    """One with an endpoint that is never used; logs are sent, too."""
    yield from scenes.intake(tmp_path, ENVIRONMENT)


@pytest.fixture
def looks(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(intake, monkeypatch)


def said(directory: Path, job: Job) -> list[Notice]:
    with open_history(directory, readonly=True) as history:
        return history.notices(job.run)


def names(directory: Path, job: Job) -> list[str]:
    return [notice.name for notice in said(directory, job)]


def sent(intake: Intake, job: Job) -> list[SpanEnded]:
    """Spans of the run that wait to be sent, in the order of their sending."""
    rows = intake._link.execute(
        "select span.record from span join run on run.id = span.run where run.run_id = ? "
        "and state = ? order by role, n",
        [job.run, PENDING],
    )
    return [span for (blob,) in rows if isinstance(span := decode(blob), SpanEnded)]


def logs(intake: Intake) -> list[LogEmitted]:
    rows = intake._link.execute("select record from log order by n")
    return [log for (blob,) in rows if isinstance(log := decode(blob), LogEmitted)]


def at_work(job: Job) -> None:
    """In stage ``load``, in the middle of a merge, with seven records in."""
    cell = job.page().cell("stage")
    assert cell is not None
    load = job.stage("load", 1.0, cell=cell.offset)
    cell.store(int.from_bytes(load.span_id, "big"), 7, 0, 0, 0, 0, 0, 1)
    job.put(NameDefined(3, "pandas.merge"))
    slot = job.page().thread_slot(7)
    assert slot is not None
    slot.show_stages([cell.offset], START)
    slot.operation[0] = SECOND // 1024 * 1024 + 3


def test_the_moment_a_deadline_passes(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """A row, a short span of its own, a log record: at that look, and not again."""
    job = Job(intake, tmp_path)
    job.open(deadline=START + 60 * SECOND, scheduled=START, trace_state="x=y")
    at_work(job)
    looks.at(59, job)
    looks.at(60, job)
    assert (names(tmp_path, job), logs(intake)) == ([], [])
    looks.at(61, job)
    looks.at(62, job)
    looks.at(90, job)
    (notice,) = said(tmp_path, job)
    assert (notice.at, notice.name) == (START + 61 * SECOND, "run late")
    assert notice.attributes == {
        "pipeline.run.deadline": "2026-11-21T12:01:00Z",
        "pipeline.run.lateness": 1.0,
        "pipeline.run.stage": "load",
        "pipeline.run.operation": "pandas.merge",
        "pipeline.run.records.in": 7,
    }
    identity = {"pipeline.name": "flights", "pipeline.run.id": job.run}
    begun, late = sent(intake, job)
    assert (late.name, late.start, late.end) == ("run late", START + 61 * SECOND, late.start)
    assert late.attributes == {**identity, **notice.attributes}
    assert (late.trace_id, late.parent_span_id, late.trace_state) == (job.trace, job.span, "x=y")
    assert len({job.span, late.span_id, begun.span_id}) == 3
    (log,) = logs(intake)
    assert (log.severity, log.severity_text, log.body) == (
        notices.WARN, "WARN", "flights is late by 1.0 s, in load",
    )  # fmt: skip
    assert (log.trace_id, log.span_id, log.event_name) == (
        job.trace, job.span, "pipeline.run.late",
    )  # fmt: skip
    assert log.attributes == late.attributes
    job.exits(100.0)
    job.dies()
    (run,) = (span for span in sent(intake, job) if span.span_id == job.span)
    assert run.events == [("pipeline.run.late", notice.at, notice.attributes)]


def test_each_escalation_step_is_said_once(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """And the deadline itself, if no step is at it."""
    steps = (Escalation(30.0, "warning"), Escalation(60.0, "critical"))
    found = []
    for escalation in (steps, (Escalation(0.0, "info"), *steps)):
        job = Job(intake, tmp_path)
        declared = Pipeline(name="flights", sla=Sla(max_duration=10.0, escalation=escalation))
        job.open(declared=declared)
        for second in (11, 41, 42, 200):
            looks.at(second, job)
        found.append([notice.attributes.get(semconv.ESCALATION) for notice in said(tmp_path, job)])
    assert found == [[None, "warning", "critical"], ["info", "warning", "critical"]]
    assert [log.severity for log in logs(intake)] == 2 * [
        notices.WARN, notices.WARN, notices.ERROR,
    ]  # fmt: skip


def test_steps_that_nobody_saw_pass(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """The highest alone is said, in words as people use them; those below it never."""
    job = Job(intake, tmp_path)
    steps = (Escalation(60.0, "critical"), Escalation(30.0, "warning"), Escalation(80000.0, "page"))
    job.open(declared=Pipeline(name="flights", sla=Sla(max_duration=10.0, escalation=steps)))
    at_work(job)
    looks.at(78, job)
    again = Intake(tmp_path, ENVIRONMENT, sends=False)
    again.resume(job.key)
    looks.intake = again
    looks.at(79, job)
    looks.at(90_000, job)
    again.stop(0.0)
    assert [notice.attributes[semconv.RUN_LATENESS] for notice in said(tmp_path, job)] == [
        68.0, 89_990.0,
    ]  # fmt: skip
    assert [log.body for log in logs(intake)] == [
        "flights is late by 1m08s, in load: critical",
        "flights is late by 25h00m, in load: page",
    ]


def test_late_when_it_died(tmp_path: Path, intake: Intake) -> None:
    """No look saw it become late: its end says so."""
    job = Job(intake, tmp_path)
    job.open(deadline=START + 60 * SECOND)
    at_work(job)
    job.dies(KILLED, at=63.0)
    (notice,) = said(tmp_path, job)
    assert (notice.name, notice.at) == ("run late", START + 63 * SECOND)
    assert notice.attributes["pipeline.run.lateness"] == 3.0
    assert [log.body for log in logs(intake)] == ["flights is late by 3.0 s, in load"]


def test_another_recorder_does_not_repeat_it(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Whoever has said it, it is said; what nobody saw pass is said late, if the run lives."""
    job, over = Job(intake, tmp_path), Job(intake, tmp_path)
    for one in (job, over):
        one.open(deadline=START + 60 * SECOND)
    looks.at(61, job)
    again = Intake(tmp_path, ENVIRONMENT, sends=False)
    again.resume(job.key)
    looks.intake = again
    looks.at(62, job)
    again.stop(0.0)
    assert names(tmp_path, job) == ["run late"]
    assert [span.name for span in sent(intake, job)] == ["run started", "run late"]
    assert len(logs(intake)) == 1
    with open_history(tmp_path, readonly=True) as history:
        assert sum(history.counters("stagewatch.telemetry.recorded").values()) == 3
    over.exits(70.0)
    over.dies()
    assert names(tmp_path, over) == []


def test_a_scheduled_deadline_goes_by_the_clock(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """A longest duration does not: who sets the clock makes nobody late by that."""
    scheduled, longest = Job(intake, tmp_path), Job(intake, tmp_path)
    scheduled.open(scheduled=START, declared=Pipeline(name="flights", sla=Sla(deadline=60.0)))
    longest.open(declared=Pipeline(name="flights", sla=Sla(max_duration=60.0)))
    looks.at(10, scheduled, longest)
    looks.step = 100.0
    looks.at(20, scheduled, longest)
    assert (names(tmp_path, scheduled), names(tmp_path, longest)) == (["run late"], [])


def test_what_is_said_lies_within_the_run(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """On the run's own clock, whoever sets the other one; a stage has taken what it has taken."""
    job = Job(intake, tmp_path, uptime=UPTIME)
    stages = {"load": DeclaredStage(max_duration=20.0)}
    declared = Pipeline(name="flights", sla=Sla(max_duration=60.0), stages=stages)
    job.open(declared=declared, uptime=UPTIME)
    worker = Job(intake, tmp_path, opens=False, run=job.run, uptime=UPTIME)
    looks.at(10, job, worker)
    looks.step = 3600.0
    worker.stage("load", 25.0)
    looks.at(30, job, worker)
    assert names(tmp_path, job) == []
    looks.at(46, job, worker)
    looks.at(61, job, worker)
    worker.dies(KILLED, at=3662.0, uptime=UPTIME + 62 * SECOND)
    assert [(notice.name, (notice.at - START) // SECOND) for notice in said(tmp_path, job)] == [
        ("stage late", 46), ("run late", 61), ("process died", 62),
    ]  # fmt: skip


def test_a_run_that_begins_can_be_opened(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """A span under the run's, as soon as the run is seen alive; none of one that is over by then.

    It goes out before any detail, and is no span of the run's own for who reads the history.
    """
    job, brief = Job(intake, tmp_path), Job(intake, tmp_path)
    for one in (job, brief):
        one.open(deadline=START + 60 * SECOND, scheduled=START, attempt=2)
    job.put(job.span_ended("mine"))
    brief.exits(0.5)
    brief.dies()
    looks.at(1, job)
    looks.at(2, job)
    begun, mine = sent(intake, job)
    assert (begun.name, begun.start, begun.end, mine.name) == ("run started", START, START, "mine")
    assert (begun.parent_span_id, begun.attributes) == (
        job.span,
        {
            "pipeline.name": "flights",
            "pipeline.run.id": job.run,
            "pipeline.run.attempt": 2,
            "pipeline.run.deadline": "2026-11-21T12:01:00Z",
            "pipeline.run.scheduled_time": "2026-11-21T12:00:00Z",
        },
    )
    assert [span.name for span in sent(intake, brief)] == ["flights"]
    job.exits(3)
    job.dies()
    with open_history(tmp_path, readonly=True) as history:
        assert {(span.name, span.role) for span in history.spans(job.run)} == {
            ("mine", Role.USER), ("flights", Role.RUN),
        }  # fmt: skip
        assert history.notices(job.run) == []
        recorded = sum(history.counters("stagewatch.telemetry.recorded").values())
        assert recorded == len(sent(intake, job)) + len(sent(intake, brief))


def test_what_is_not_sampled_is_kept_here(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """The history has the notice, the backend no span of it (decision 18)."""
    job = Job(intake, tmp_path)
    job.open(sampled=False, deadline=START + 60 * SECOND)
    looks.at(61, job)
    assert names(tmp_path, job) == ["run late"]
    assert sent(intake, job) == []
    other = Intake(tmp_path, environment(), sends=False)
    silent = Job(other, tmp_path)
    silent.open(deadline=START + 60 * SECOND)
    looks.intake = other
    looks.at(62, silent)
    other.stop(0.0)
    assert names(tmp_path, silent) == ["run late"]
    assert (sent(intake, silent), len(logs(intake))) == ([], 1)


def test_a_stage_that_takes_too_long(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Once per stage and run, whichever of its calls it is."""
    job = Job(intake, tmp_path)
    stages = {"load": DeclaredStage(max_duration=10.0), "other": DeclaredStage()}
    job.open(declared=Pipeline(name="flights", stages=stages))
    first = job.stage("load", 1.0)
    job.stage("other", 0.0)
    looks.at(11, job)
    assert names(tmp_path, job) == []
    looks.at(12, job)
    job.stage_ended(first, 12.0)
    job.stage("load", 13.0)
    looks.at(30, job)
    (notice,) = said(tmp_path, job)
    assert (notice.name, notice.attributes) == (
        "stage late",
        {
            "pipeline.stage.name": "load",
            "pipeline.stage.lateness": 1.0,
            "pipeline.run.stage": "load",
        },
    )


def test_a_stage_that_is_too_slow(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Over a minute, by all processes that are in it; not one whose records nobody counts."""
    stages = {name: DeclaredStage(min_throughput=10.0) for name in ("load", "uncounted")}
    job = Job(intake, tmp_path)
    job.open(declared=Pipeline(name="flights", stages=stages))
    worker = Job(intake, tmp_path, opens=False, run=job.run)
    job.stage("uncounted")
    cells = []
    for process in (job, worker):
        cell = process.page().cell("stage")
        assert cell is not None
        number = int.from_bytes(process.stage("load", cell=cell.offset).span_id, "big")
        cells.append((cell, number))
    for second, records in ((30, 1), (59, 2), (65, 400), (120, 400), (125, 500), (130, 500)):
        for cell, number in cells:
            cell.store(number, 0, records, 0, 0, 0, 0, 2)
        looks.at(second, job, worker)
        assert names(tmp_path, job) == ([] if second < 125 else ["stage slow"])
    (notice,) = said(tmp_path, job)
    assert notice.attributes["pipeline.stage.throughput"] == pytest.approx(200 / 60, abs=0.2)


def test_a_stuck_run_and_one_that_goes_on(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """With the place and the stack; each time it happens; it goes on when it moves again."""
    job = Job(intake, tmp_path)
    job.open()
    at_work(job)
    still: dict[str, Any] = {"vitals": Vitals(1.0), "is_still": True}
    for second, shows in (
        (10, {"vitals": Vitals(1.0)}),
        (20, {**still, "waits_for": "socket"}),
        (30, {**still, "stack": "load (etl.py:3)"}),
        (40, {**still, "waits_for": "socket"}),
        (50, {"vitals": Vitals(2.0)}),
        (60, {"vitals": Vitals(3.0)}),
        (70, still),
    ):
        job.shows = shows
        looks.at(second, job)
    assert [(notice.name, (notice.at - START) // SECOND) for notice in said(tmp_path, job)] == [
        ("run stuck", 30), ("run resumed", 50), ("run stuck", 70),
    ]  # fmt: skip
    assert said(tmp_path, job)[0].attributes == {
        "code.stacktrace": "load (etl.py:3)",
        "pipeline.run.stage": "load",
        "pipeline.run.operation": "pandas.merge",
        "pipeline.run.records.in": 7,
    }
    assert [log.severity for log in logs(intake)] == [notices.ERROR, notices.INFO, notices.ERROR]
    assert logs(intake)[0].body == ("flights has shown no sign of life since 2026-11-21T12:00:01Z")


def test_a_new_recorder_is_no_sign_of_life(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """It needs a while to find a run still again; only what it sees move goes on."""
    job = Job(intake, tmp_path)
    job.open()
    job.shows = {"is_still": True, "vitals": Vitals(1.0)}
    looks.at(30, job)
    again = Intake(tmp_path, ENVIRONMENT, sends=False)
    again.resume(job.key)
    looks.intake = again
    for second, cpu in ((40, 1.0), (50, 1.0)):
        job.shows = {"vitals": Vitals(cpu)}
        looks.at(second, job)
    assert names(tmp_path, job) == ["run stuck"]
    job.shows = {"vitals": Vitals(2.0)}
    looks.at(60, job)
    again.stop(0.0)
    assert names(tmp_path, job) == ["run stuck", "run resumed"]


def test_time_that_nobody_watched_as_a_delta(tmp_path: Path) -> None:
    """Its point covers just that time."""
    delta = {**ENVIRONMENT, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}
    for intake in scenes.intake(tmp_path, delta):
        job = Job(intake, tmp_path)
        job.open()
        intake.unwatched(job.key, 60.0, START + 90 * SECOND)
        (point,) = intake._link.execute(
            "select start, end, value from delta join instrument on instrument.id = instrument "
            "where name = ?",
            [semconv.UNWATCHED.name],
        )
        assert point == (START + 30 * SECOND, START + 90 * SECOND, 60.0)


def test_a_worker_that_dies(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Its open stages are closed with that verdict; the run goes on, and ends as it ends."""
    job = Job(intake, tmp_path)
    job.open()
    worker = Job(intake, tmp_path, opens=False, run=job.run)
    at_work(worker)
    worker.dies(KILLED, at=5.0, oom_killed=True)
    (notice,) = said(tmp_path, job)
    assert (notice.name, notice.at) == ("process died", START + 5 * SECOND)
    assert notice.attributes == {
        "process.pid": int(worker.key.split(".")[0]),
        "error.type": "oom_killed",
        "pipeline.run.stage": "load",
        "pipeline.run.operation": "pandas.merge",
    }
    job.exits(10.0)
    job.dies()
    with open_history(tmp_path, readonly=True) as history:
        assert history.run(job.run).outcome is Outcome.SUCCESS
        (stage,) = history.stages(job.run)
    assert (stage.failed, stage.error_type) == (1, "oom_killed")


def test_workers_that_end_in_order(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """A pool ends its idle workers by SIGTERM; after the run's end nothing is said any more."""
    job = Job(intake, tmp_path)
    job.open()
    idle, fine, busy, failed, late = (
        Job(intake, tmp_path, opens=False, run=job.run) for _ in range(5)
    )
    looks.at(1, job, idle, fine, busy, failed, late)
    idle.dies(TERMINATED)
    fine.dies(OK)
    busy.stage("work")
    busy.dies(TERMINATED)
    failed.dies(FAILED)
    looks.at(2, job, late)
    job.exits(10.0)
    job.dies()
    late.dies(KILLED)
    found = {
        (notice.attributes["process.pid"], notice.attributes["error.type"])
        for notice in said(tmp_path, job)
    }
    assert found == {
        (int(busy.key.split(".")[0]), "terminated"), (int(failed.key.split(".")[0]), "exit_1"),
    }  # fmt: skip


def test_an_exec_is_no_death(tmp_path: Path, intake: Intake) -> None:
    """The process has two journals; the second is closed first, and it is the run that ends."""
    job = Job(intake, tmp_path)
    job.open()
    second = Job(intake, tmp_path, opens=False, run=job.run)
    process = intake._journal(second.key).process
    assert process is not None
    second.key = job.key.rsplit(".", 1)[0] + ".deadbeef"
    second.put(process)
    second.dies(KILLED)
    job.dies(KILLED)
    assert names(tmp_path, job) == []


@pytest.mark.parametrize(
    ("status", "exits", "place"),
    [
        (KILLED, False, ("load", "pandas.merge")),
        (3 << 8, False, ("load", "pandas.merge")),
        (KILLED, True, ("load", "pandas.merge")),
        (OK, True, (None, None)),
    ],
    ids=["killed", "os._exit", "killed while it ended", "in order"],
)
def test_where_a_run_died(
    tmp_path: Path, intake: Intake, status: int, exits: bool, place: tuple[str, str]
) -> None:
    """Stage and operation it was in, on the run and its span; not of one that ended in order."""
    job = Job(intake, tmp_path)
    job.open()
    at_work(job)
    if exits:
        job.exits(5.0)
    job.dies(status, at=6.0)
    with open_history(tmp_path, readonly=True) as history:
        run = history.run(job.run)
    assert (run.last_stage, run.last_operation) == place
    attributes = sent(intake, job)[0].attributes
    assert attributes is not None
    assert (
        attributes.get("pipeline.run.stage"), attributes.get("pipeline.run.operation"),
    ) == place  # fmt: skip


def noted(job: Job, key: str = "skew", at: float = 3.0) -> Noted:
    """A piece of advice."""
    attributes = {semconv.ADVICE_KIND: key, semconv.ADVICE_EVIDENCE: "10 of 20 s", "gone": None}
    moment = START + round(at * SECOND)
    return Noted(job.run, semconv.ADVICE, key, "flights: salt the key", attributes, moment)


def test_what_the_job_notes_itself(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Said as what the recorder says: once, a row, a short span, a log record, an event."""
    job = Job(intake, tmp_path)
    job.open(trace_state="x=y")
    job.put(noted(job), noted(job, at=4.0))
    job.put(noted(job), noted(job, "spill", 5.0))
    known = {semconv.ADVICE_KIND: "skew", semconv.ADVICE_EVIDENCE: "10 of 20 s"}
    first, second = said(tmp_path, job)
    assert (first.name, first.at, first.attributes) == ("advice", START + 3 * SECOND, known)
    assert second.attributes[semconv.ADVICE_KIND] == "spill"
    short, _ = sent(intake, job)
    assert (short.name, short.start, short.end) == ("advice", START + 3 * SECOND, short.start)
    assert (short.trace_id, short.parent_span_id, short.trace_state) == (job.trace, job.span, "x=y")
    identity = {"pipeline.name": "flights", "pipeline.run.id": job.run}
    assert short.attributes == {**identity, **known}
    log, _ = logs(intake)
    assert (log.severity, log.body, log.event_name, log.attributes) == (
        notices.INFO, "flights: salt the key", "pipeline.advice", short.attributes,
    )  # fmt: skip
    looks.at(6, job)
    assert len(said(tmp_path, job)) == 2
    with open_history(tmp_path, readonly=True) as history:
        assert history.advised() == {job.run: 2}
    job.exits(100.0)
    job.dies()
    (run,) = (span for span in sent(intake, job) if span.span_id == job.span)
    assert [(name, at) for name, at, _ in run.events or ()] == [
        ("pipeline.advice", START + 3 * SECOND), ("pipeline.advice", START + 5 * SECOND),
    ]  # fmt: skip


def test_a_run_that_ends_at_once_has_what_it_noted(tmp_path: Path, intake: Intake) -> None:
    """Nobody has looked at it, and all of its journal comes at once."""
    job = Job(intake, tmp_path)
    opened = job.open()
    over = Job(intake, tmp_path)
    over.put(structs.replace(opened, run_id=over.run, span_id=over.span), noted(over))
    over.exits(4.0)
    over.dies()
    (run,) = (span for span in sent(intake, over) if span.span_id == over.span)
    assert [name for name, _, _ in run.events or ()] == ["pipeline.advice"]


def test_what_the_job_notes_is_no_sign_of_a_watcher(tmp_path: Path, intake: Intake) -> None:
    """Nobody had watched before: there is no gap."""
    job = Job(intake, tmp_path)
    job.open()
    job.put(noted(job))
    job.exits(500.0)
    job.dies()
    assert names(tmp_path, job) == ["advice"]


def test_what_a_joined_process_notes(tmp_path: Path, intake: Intake) -> None:
    """It is said of the run it joined; of one that nobody here has open it is written down."""
    job = Job(intake, tmp_path)
    child, late = (Job(intake, tmp_path, opens=False, run=job.run) for _ in range(2))
    child.put(noted(job, "early", 1.0))
    assert sent(intake, job) == []
    job.open()
    child.put(noted(job, "skew"))
    assert [span.parent_span_id for span in sent(intake, job)] == [job.span]
    job.exits(10.0)
    job.dies()
    late.put(noted(job, "spill", 11.0))
    assert [one.attributes[semconv.ADVICE_KIND] for one in said(tmp_path, job)] == [
        "early", "skew", "spill",
    ]  # fmt: skip
    (run,) = (span for span in sent(intake, job) if span.span_id == job.span)
    assert [attributes[semconv.ADVICE_KIND] for _, _, attributes in run.events or ()] == [
        "early", "skew",
    ]  # fmt: skip
    assert len(sent(intake, job)) == 2


def test_notes_are_taken_in_with_what_they_came_with(tmp_path: Path, intake: Intake) -> None:
    """All of it or nothing: again is harmless."""
    job = Job(intake, tmp_path)
    job.open()
    broken = MetricsCollected(0, 1, [None])  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        job.put(noted(job), broken)
    assert (names(tmp_path, job), logs(intake)) == ([], [])
    job.put(noted(job))
    assert (names(tmp_path, job), len(logs(intake))) == (["advice"], 1)


def test_notices_leave_with_their_run(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Retention takes what was said along."""
    job = Job(intake, tmp_path)
    job.open(deadline=START + 60 * SECOND)
    looks.at(61, job)
    job.exits(70.0)
    job.dies()
    with open_history(tmp_path) as history:
        history.prune(START + 500 * 86400 * SECOND)
        counts = [
            history.link.execute(f"select count(*) from {table}").fetchone()[0]
            for table in ("run", "notice", "live")
        ]
    assert counts == [0, 0, 0]
