"""What is seen of a run while it runs: without a process, by a clock of our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewatch import measures, semconv
from stagewatch.database import connect
from stagewatch.exporters.page import LAYOUTS
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.watching.vitals import Vitals
from stagewatch.history import open_history
from stagewatch.model import DeclaredStage, Doing, Live, Pipeline, Run, Sla
from stagewatch.records import NameDefined, TallyDefined
from tests import scenes
from tests.scenes import FAILED, OK, SECOND, START, UPTIME, Job, Looks, environment

KILLED = 9


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    """One with an endpoint that is never used."""
    yield from scenes.intake(tmp_path, environment("http://127.0.0.1:1"))


@pytest.fixture
def looks(intake: Intake, monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(intake, monkeypatch)


def live(directory: Path, job: Job) -> Live:
    """What the history shows of the job's run."""
    with open_history(directory, readonly=True) as history:
        found = history.live(job.run)
    assert found is not None
    return found


def run_of(directory: Path, job: Job) -> Run:
    with open_history(directory, readonly=True) as history:
        return history.run(job.run)


def gauge(directory: Path, name: str, **labels: str) -> float | None:
    """Newest value of one of our gauges."""
    wanted = {(key.replace("_", "."), value) for key, value in labels.items()}
    with open_history(directory, readonly=True) as history:
        found = [v for key, v in history.counters(name).items() if wanted <= set(key)]
    return found[0] if found else None


def test_ticks_show_that_a_run_is_alive_and_late(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """Heartbeat, last activity and lateness, as gauges, while it is under way."""
    job = Job(intake, tmp_path)
    job.open(deadline=START + 60 * SECOND)
    slot = job.page().thread_slot(7)
    assert slot is not None
    slot.show_stages([], START + 80 * SECOND)
    looks.at(90, job)
    assert gauge(tmp_path, semconv.HEARTBEAT.name) == START / SECOND + 90
    assert gauge(tmp_path, semconv.LAST_ACTIVITY.name) == START / SECOND + 80
    assert gauge(tmp_path, semconv.LATENESS.name) == 30.0
    for second in (100, 110):
        job.page().run.store(7, 0, 0, 0, 0, 0, 1)
        looks.at(second, job)
    assert gauge(tmp_path, semconv.LAST_ACTIVITY.name) == START / SECOND + 100
    job.stage_ended(job.stage("load", 100.0), 5.0)
    looks.at(120, job)
    assert gauge(tmp_path, semconv.LAST_ACTIVITY.name) == START / SECOND + 105


def test_ticks_show_records_so_far_and_their_rate(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """What a stage, folded calls and the run itself have counted; the rate of the last minute."""
    job = Job(intake, tmp_path)
    job.open()
    page = job.page()
    cell = page.cell("stage")
    assert cell is not None
    done = job.stage("extract")
    job.stage_ended(done, 1.0, records_in=1, records_out=2)
    load = job.stage("load", cell=cell.offset)
    number = int.from_bytes(load.span_id, "big")
    page.run.store(1000, 0, 0, 0, 0, 0, 1)
    rates = []
    for second, out in ((30, 300), (60, 300), (90, 900), (92, 1500), (120, 1500)):
        cell.store(number, 0, out, 5, 0, 0, 0, 2)
        looks.at(second, job)
        rates.append(gauge(tmp_path, semconv.THROUGHPUT.name, pipeline_stage_name="load"))
        if second != 92:  # not written down: it is two seconds since the last time
            run = run_of(tmp_path, job)
            assert (run.records_in, run.records_out, run.records_rejected) == (1001, 2 + out, 5)
    assert rates == [10.0, 5.0, 10.0, 10.0, 20.0]
    (stage,) = live(tmp_path, job).stages
    assert (stage.records_in, stage.records_out, stage.records_rejected) == (None, 1500, 5)
    assert (stage.throughput, live(tmp_path, job).throughput) == (20.0, 20.0)
    job.dies(KILLED, at=121.0)
    run = run_of(tmp_path, job)
    assert (run.records_in, run.records_out, run.records_rejected) == (1001, 1502, 5)


def test_where_a_run_is(
    tmp_path: Path, intake: Intake, looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open stages of all processes, by their start, with the operation of the thread each is in."""
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000 * SECOND)
    job = Job(intake, tmp_path)
    job.open()
    worker = Job(intake, tmp_path, opens=False, run=job.run, start=START + 3 * SECOND)
    for process, name in ((job, "load"), (worker, "work")):
        cell = process.page().cell("stage")
        assert cell is not None
        started = process.stage(name, 2.0, cell=cell.offset)
        cell.store(int.from_bytes(started.span_id, "big"), 1, 0, 0, 0, 0, 0, 1)
        slot = process.page().thread_slot(7)
        assert slot is not None
        slot.show_stages([cell.offset], START)
        process.put(NameDefined(3, f"pandas.{name}"))
        slot.operation[0] = 4_998 * SECOND // 1024 * 1024 + 3
    ended = job.stage("extract", 1.0)
    job.stage_ended(ended, 0.5)
    loose = worker.page().thread_slot(8)
    assert loose is not None
    loose.operation[0] = 4_999 * SECOND // 1024 * 1024 + 3
    looks.at(10, job, worker)
    found = live(tmp_path, job)
    assert [(stage.name, stage.pid, stage.operation) for stage in found.stages] == [
        ("load", int(job.key.split(".")[0]), "pandas.load"),
        ("work", int(worker.key.split(".")[0]), "pandas.work"),
    ]
    began = found.stages[0].operation_start
    assert began is not None and abs(began - (START + 8 * SECOND)) < 2048
    assert found.operation == "pandas.work"
    assert (found.doing, found.at, found.processes) == (Doing.RUNNING, START + 10 * SECOND, 2)


def test_figures_from_outside(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """CPU since a stage began, cores used just now, memory of all processes and its peak."""
    job = Job(intake, tmp_path)
    job.open()
    worker = Job(intake, tmp_path, opens=False, run=job.run)
    job.shows["vitals"] = Vitals(10.0, 100, 150, 7, 8, threads=3)
    worker.shows["vitals"] = Vitals(1.0, 40, 60, 1, 1, threads=1, processes=2)
    looks.at(10, job, worker)
    job.stage("load", 14.0)
    job.shows["vitals"] = Vitals(15.0, 200, 250, 7, 9, threads=3)
    worker.shows["vitals"] = Vitals(2.0, 10, 60, 2, 1, threads=1)
    looks.at(20, job, worker)
    found = live(tmp_path, job)
    assert (found.cpu_seconds, found.cpu_share) == (17.0, 0.6)
    assert (found.memory, found.memory_peak) == (210, 250)
    assert (found.processes, found.threads) == (2, 4)
    assert (found.read_bytes, found.written_bytes) == (9, 10)
    # It began in the middle of the ten seconds in which its process used 5 s.
    assert found.stages[0].cpu_seconds == 3.0
    assert found.stages[0].memory_peak == 250
    assert gauge(tmp_path, semconv.STAGE_MEMORY.name, pipeline_stage_name="load") == 250
    job.dies(KILLED, at=25.0, vitals=Vitals(16.5, 200, 270))
    run = run_of(tmp_path, job)
    assert (run.cpu_seconds, run.memory_peak, run.last_stage) == (16.5, 270, "load")
    with open_history(tmp_path, readonly=True) as history:
        (stage,) = history.stages(job.run)
        spans = {span.name: span.attributes for span in history.spans(job.run)}
    assert (stage.cpu_seconds, stage.memory_peak) == (4.5, 270)
    assert spans["load"]["pipeline.stage.cpu.time"] == 4.5
    assert spans["flights"]["pipeline.run.stage"] == "load"


def test_an_exec_does_not_count_a_process_twice(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """One process, two journals."""
    job = Job(intake, tmp_path)
    job.open()
    second = Job(intake, tmp_path, opens=False, run=job.run)
    process = intake._journal(second.key).process
    assert process is not None
    second.key = job.key.rsplit(".", 1)[0] + ".deadbeef"
    second.put(process)
    for one in (job, second):
        one.shows["vitals"] = Vitals(1.0, 100)
    looks.at(10, job, second)
    assert (live(tmp_path, job).memory, live(tmp_path, job).processes) == (100, 1)


def past_runs(directory: Path, intake: Intake, *seconds: float) -> None:
    for number, took in enumerate(seconds):
        job = Job(intake, directory, start=START - (1000 + number) * 1000 * SECOND)
        job.open()
        job.exits(took)
        job.dies()


def test_progress_by_past_runs(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Share of the usual duration, never 1; the end is judged by those that took longer."""
    past_runs(tmp_path, intake, 90, 100, 110)
    job = Job(intake, tmp_path)
    job.open()
    looks.at(50, job)
    assert (live(tmp_path, job).progress, live(tmp_path, job).estimated_end) == (
        0.5, START + 100 * SECOND,
    )  # fmt: skip
    looks.at(105, job)
    assert live(tmp_path, job).progress == measures.MOST_PROGRESS
    assert gauge(tmp_path, semconv.PROGRESS.name) == measures.MOST_PROGRESS
    assert gauge(tmp_path, semconv.ESTIMATED_END.name) == START / SECOND + 110
    looks.at(111, job)
    assert live(tmp_path, job).estimated_end is None
    assert gauge(tmp_path, semconv.ESTIMATED_END.name) is None


@pytest.mark.parametrize(("status", "progress"), [(0, 1.0), (KILLED, None)])
def test_forecasts_end_with_the_run(
    tmp_path: Path, intake: Intake, looks: Looks, status: int, progress: float | None
) -> None:
    """After a success all is behind it; else nothing is said of how far, and when, any more."""
    past_runs(tmp_path, intake, 90, 100, 110)
    assert gauge(tmp_path, semconv.PROGRESS.name) is None
    job = Job(intake, tmp_path)
    job.open()
    looks.at(50, job)
    assert gauge(tmp_path, semconv.PROGRESS.name) == 0.5
    assert gauge(tmp_path, semconv.ESTIMATED_END.name) is not None
    job.dies(status, at=60.0)
    assert gauge(tmp_path, semconv.PROGRESS.name) == progress
    assert gauge(tmp_path, semconv.ESTIMATED_END.name) is None
    job = Job(intake, tmp_path, start=START + 200 * SECOND)
    job.open()
    assert gauge(tmp_path, semconv.PROGRESS.name) is None


def test_forecasts_of_a_newer_run_go_on(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """The end of an older run of the pipeline does not take them away."""
    past_runs(tmp_path, intake, 90, 100, 110)
    old, new = Job(intake, tmp_path, start=START - 10 * SECOND), Job(intake, tmp_path)
    old.open()
    new.open()
    looks.at(50, old, new)
    old.dies(KILLED, at=60.0)
    assert gauge(tmp_path, semconv.PROGRESS.name) == 0.5


def test_progress_by_expected_records(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Ended calls, open ones and folded ones count; a stage counts for no more than it should."""
    past_runs(tmp_path, intake, 90, 100, 110)
    declared = Pipeline(
        name="flights",
        stages={
            "extract": DeclaredStage(expected_records=100),
            "load": DeclaredStage(expected_records=300),
            "other": DeclaredStage(),
        },
    )
    job = Job(intake, tmp_path)
    job.open(declared=declared)
    looks.at(5, job)
    assert live(tmp_path, job).progress == 0.0
    assert live(tmp_path, job).estimated_end == START + 100 * SECOND
    job.stage_ended(job.stage("extract"), 1.0, records_in=999)
    job.stage_ended(job.stage("load"), 1.0, records_in=999, records_out=20)
    page = job.page()
    cell, folded = page.cell("stage"), page.cell("folded_stage")
    assert cell is not None and folded is not None
    load = job.stage("load", 2.0, cell=cell.offset)
    cell.store(int.from_bytes(load.span_id, "big"), 0, 30, 0, 0, 0, 0, 2)
    job.put(TallyDefined(folded.offset, "folded_stage", job.run, "load", "load"))
    counts = dict.fromkeys(LAYOUTS["folded_stage"], 0) | {"records_out": 50, "counted": 2}
    folded.store(*counts.values())
    looks.at(10, job)
    found = live(tmp_path, job)
    assert found.progress == (100 + 20 + 30 + 50) / 400
    assert found.estimated_end == START + 20 * SECOND
    assert found.stages[0].expected_records == 300


def test_a_set_clock_changes_no_duration(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Progress, rates and the deadline of a longest duration follow the uptime."""
    past_runs(tmp_path, intake, 90, 100, 110)
    declared = Pipeline(name="flights", sla=Sla(max_duration=60.0))
    job = Job(intake, tmp_path)
    job.open(declared=declared, uptime=UPTIME)
    looks.at(10, job)
    looks.step = -3600.0
    looks.at(50, job)
    assert live(tmp_path, job).progress == 0.5
    assert live(tmp_path, job).at == START - 3550 * SECOND
    assert gauge(tmp_path, semconv.LATENESS.name) == 0.0
    looks.at(70, job)
    assert gauge(tmp_path, semconv.LATENESS.name) == 10.0
    job.exits(70 - 3600.0, uptime=UPTIME + 71 * SECOND)
    job.dies(FAILED, at=71 - 3600.0, uptime=UPTIME + 72 * SECOND)
    run = run_of(tmp_path, job)
    assert (run.start, run.end) == (START, START + 71 * SECOND)


def test_a_death_after_the_clock_was_set(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Stages and run end as long after their start as the uptime says, if it is of this boot."""
    ends = []
    for known in ({"uptime": UPTIME + 30 * SECOND}, {"lost_host": True, "uptime": UPTIME}, {}):
        job = Job(intake, tmp_path, uptime=UPTIME)
        job.open(uptime=UPTIME)
        job.stage("load", 10.0)
        job.dies(None if "lost_host" in known else KILLED, at=5000.0, **known)
        with open_history(tmp_path, readonly=True) as history:
            ends.append({(span.end - START) // SECOND for span in history.spans(job.run)})
    assert ends == [{30}, {5000}, {5000}]


def test_a_death_nobody_saw(tmp_path: Path, intake: Intake) -> None:
    """A journal's time on disk lags behind it: the run does not end before its newest record."""
    job = Job(intake, tmp_path)
    job.open()
    job.stage_ended(job.stage("load", 10.0), 20.0)
    job.dies(None, at=5.0)
    assert run_of(tmp_path, job).end == START + 30 * SECOND
    other = Job(intake, tmp_path)
    other.open()
    slot = other.page().thread_slot(7)
    assert slot is not None
    slot.show_stages([], START + 40 * SECOND)
    other.dies(None, at=5.0)
    assert run_of(tmp_path, other).end == START + 40 * SECOND


def successor(directory: Path, job: Job, status: int | None, at: float | None = None) -> Intake:
    """Recorder and job are dead; another recorder comes and closes it."""
    again = Intake(directory, environment(), sends=False)
    again.resume(job.key)
    job.intake = again
    job.dies(status, at=at)
    return again


def test_both_dead(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """The run ends at the last sign of life that its recorder wrote down, with what it saw."""
    job = Job(intake, tmp_path)
    job.open(deadline=START + 60 * SECOND)
    job.stage("load", 10.0)
    worker = Job(intake, tmp_path, opens=False, run=job.run)
    worker.stage("work", 30.0)
    job.shows["vitals"] = Vitals(3.0, 100, 150)
    worker.shows["vitals"] = Vitals(1.0, 50, 60)
    looks.at(64.7, job, worker)
    for one in (worker, job):
        successor(tmp_path, one, None, at=20.0).stop(0.0)
    run = run_of(tmp_path, job)
    assert run.end == START + round(64.7 * SECOND)
    assert (run.error_type, run.cpu_seconds, run.memory_peak) == ("unknown", 4.0, 150)
    with open_history(tmp_path, readonly=True) as history:
        assert history.link.execute("select late from run").fetchone()[0] == 1
        spans = {span.name: span for span in history.spans(job.run)}
        stages = {stage.name: stage for stage in history.stages(job.run)}
        (notice,) = history.notices(job.run)
    assert {spans[name].end for name in ("flights", "load", "work")} == {run.end}
    lateness = spans["flights"].attributes["pipeline.run.lateness"]
    assert lateness >= notice.attributes["pipeline.run.lateness"] == 4.7
    assert (stages["load"].memory_peak, stages["load"].cpu_seconds) == (
        150,
        pytest.approx(2.54, abs=0.01),
    )
    assert stages["work"].memory_peak == 60


def test_a_stage_that_waits_for_figures_is_over(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """It is neither shown open nor late; its records are still seen to grow."""
    job = Job(intake, tmp_path)
    stages = {"load": DeclaredStage(max_duration=20.0)}
    job.open(declared=Pipeline(name="flights", stages=stages))
    cell = job.page().cell("stage")
    assert cell is not None
    load = job.stage("load", 1.0, cell=cell.offset)
    cell.store(int.from_bytes(load.span_id, "big"), 50, 0, 0, 0, 0, 0, 1)
    looks.at(10, job)
    assert [stage.name for stage in live(tmp_path, job).stages] == ["load"]
    job.stage_left(job.stage_end(load, 10.0)[1])
    cell.store(int.from_bytes(load.span_id, "big"), 70, 0, 0, 0, 0, 0, 1)
    looks.at(60, job)
    assert live(tmp_path, job).stages == ()
    assert run_of(tmp_path, job).records_in == 70
    job.dies(9, at=61.0)
    with open_history(tmp_path, readonly=True) as history:
        assert history.notices(job.run) == []
        (stage,) = history.stages(job.run)
    assert (stage.seconds, stage.records_in) == (10.0, 70)
    assert run_of(tmp_path, job).last_stage is None


def test_child_spans_of_the_dead(tmp_path: Path, intake: Intake) -> None:
    """A span of any of its processes ends within the run."""
    job = Job(intake, tmp_path)
    job.open()
    worker = Job(intake, tmp_path, opens=False, run=job.run)
    worker.put(worker.span_ended("mine", 40.0))
    worker.dies(OK)
    successor(tmp_path, job, None, at=20.0).stop(0.0)
    assert run_of(tmp_path, job).end == START + 40 * SECOND


def test_time_nobody_watched_before_a_death(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """From the dead recorder's last word to the end: a notice, and counted."""
    job, brief = Job(intake, tmp_path), Job(intake, tmp_path)
    for one, end in ((job, 100.0), (brief, 15.0)):
        one.open()
        looks.at(10, one)
        one.put(one.span_ended("mine", end))
        successor(tmp_path, one, None).stop(0.0)
    with open_history(tmp_path, readonly=True) as history:
        (notice,) = history.notices(job.run)
        assert history.notices(brief.run) == []
        assert sum(history.counters("stagewatch.unwatched").values()) == 90.0
    assert (notice.name, notice.at) == (semconv.TELEMETRY_GAP, START + 100 * SECOND)
    assert notice.attributes == {semconv.RUN_UNWATCHED: 90.0}


def test_memory_that_grows_is_written_down(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """At once, for what runs out of it may take the recorder with it."""
    job = Job(intake, tmp_path)
    job.open()
    found = []
    for second, memory in ((1, 100), (2, 110), (3, 200)):
        job.shows["vitals"] = Vitals(1.0, memory, memory)
        looks.at(second, job)
        found.append(live(tmp_path, job).memory_peak)
    assert found == [100, 100, 200]


def test_a_run_has_used_what_its_stages_have(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Whatever was seen of it from outside, and of an orderly end, too."""
    for status in (KILLED, OK):
        job = Job(intake, tmp_path)
        job.open()
        job.shows["vitals"] = Vitals(0.5, 62, 62)
        looks.at(1, job)
        job.stage_ended(job.stage("load"), 5.0, cpu_seconds=2.0, memory_peak=85 << 20)
        if status == OK:
            job.exits(6.0)
        job.dies(status, at=6.0)
        run = run_of(tmp_path, job)
        assert (run.cpu_seconds, run.memory_peak) == (2.0, 85 << 20)


def test_cpu_before_the_run_is_not_its(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """The kernel counts from the process's start on, the run from its own."""
    job = Job(intake, tmp_path, cpu_seconds=0.5)
    job.open()
    job.stage("load")
    job.shows["vitals"] = Vitals(1.5)
    looks.at(1, job)
    assert live(tmp_path, job).cpu_seconds == 1.0
    assert live(tmp_path, job).stages[0].cpu_seconds == 1.0
    job.dies(KILLED, at=2.0, vitals=Vitals(2.5))
    assert run_of(tmp_path, job).cpu_seconds == 2.0


def test_the_newest_of_concurrent_runs_is_shown(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """Of one pipeline under one service; another service has series of its own."""
    old = Job(intake, tmp_path, start=START - 100 * SECOND)
    new = Job(intake, tmp_path)
    other = Job(intake, tmp_path, start=START - 50 * SECOND, resource={"service.name": "else"})
    for job, late in ((new, 10), (old, 500), (other, 200)):
        job.open(deadline=START + 1000 * SECOND - late * SECOND)
    looks.at(1000, new, old, other)
    with open_history(tmp_path, readonly=True) as history:
        rows = history.link.execute(
            "select value from total join instrument on instrument.id = instrument where name = ?",
            [semconv.LATENESS.name],
        )
        assert sorted(value for (value,) in rows) == [10.0, 200.0]
    new.dies()
    looks.at(1010, old, other)
    assert live(tmp_path, old).at == START + 1010 * SECOND


def test_what_a_run_does(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Stuck are only runs whose processes are all still, and none of which waits for anything."""
    job = Job(intake, tmp_path)
    job.open()
    worker = Job(intake, tmp_path, opens=False, run=job.run)
    found = []
    for second, (mine, its) in enumerate(
        [
            ({"is_still": True}, {}),
            ({"is_still": True}, {"is_still": True, "waits_for": "socket"}),
            ({"is_still": True}, {"is_still": True}),
        ]
    ):
        job.shows, worker.shows = mine, its
        looks.at(second * 10, job, worker)
        seen = live(tmp_path, job)
        found.append((seen.doing, seen.waits_for))
    assert found == [(Doing.RUNNING, None), (Doing.WAITING, "socket"), (Doing.STUCK, None)]


def test_when_a_run_last_moved(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """By a record, by CPU or by I/O; a process that ticks over has not."""
    job = Job(intake, tmp_path)
    job.open()
    seen = []
    for second, vitals in (
        (10, Vitals(1.0, read_bytes=1)),
        (20, Vitals(1.005, read_bytes=1)),
        (30, Vitals(1.105, read_bytes=1)),
        (40, Vitals(1.105, read_bytes=2)),
        (50, Vitals(1.105, read_bytes=2)),
    ):
        job.shows["vitals"] = vitals
        looks.at(second, job)
        seen.append((live(tmp_path, job).since - START) // SECOND)
    job.put(job.span_ended("x", 55.0))
    looks.at(60, job)
    seen.append((live(tmp_path, job).since - START) // SECOND)
    assert seen == [0, 0, 30, 40, 40, 60]


def test_a_run_that_is_over_is_not_live(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Nor is one whose journal is lost; one that nobody has looked at is not, yet."""
    job, lost = Job(intake, tmp_path), Job(intake, tmp_path)
    job.open()
    lost.open()
    with open_history(tmp_path, readonly=True) as history:
        assert history.live(job.run) is None
        assert len(history.active()) == 2
    looks.at(10, job, lost)
    job.dies()
    intake.close_lost(tmp_path)
    with open_history(tmp_path, readonly=True) as history:
        assert (history.live(job.run), history.live(lost.run)) == (None, None)
        assert history.active() == []
    looks.at(20)
    with open_history(tmp_path, readonly=True) as history:
        assert history.live(job.run) is None


def test_who_asks_sees_what_the_last_look_saw(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """Looks are frequent, and written down only now and then; but before somebody reads."""
    job = Job(intake, tmp_path)
    job.open()
    looks.at(1, job)
    looks.at(2, job)
    assert live(tmp_path, job).at == START + 1 * SECOND
    intake.note(START + 2 * SECOND)
    assert live(tmp_path, job).at == START + 2 * SECOND


def test_another_recorder_goes_on(tmp_path: Path, intake: Intake, looks: Looks) -> None:
    """What it needs is in the history: names of operations, open stages, the run's start."""
    job = Job(intake, tmp_path)
    job.open()
    job.put(NameDefined(3, "pandas.merge"))
    slot = job.page().thread_slot(7)
    assert slot is not None
    slot.operation[0] = 1024 + 3
    second = Intake(tmp_path, environment("http://127.0.0.1:1"), sends=False)
    second.resume(job.key)
    looks.intake = second
    looks.at(10, job)
    second.stop(0.0)
    assert live(tmp_path, job).operation == "pandas.merge"


def test_what_cannot_be_written_is_written_later(
    tmp_path: Path, intake: Intake, looks: Looks
) -> None:
    """A locked history loses a look, no more."""
    job = Job(intake, tmp_path)
    job.open()
    other = connect(tmp_path)
    other.execute("begin immediate")
    intake._link.execute("pragma busy_timeout=10")
    with pytest.raises(Exception, match="locked"):
        looks.at(10, job)
    other.execute("rollback")
    other.close()
    looks.at(20, job)
    assert live(tmp_path, job).at == START + 20 * SECOND
