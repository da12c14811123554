"""Taking in: exactly once, whatever happens to who does it, and the ends of processes."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec import structs

from stagewatch.database import connect
from stagewatch.exporters.page import Words
from stagewatch.exporters.recorder.ingest import CLOSED, Intake, open_intake
from stagewatch.exporters.recorder.watching.follow import Part
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.history import SpanRow, open_history
from stagewatch.model import Outcome, Pipeline, Role, Schedule, Sla
from stagewatch.records import (
    MetricsCollected,
    OperationEnded,
    RunExiting,
    ScopeDefined,
    SpanLeft,
    decode,
)
from tests import scenes
from tests.jobs import wait_for
from tests.scenes import FAILED, OK, SECOND, START, Job, environment

KILLED = signal.SIGKILL.value


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    """One with an endpoint that is never used."""
    yield from scenes.intake(tmp_path, environment("http://127.0.0.1:1"))


def spans(directory: Path, job: Job) -> dict[str, SpanRow]:
    """Spans of the job's run by name."""
    with open_history(directory, readonly=True) as history:
        return {span.name: span for span in history.spans(job.run)}


def test_a_run_becomes_a_span_with_the_ids_it_was_begun_with(
    tmp_path: Path, intake: Intake
) -> None:
    """Identity, attributes of both ends, figures, the standard's names beside ours."""
    job = Job(intake, tmp_path)
    job.open(
        parent_span_id=b"p" * 8, attributes={"a": 1}, scheduled=START,
        deadline=START + 8 * SECOND, trace_state="x=y", links=[(b"l" * 16, b"m" * 8, {})],
    )  # fmt: skip
    job.exits(
        10.0, attributes={"b": 2}, error_type="KeyError", error_message="KeyError: '…'",
        error_place="etl.py:3 in load",
    )  # fmt: skip
    job.dies(FAILED, at=10.5)
    (span,) = spans(tmp_path, job).values()
    assert (span.role, span.span_id, span.parent_span_id) == (Role.RUN, job.span, b"p" * 8)
    assert (span.start, span.end) == (START, START + 10 * SECOND)
    assert (span.failed, span.status_description) == (True, "KeyError: '…'")
    assert span.attributes == {
        "a": 1,
        "b": 2,
        "pipeline.name": "flights",
        "pipeline.run.id": job.run,
        "pipeline.run.scheduled_time": "2026-11-21T12:00:00Z",
        "pipeline.run.attempt": 1,
        "pipeline.outcome": "failure",
        "pipeline.run.deadline": "2026-11-21T12:00:08Z",
        "pipeline.run.lateness": 2.0,
        "pipeline.run.cpu.time": 1.5,
        "pipeline.run.memory.peak": 1 << 20,
        "stagewatch.run.wait_status": FAILED,
        "stagewatch.error.place": "etl.py:3 in load",
        "error.type": "KeyError",
        "cicd.pipeline.name": "flights",
        "cicd.pipeline.run.id": job.run,
        "cicd.pipeline.result": "failure",
    }


def test_open_stages_of_the_dead_are_closed_from_the_page(tmp_path: Path, intake: Intake) -> None:
    """Same ids, the records counted by then, the verdict on the process; rows count once."""
    job = Job(intake, tmp_path)
    job.open()
    cell = job.page().cell("stage")
    assert cell is not None
    load = job.stage("load", 1.0, cell=cell.offset)
    cell.store(int.from_bytes(load.span_id, "big"), 50, 40, 10, 1, 700, 80, 3)
    other = job.stage("other", 2.0, cell=cell.offset)  # its cell shows another stage by now
    unsampled = job.stage("unsampled", 2.0, sampled=False)
    job.dies(KILLED, at=11.0)
    found = spans(tmp_path, job)
    assert found["load"].span_id == load.span_id
    assert found["load"].end == START + 11 * SECOND
    attributes = found["load"].attributes
    assert attributes == {
        "pipeline.name": "flights",
        "pipeline.run.id": job.run,
        "pipeline.stage.name": "load",
        "pipeline.outcome": "error",
        "error.type": "killed",
        "cicd.pipeline.task.run.result": "error",
        "pipeline.stage.records.in": 50,
        "pipeline.stage.records.out": 40,
        "pipeline.stage.records.rejected": 10,
        "pipeline.stage.throughput": 4.0,
        "pipeline.stage.error.ratio": 0.2,
        "pipeline.stage.retries": 1,
        "pipeline.stage.bytes.in": 700,
        "pipeline.stage.bytes.out": 80,
    }
    assert found["other"].span_id == other.span_id
    assert "pipeline.stage.records.in" not in found["other"].attributes
    assert found["unsampled"].span_id == unsampled.span_id
    assert {name: span.state for name, span in found.items()} == {
        "load": "pending", "other": "pending", "unsampled": "local", "flights": "pending",
    }  # fmt: skip
    with open_history(tmp_path, readonly=True) as history:
        run = history.run(job.run)
        stages = {stage.name: stage for stage in history.stages(job.run)}
        assert (stages["load"].bytes_in, stages["load"].bytes_out) == (700, 80)
        assert (stages["other"].bytes_in, stages["other"].bytes_out) == (0, 0)
        assert (run.records_in, run.records_out, run.records_rejected) == (50, 40, 10)
        assert (run.outcome, run.error_type) == (Outcome.ERROR, "killed")
        assert history.counters("pipeline.errors") == {
            (
                ("error.type", "killed"),
                ("pipeline.name", "flights"),
                ("pipeline.stage.name", name),
                ("source", "recorder"),
            ): 1
            for name in ("load", "other", "unsampled")
        }


@pytest.mark.parametrize("first", ["span", "end"])
def test_a_death_between_a_stages_span_and_its_end(
    tmp_path: Path, intake: Intake, first: str
) -> None:
    """Whichever of the two was written last is made up for, once."""
    job = Job(intake, tmp_path)
    job.open()
    load = job.stage("load")
    span, ended = job.stage_end(load, 3.0, records_out=7)
    job.put(span if first == "span" else ended)
    job.dies(KILLED, at=5.0)
    found = spans(tmp_path, job)["load"]
    assert found.end == START + 3 * SECOND
    with open_history(tmp_path, readonly=True) as history:
        (stage,) = history.stages(job.run)
    expected = (1, 5.0, None) if first == "span" else (1, 3.0, 7)
    assert (stage.calls, stage.seconds, stage.records_out) == expected


def test_what_a_process_left_before_it_died(tmp_path: Path, intake: Intake) -> None:
    """Calls and stages whose figures never came end as and when they ended, not as it did; what
    was counted by then counts, by another recorder too."""
    job = Job(intake, tmp_path)
    job.open()
    cell = job.page().cell("stage")
    assert cell is not None
    load, bare = job.stage("load", 1.0, cell=cell.offset), job.stage("bare", 1.0)
    cell.store(int.from_bytes(load.span_id, "big"), 50, 40, 10, 1, 700, 80, 1)
    job.operation_left("pyspark.collect", 2.0, stage="load")
    job.operation_left("pyspark.count", 3.0, "ValueError")
    for stage in (load, bare):
        _, ended = job.stage_end(
            stage, 4.0, outcome="failure", error_type="KeyError", records_in=3, records_out=4,
            by_frames=3, cpu_seconds=0.5, memory_peak=9, active_seconds=2.0,
        )  # fmt: skip
        job.stage_left(ended)
    job.intake = Intake(tmp_path, environment("http://127.0.0.1:1"), sends=False)
    job.dies(KILLED, at=11.0)
    job.intake.stop(0.0)
    found = spans(tmp_path, job)
    assert {name: (span.end - START) / SECOND for name, span in found.items()} == {
        "pyspark.collect": 2.0, "pyspark.count": 3.0, "load": 5.0, "bare": 5.0, "flights": 11.0,
    }  # fmt: skip
    assert {name: span.attributes.get("error.type") for name, span in found.items()} == {
        "pyspark.collect": None, "pyspark.count": "ValueError", "load": "KeyError",
        "bare": "KeyError", "flights": "killed",
    }  # fmt: skip
    assert [found[name].failed for name in ("pyspark.collect", "pyspark.count")] == [False, True]
    assert found["pyspark.collect"].role is Role.DETAIL
    with open_history(tmp_path, readonly=True) as history:
        stages = {stage.name: stage for stage in history.stages(job.run)}
        operations = {one.name: one for one in history.operations(job.run)}
        run = history.run(job.run)
    sides = {name: (one.records_in, one.records_out) for name, one in stages.items()}
    assert sides == {"load": (50, 4), "bare": (3, 4)}
    assert (stages["load"].records_rejected, stages["load"].bytes_out) == (10, 80)
    assert (stages["load"].cpu_seconds, stages["load"].memory_peak) == (0.5, 9)
    assert (run.records_in, run.records_out) == (50, None)  # frames are not the run's
    assert {name: (one.calls, one.stage, one.errors) for name, one in operations.items()} == {
        "pyspark.collect": (1, "load", {}), "pyspark.count": (1, "", {"ValueError": 1}),
    }  # fmt: skip


@pytest.mark.parametrize("last", ["nothing", "span", "end"])
def test_a_call_whose_figures_came_is_counted_once(
    tmp_path: Path, intake: Intake, last: str
) -> None:
    """Whatever was the last to be written of it: its end, its span, or what is counted of it."""
    job = Job(intake, tmp_path)
    job.open()
    left = job.operation_left("pyspark.collect", 2.0)
    if last != "nothing":
        job.put(job.detail("pyspark.collect", 2.0, span_id=left.span_id))
    if last == "end":
        job.put(structs.replace(left, rows_out=7))
        assert intake._journal(job.key).left == {}
    job.dies(KILLED, at=11.0)
    with open_history(tmp_path, readonly=True) as history:
        (operation,) = history.operations(job.run)
        named = [span.end for span in history.spans(job.run) if span.name == operation.name]
    assert (operation.calls, operation.rows_out) == (1, 7 if last == "end" else 0)
    assert named == [START + 2 * SECOND]


def test_a_call_that_folds_after_all(tmp_path: Path, intake: Intake) -> None:
    """It is counted among the folded ones, and has no span."""
    job = Job(intake, tmp_path)
    job.open()
    left = job.operation_left("pyspark.sql", 2.0)
    job.put(structs.replace(left, folded=True))
    job.dies(KILLED, at=11.0)
    assert list(spans(tmp_path, job)) == ["flights"]
    with open_history(tmp_path, readonly=True) as history:
        (operation,) = history.operations(job.run)
    assert (operation.calls, operation.folded, operation.seconds) == (1, 1, 2.0)


def test_a_stage_whose_figures_came_is_counted_once(tmp_path: Path, intake: Intake) -> None:
    """It is forgotten that it was left."""
    job = Job(intake, tmp_path)
    job.open()
    load = job.stage("load")
    span, ended = job.stage_end(load, 4.0, records_in=3)
    job.stage_left(ended)
    job.put(span, structs.replace(ended, records_in=5))
    assert intake._journal(job.key).left == intake._journal(job.key).stages == {}
    job.dies(KILLED, at=11.0)
    with open_history(tmp_path, readonly=True) as history:
        (stage,) = history.stages(job.run)
    assert (stage.calls, stage.failed, stage.records_in) == (1, 0, 5)


def test_a_call_left_without_a_beginning_is_counted(tmp_path: Path, intake: Intake) -> None:
    """Of one that is not sampled there is no span to close."""
    job = Job(intake, tmp_path)
    job.open()
    ended = OperationEnded(job.run, "", "pyspark.collect", SECOND, 0, 0, None, b"n" * 8)
    job.put(SpanLeft(b"n" * 8, START + SECOND, "success", None, ended))
    job.exits(5.0)
    job.dies()
    assert list(spans(tmp_path, job)) == ["flights"]
    with open_history(tmp_path, readonly=True) as history:
        assert [operation.calls for operation in history.operations(job.run)] == [1]


def test_taking_and_closing_again_is_harmless(tmp_path: Path, intake: Intake) -> None:
    """A position that was reached is not taken twice; a closed journal has nothing to give."""
    job = Job(intake, tmp_path)
    job.open()
    made = OperationEnded(job.run, "", "pandas.merge", SECOND, 1, 1)
    job.put(made)
    intake.take(Part(job.key, [made], 0, job.offset))
    assert intake.resume(job.key) == (0, job.offset)
    intake.take(Part(job.key, [made], 1, 0))
    assert intake.resume(job.key) == (1, 0)
    job.dies()
    job.dies(KILLED)
    assert intake.resume(job.key) == CLOSED
    assert intake.resume("7.7.unknown") is None
    with open_history(tmp_path, readonly=True) as history:
        assert history.operations(job.run)[0].calls == 2
        assert history.run(job.run).outcome == Outcome.SUCCESS
        assert sum(history.counters("pipeline.runs").values()) == 1


def test_an_intake_goes_on_where_another_stopped(tmp_path: Path, intake: Intake) -> None:
    """All that is needed of a journal is in the history: its run, open stages, scopes, tallies."""
    job = Job(intake, tmp_path)
    job.open()
    job.stage("load")
    job.put(ScopeDefined(5, "mine", "1", None))
    second = Intake(tmp_path, environment("http://127.0.0.1:1"), sends=False)
    assert second.resume(job.key) == (0, job.offset)
    job.intake = second
    job.put(job.span_ended("x", scope=5))
    job.dies(KILLED, at=4.0)
    second.stop(0.0)
    found = spans(tmp_path, job)
    assert (found["x"].scope, found["load"].role) == ("mine", Role.STAGE)
    assert found["flights"].attributes["error.type"] == "killed"


def test_what_cannot_be_written_changes_nothing(tmp_path: Path, intake: Intake) -> None:
    """A batch is taken in as a whole or not at all, in memory too."""
    job = Job(intake, tmp_path)
    job.open()
    before = intake.resume(job.key)
    broken = MetricsCollected(0, 1, [None])  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        intake.take(Part(job.key, [OperationEnded(job.run, "", "x", 1, 1, 1), broken], 0, 99))
    assert intake.resume(job.key) == before
    with sqlite3.connect(tmp_path / "history.db") as other:
        other.execute("begin immediate")
        intake._link.execute("pragma busy_timeout=10")
        with pytest.raises(sqlite3.OperationalError):
            intake.take(Part(job.key, [_scope(9)], 0, 98))
        other.rollback()
    other.close()
    job.put(OperationEnded(job.run, "", "x", 1, 1, 1))
    job.dies()
    with open_history(tmp_path, readonly=True) as history:
        assert history.operations(job.run)[0].calls == 1


def test_parts_are_taken_in_together_or_not_at_all(tmp_path: Path, intake: Intake) -> None:
    """Where one of them fails the others have not been taken in either, and are counted once."""
    jobs = [Job(intake, tmp_path), Job(intake, tmp_path)]
    for job in jobs:
        job.open()
    before = [intake.resume(job.key) for job in jobs]
    made = [OperationEnded(job.run, "", "x", 1, 1, 1) for job in jobs]
    broken = MetricsCollected(0, 1, [None])  # type: ignore[list-item]
    with pytest.raises(AttributeError):
        intake.take(Part(jobs[0].key, made[:1], 0, 9), Part(jobs[1].key, [made[1], broken], 0, 9))
    assert [intake.resume(job.key) for job in jobs] == before
    intake.take(Part(jobs[0].key, made[:1], 0, 9), Part(jobs[1].key, made[1:], 0, 9))
    intake.take(Part(jobs[0].key, made[:1], 0, 9), Part(jobs[1].key, made[1:], 0, 9))
    assert [intake.resume(job.key) for job in jobs] == [(0, 9), (0, 9)]
    with open_history(tmp_path, readonly=True) as history:
        assert [history.operations(job.run)[0].calls for job in jobs] == [1, 1]


def _scope(number: int) -> ScopeDefined:
    return ScopeDefined(number, "new", None, None)


def test_a_journal_without_its_first_record_harms_nobody(tmp_path: Path, intake: Intake) -> None:
    """Nobody knows whose its records are: they are counted as dropped."""
    intake.take(Part("1.1.x", [OperationEnded("r", "", "x", 1, 1, 1)], 0, 10))
    intake.close("1.1.x", None, Death(OK))
    assert intake.resume("1.1.x") == CLOSED
    with open_history(tmp_path, readonly=True) as history:
        assert history.runs() == []
        assert list(history.counters("stagewatch.telemetry.dropped").values()) == [1]


def test_a_process_that_joined_adds_but_does_not_judge(tmp_path: Path, intake: Intake) -> None:
    """Its records count, its death closes no run, and after the run's end it still adds."""
    job = Job(intake, tmp_path)
    job.open()
    child = Job(intake, tmp_path, opens=False, run=job.run)
    child.put(_scope(0))
    child.stage_ended(child.stage("load"), 1.0, records_out=5)
    child.dies(KILLED)
    with open_history(tmp_path, readonly=True) as history:
        assert (history.run(job.run).end, history.run(job.run).records_out) == (None, 5)
    late = Job(intake, tmp_path, opens=False, run=job.run)
    job.exits(10)
    job.dies()
    late.stage_ended(late.stage("late"), 20.0, records_out=1)
    late.exits(30.0)
    late.dies(FAILED)
    with open_history(tmp_path, readonly=True) as history:
        run = history.run(job.run)
    assert (run.outcome, run.end, run.records_out) == (Outcome.SUCCESS, START + 10 * SECOND, 6)


def test_frames_handed_on_are_not_the_runs_records(tmp_path: Path, intake: Intake) -> None:
    """Three stages pass the same frame along: each has its rows, the run what was read."""
    job = Job(intake, tmp_path)
    job.open()
    job.stage_ended(job.stage("extract"), 1.0, records_in=10, records_out=10, by_frames=2)
    job.stage_ended(job.stage("clean"), 2.0, records_in=10, records_out=9, by_frames=3)
    job.stage_ended(job.stage("load"), 3.0, records_in=9, records_out=9, by_frames=1)
    job.exits(4)
    job.dies()
    with open_history(tmp_path, readonly=True) as history:
        run = history.run(job.run)
        stages = {stage.name: stage.records_in for stage in history.stages(job.run)}
    assert (run.records_in, run.records_out) == (10, 9)
    assert stages == {"extract": 10, "clean": 10, "load": 9}


def test_a_run_whose_opener_was_never_seen_is_not_shown(tmp_path: Path, intake: Intake) -> None:
    """A child alone is no run, and none that is active for ever."""
    child = Job(intake, tmp_path, opens=False, run="ab" * 16)
    child.put(child.span_ended("x"))
    child.dies()
    with open_history(tmp_path, readonly=True) as history:
        assert history.runs() == []


def test_after_an_exec_the_end_comes_from_the_second_journal(
    tmp_path: Path, intake: Intake
) -> None:
    """One process, two journals, one run, which ends as the second one says."""
    job = Job(intake, tmp_path)
    job.open()
    second = Job(intake, tmp_path, opens=False, run=job.run)
    second.key = job.key.rsplit(".", 1)[0] + ".deadbeef"
    second.offset = 0
    start = Job(intake, tmp_path, opens=False, run=job.run)
    journal = intake._journal(start.key)
    assert journal.process is not None
    second.put(journal.process)
    second.exits(12.0, error_type="KeyError")
    second.dies(FAILED)
    job.dies(FAILED)
    with open_history(tmp_path, readonly=True) as history:
        run = history.run(job.run)
    assert (run.end, run.error_type, run.outcome) == (
        START + 12 * SECOND, "KeyError", Outcome.FAILURE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "exit_at", "died_at", "end"),
    [
        (OK, 9.0, 9.5, 9.0),
        (KILLED, 9.0, 9.5, 9.5),
        (KILLED, None, 9.5, 9.5),
        (None, None, None, 7.0),
    ],
    ids=["by itself", "killed while it ended", "killed", "long dead"],
)
def test_when_a_run_ends(
    tmp_path: Path, intake: Intake, status: int, exit_at: float | None, died_at: float | None,
    end: float,
) -> None:  # fmt: skip
    """Its own time if it ended by itself, else when that was seen, else its last sign of life."""
    job = Job(intake, tmp_path)
    job.open()
    job.put(job.span_ended("x", 7.0))
    if exit_at is not None:
        job.exits(exit_at)
    job.dies(status, at=died_at)
    assert spans(tmp_path, job)["flights"].end == START + round(end * SECOND)


def test_the_recorder_works_out_slot_and_deadline(tmp_path: Path, intake: Intake) -> None:
    """The oldest tick that no success has met; without a schedule, start + maximum duration."""
    hourly = Pipeline(
        name="flights",
        schedule=Schedule(cron="0 * * * *"),
        sla=Sla(deadline=1800.0, max_age=7200.0),
    )
    begins, fails, ends = START - 3540 * SECOND, 1 << 8, 0
    for slot, start, status in (
        (START - 3600 * SECOND, begins, fails),  # older ones were due before anybody looked
        (START - 3600 * SECOND, START + 60 * SECOND, ends),
        (START, START + 60 * SECOND, ends),
    ):
        job = Job(intake, tmp_path, start=start)
        job.open(declared=hourly)
        job.exits(10)
        job.dies(status)
        with open_history(tmp_path, readonly=True) as history:
            run = history.run(job.run)
        assert (run.scheduled, run.deadline) == (slot, slot + 1800 * SECOND)
    job = Job(intake, tmp_path)
    job.open(declared=Pipeline(name="flights", sla=Sla(max_duration=5.0)))
    job.exits(9)
    job.dies()
    with open_history(tmp_path, readonly=True) as history:
        assert history.run(job.run).deadline == START + 5 * SECOND


def test_what_the_page_dropped_is_counted(tmp_path: Path, intake: Intake) -> None:
    """By reason; so is the CPU that went into our own code."""
    job = Job(intake, tmp_path)
    job.open()
    page = job.page()
    page.set(Words.DROPPED_DISK, 3)
    page.set(Words.DROPPED_CAP, 4)
    page.set(Words.OVERHEAD, SECOND // 2)
    job.dies()
    with open_history(tmp_path, readonly=True) as history:
        lost = history.counters("stagewatch.telemetry.dropped")
        assert {dict(key)["reason"]: value for key, value in lost.items()} == {
            "disk": 3, "journal_cap": 4,
        }  # fmt: skip
        assert list(history.counters("stagewatch.overhead").values()) == [0.5]


def test_runs_whose_journal_is_lost_do_not_stay_active(tmp_path: Path) -> None:
    """Somebody deleted the room: the next recorder of the same destination ends them."""
    state, room = tmp_path / "state", tmp_path / "state" / "rooms" / "here"
    room.mkdir(parents=True)
    environ = environment("http://127.0.0.1:1")
    first = Intake(state, environ, sends=False)
    lost, living = Job(first, room), Job(first, room)
    for job in (lost, living):
        job.open()
    (room / f"{living.key}.0.journal").touch()
    other = Intake(state, environment(), sends=False)
    foreign = Job(other, room)
    foreign.open()
    for one in (first, other):
        one.stop(0.0)
    open_intake(state, room, environ).stop(0.0)
    with open_history(state, readonly=True) as history:
        found = {run.run_id: (run.outcome, run.error_type) for run in history.runs()}
    assert found == {
        lost.run: (Outcome.ERROR, "unknown"), living.run: (None, None), foreign.run: (None, None),
    }  # fmt: skip


_TAKER = """
import sys, pathlib
sys.path.insert(0, sys.argv[3])
from stagewatch.exporters.recorder.ingest import Intake
from tests.scenes import Job, SECOND, environment
from stagewatch.records import OperationEnded, StageEnded
directory, limit = pathlib.Path(sys.argv[1]), int(sys.argv[2])
intake = Intake(directory, environment("http://127.0.0.1:1"), sends=False)
job = Job(intake, directory)
done = 1
while done < limit:  # each round: two spans, one operation, one stage call, from the same position
    at = intake.resume(job.key)
    done = at[1]
    if done == 1:
        job.offset = done
        job.open()
        done = job.offset
    job._ids = __import__("itertools").count(done * 10)
    job.offset = done
    job.put(
        job.span_ended("x"), job.detail("y"),
        OperationEnded(job.run, "load", "op", SECOND, 1, 1),
        StageEnded(job.run, b"", "load", job.start, job.start + SECOND, "success", None, 1, 1, 0,
                   0, 0.0, 0, 1.0),
    )
print("done")
"""


def _position(state: Path) -> int:
    """How far the only journal has been taken in; 0 before anything was."""
    try:
        with closing(connect(state, readonly=True)) as link:
            return int(link.execute("select max(offset) from journal").fetchone()[0] or 0)
    except sqlite3.Error:
        return 0


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    """SIGKILLs in the middle of taking in: rows, sums and totals agree with the position."""
    limit = 1500
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", _TAKER, str(tmp_path), str(limit), root]
    for kill in range(5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            wait_for(lambda goal=200 * (kill + 1): _position(tmp_path) > goal, timeout=60)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.stdout == "done\n", done.stderr
    intake = Intake(tmp_path, environment("http://127.0.0.1:1"), sends=False)
    (key, offset), *_ = intake._link.execute("select key, offset from journal").fetchall()
    rounds = offset - 2
    assert rounds >= limit - 2
    with open_history(tmp_path, readonly=True) as history:
        (run,) = history.runs()
        assert len(list(history.spans(run.run_id))) == 2 * rounds
        assert history.operations(run.run_id)[0].calls == rounds
        assert history.stages(run.run_id)[0].calls == rounds
        assert sum(history.counters("pipeline.operations").values()) == rounds
        records = history.counters("pipeline.records")
        assert set(records.values()) == {rounds}
        recorded = history.counters("stagewatch.telemetry.recorded")
        assert sum(recorded.values()) == 2 * rounds
    intake.close(key, None, Death(KILLED, START + SECOND))
    assert intake.resume(key) == CLOSED
    intake.stop(0.0)


def test_an_exiting_record_is_kept_for_the_predecessor(tmp_path: Path, intake: Intake) -> None:
    """Of a closed journal only that stays, nothing else of its state."""
    job = Job(intake, tmp_path)
    last = RunExiting(job.run, START + SECOND, "KeyError", None, None, 1, {})
    job.put(last)
    job.dies()
    row = intake._link.execute("select state, exiting from journal where key = ?", [job.key])
    state, exiting = row.fetchone()
    assert (state, decode(exiting)) == (None, last)
