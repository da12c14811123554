"""From records to series."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import msgpack

from stagewatch import semconv
from stagewatch.exporters.page import LAYOUTS
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.intake import increments
from stagewatch.exporters.recorder.intake.increments import Increment
from stagewatch.exporters.recorder.intake.totals import LABEL_LIMITS
from stagewatch.measures import DURATION_BUCKETS
from stagewatch.model import Outcome
from stagewatch.records import (
    DatasetTouched,
    ForeignMetric,
    ForeignPoint,
    MetricsCollected,
    OperationEnded,
    StageEnded,
    StageFailed,
    StageMeasured,
    TallyDefined,
    TallySpilled,
)
from tests import scenes
from tests.scenes import FAILED, SECOND, START, Job, environment


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    """One with an endpoint that is never used."""
    yield from scenes.intake(tmp_path, environment("http://127.0.0.1:1"))


def series(intake: Intake) -> dict[tuple[str, ...], Any]:
    """Values by metric and labels, without pipeline and source; counts of histograms."""
    rows = intake._link.execute(
        "select i.name, t.attributes, t.value, t.buckets from total t "
        "join instrument i on i.id = t.instrument"
    )
    found: dict[tuple[str, ...], Any] = {}
    for name, attributes, value, buckets in rows:
        labels = [v for k, v in msgpack.decode(attributes) if k not in ("pipeline.name", "source")]
        counts = None if buckets is None else sum(memoryview(buckets).cast("Q"))
        found[name, *labels] = value if counts is None else counts
    return found


def stage_ended(**changes: Any) -> StageEnded:
    """A stage of two seconds."""
    fields: dict[str, Any] = {
        "run_id": "r", "span_id": b"s" * 8, "name": "load", "start": START,
        "end": START + 2 * SECOND, "outcome": "success", "error_type": None, "records_in": None,
        "records_out": None, "records_rejected": 0, "retries": 0, "cpu_seconds": 0.0,
        "memory_peak": 0, "active_seconds": 2.0,
    }  # fmt: skip
    return StageEnded(**{**fields, **changes})


def shown(found: list[Increment]) -> dict[tuple[str, ...], float]:
    """Values by metric and labels."""
    return {(one.metric.name, *(v for _, v in one.attributes)): one.value for one in found}


def test_a_stage_counts_what_it_knows() -> None:
    """Sides that nobody counted, and zeros, make no series."""
    assert shown(increments.increments(stage_ended())) == {
        ("pipeline.stage.duration", "load", "success"): 2.0
    }
    found = stage_ended(
        outcome="failure", error_type="KeyError", records_in=5, records_out=3, records_rejected=2,
        retries=1, cpu_seconds=0.5,
    )  # fmt: skip
    assert shown(increments.increments(found)) == {
        ("pipeline.stage.duration", "load", "failure"): 2.0,
        ("pipeline.records", "load", "in"): 5,
        ("pipeline.records", "load", "out"): 3,
        ("pipeline.records", "load", "rejected"): 2,
        ("pipeline.errors", "load", "KeyError"): 1,
        ("pipeline.retries", "load"): 1,
        ("pipeline.stage.cpu.time", "load"): 0.5,
    }


def test_durations_fall_into_their_bucket() -> None:
    """Exactly one count, in the bucket whose upper bound is not less."""
    (one,) = increments.increments(stage_ended(end=START + round(2.5 * SECOND)))
    assert one.buckets is not None
    assert one.buckets.index(1) == DURATION_BUCKETS.index(2.5)
    assert (sum(one.buckets), len(one.buckets)) == (1, len(DURATION_BUCKETS) + 1)


@pytest.mark.parametrize(
    ("outcome", "cause", "more"),
    [
        (Outcome.SUCCESS, None, {("pipeline.run.last_success.timestamp",)}),
        (Outcome.SKIP, None, {("pipeline.run.last_success.timestamp",)}),
        (Outcome.ERROR, "killed", set()),
        (Outcome.CANCELLATION, "terminated", set()),
    ],
)
def test_the_end_of_a_run(outcome: Outcome, cause: str | None, more: set[Any]) -> None:
    """Counted by outcome and cause; only a success or a skip is one."""
    found = shown(increments.of_run_end(START, START + SECOND, outcome, cause, START))
    labels = (str(outcome), *([cause] if cause else []))
    assert found[("pipeline.runs", *labels)] == 1
    assert found[("pipeline.run.duration", str(outcome))] == 1.0
    assert found[("pipeline.run.lateness",)] == 1.0
    assert (found.keys() & {("pipeline.run.last_success.timestamp",)}) == more


def test_a_folded_stage_keeps_its_buckets(tmp_path: Path, intake: Intake) -> None:
    """Cells of the page become stage sums, operations and series; errors are counted by type."""
    job = Job(intake, tmp_path)
    job.open()
    page = job.page()
    folded, fill, spare = page.cell("folded_stage"), page.cell("operation"), page.cell("operation")
    assert folded and fill and spare
    values = dict.fromkeys(LAYOUTS["folded_stage"], 0) | {
        "calls": 3, "failed": 1, "nanoseconds": 6 * SECOND, "active_nanoseconds": 3 * SECOND,
        "cpu_nanoseconds": SECOND, "memory_peak": 7, "records_out": 30, "counted": 2,
        "bucket_3": 1, "bucket_9": 2,
    }  # fmt: skip
    folded.store(*values.values())
    fill.store(1000, SECOND, 10, 20)
    page.run.store(4, 0, 0, 2, 0, 0, 1)
    job.put(
        TallyDefined(folded.offset, "folded_stage", job.run, "load", "load"),
        TallyDefined(fill.offset, "operation", job.run, "load", "pandas.fillna"),
        TallyDefined(spare.offset, "operation", job.run, "load", "pandas.never"),
        StageFailed(job.run, "load", "failure", "KeyError"),
        StageFailed(job.run, "load", "cancellation", "KeyboardInterrupt"),
        TallySpilled(job.run, "load", "pandas.fillna", "operation", SECOND, 1, 2),
        OperationEnded(job.run, "load", "pandas.fillna", SECOND, 1, 2, "ValueError"),
    )
    job.exits(10)
    job.dies()
    found = series(intake)
    assert found["pipeline.stage.duration", "success", "load"] == 3
    assert found["pipeline.errors", "KeyError", "load"] == 1
    assert ("pipeline.errors", "KeyboardInterrupt", "load") not in found
    assert found["pipeline.operations", "pandas.fillna", "load"] == 1002
    assert found["pipeline.operation.time", "pandas.fillna", "load"] == 3.0
    assert found["pipeline.records", "out", "load"] == 30
    assert found["pipeline.records", "in"] == 4
    assert found["pipeline.retries",] == 2
    assert found["pipeline.stage.throughput", "load"] == 10.0
    assert found["pipeline.stage.memory.peak", "load"] == 7
    assert ("pipeline.operations", "pandas.never", "load") not in found
    operations = intake._link.execute(
        "select name, calls, folded, failed from operation"
    ).fetchall()
    assert operations == [("pandas.fillna", 1002, 1001, 1)]
    stage = "select calls, failed, seconds, active_seconds, records_in, records_out from stage "
    rows = intake._link.execute(stage + "where name = 'load'").fetchall()
    assert rows == [(3, 1, 6.0, 3.0, None, 30)]
    assert intake._link.execute("select records_in, records_out from run").fetchone() == (4, 30)


def measured(job: Job, stage: str, **values: float) -> StageMeasured:
    """Of Spark, by the ends of their names."""
    return StageMeasured(job.run, stage, {f"pipeline.spark.{k}": v for k, v in values.items()})


def test_what_an_engine_measures(tmp_path: Path, intake: Intake) -> None:
    """Counters grow, gauges show the last value; what has no name, or no value, is passed over."""
    job = Job(intake, tmp_path)
    job.open()
    skew, failures = "task.skew", "task.failures"
    job.put(
        measured(job, "load", tasks=8, spill=10.5, **{skew: 9.0, failures: 0, "slots.idle": 0.5}),
        measured(job, "load", tasks=2, **{skew: 1.5, "gc.ratio": float("nan"), "slots.idle": 0.0}),
        measured(job, "", tasks=3, unheard_of=1.0),
        StageMeasured(job.run, "load", {"pipeline.records": 5.0}),
    )
    found = {key: value for key, value in series(intake).items() if "spark" in key[0]}
    assert found == {
        ("pipeline.spark.tasks", "load"): 10.0,
        ("pipeline.spark.tasks",): 3.0,
        ("pipeline.spark.spill", "load"): 10.5,
        ("pipeline.spark.task.skew", "load"): 1.5,
        ("pipeline.spark.slots.idle", "load"): 0.0,
    }
    assert not any(key[0] == "pipeline.records" for key in series(intake))


def test_what_an_engine_measures_as_deltas(tmp_path: Path) -> None:
    """Each growth of a counter is a point of its run; a gauge is a total all the same."""
    name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
    for intake in scenes.intake(tmp_path, environment("http://127.0.0.1:1", **{name: "delta"})):
        job = Job(intake, tmp_path)
        job.open()
        for tasks in (8, 2):
            job.put(measured(job, "load", tasks=tasks, **{"task.skew": float(tasks)}))
        points = intake._link.execute(
            "select i.name, d.value from delta d join instrument i on i.id = d.instrument "
            "where i.name like 'pipeline.spark.%' order by d.rowid"
        ).fetchall()
        assert points == [("pipeline.spark.tasks", 8.0), ("pipeline.spark.tasks", 2.0)]
        assert series(intake)["pipeline.spark.task.skew", "load"] == 2.0


def test_active_runs_go_up_and_down(tmp_path: Path, intake: Intake) -> None:
    """A gauge that ends where it began; a run that goes on by exec counts once."""
    first, second = Job(intake, tmp_path), Job(intake, tmp_path)
    first.open()
    second.open()
    first.open()
    assert series(intake)["pipeline.run.active",] == 2
    first.dies()
    second.dies()
    assert series(intake)["pipeline.run.active",] == 0
    assert series(intake)["pipeline.runs", "success"] == 2


def test_newest_times_never_go_back(tmp_path: Path, intake: Intake) -> None:
    """What is taken in late must not make a gauge older."""
    for offset in (10, 0):
        job = Job(intake, tmp_path, start=START + offset * SECOND)
        job.open()
        job.exits(1)
        job.dies()
    assert series(intake)["pipeline.run.last_success.timestamp",] == START / SECOND + 11


def test_declared_datasets_show_their_newest_event(tmp_path: Path, intake: Intake) -> None:
    """Only declared ones become a label."""
    job = Job(intake, tmp_path)
    for declared in (None, "flights"):
        job.put(DatasetTouched(job.run, "", "out", "file:///x", 1, 1, None, START, declared, START))
    found = series(intake)
    name = semconv.NEWEST_EVENT.name
    assert {key: value for key, value in found.items() if key[0] == name} == {
        (name, "flights"): START / SECOND
    }


def test_labels_are_bounded(tmp_path: Path, intake: Intake) -> None:
    """Code that makes up stage names or exception classes for ever fills one series."""
    job = Job(intake, tmp_path)
    limit = LABEL_LIMITS["error.type"]
    for number in range(limit + 10):
        job.put(StageFailed(job.run, "load", "failure", f"Error{number}"))
    found = {key[1]: value for key, value in series(intake).items() if key[0] == "pipeline.errors"}
    assert len(found) == limit + 1
    assert found["_OTHER"] == 10
    again = Intake(tmp_path, environment("http://127.0.0.1:1"), sends=False)
    job.intake = again
    job.put(StageFailed(job.run, "load", "failure", "Error99"))
    again.stop(0.0)
    found = {key[1]: value for key, value in series(intake).items() if key[0] == "pipeline.errors"}
    assert found["_OTHER"] == 11


def test_points_carry_listed_attributes_only(tmp_path: Path, intake: Intake) -> None:
    """Nothing becomes a label that is not on the closed list."""
    job = Job(intake, tmp_path)
    job.open(owner="ops", version="1")
    job.stage_ended(job.stage("load"), 1.0, outcome="failure", error_type="KeyError")
    job.dies(FAILED)
    rows = intake._link.execute(
        "select i.name, t.attributes from total t join instrument i on i.id = t.instrument"
    )
    for name, blob in rows:
        labels = {key for key, _ in msgpack.decode(blob)}
        allowed = semconv.POINT_ATTRIBUTES
        if name == semconv.INFO.name:
            allowed = allowed | {semconv.OWNER, semconv.VERSION}
        assert labels <= allowed, name
        (metric,) = (one for one in semconv.METRICS if one.name == name)
        assert labels <= {*metric.attributes, semconv.PIPELINE_NAME, semconv.SOURCE}


def foreign(*metrics: ForeignMetric) -> MetricsCollected:
    """A batch of one second."""
    return MetricsCollected(START, START + SECOND, list(metrics))


def test_other_libraries_metrics_add_up(tmp_path: Path, intake: Intake) -> None:
    """Deltas of sums and histograms are added, a gauge shows the last value."""
    job = Job(intake, tmp_path)
    for value in (1, 2):
        job.put(
            foreign(
                ForeignMetric("lib", "1", "n", "1", "", "sum", [ForeignPoint({"k": "v"}, value)]),
                ForeignMetric("lib", "1", "g", "1", "", "gauge", [ForeignPoint({}, value)]),
                ForeignMetric(
                    "lib", "1", "h", "s", "", "histogram",
                    [ForeignPoint({}, 0.5, 2, [1, 1], [0.1], 0.1, 0.4)],
                ),
            )
        )  # fmt: skip
    found = series(intake)
    assert (found["n", "v"], found["g",], found["h",]) == (3, 2, 4)
    assert found["stagewatch.telemetry.recorded", "metrics"] == 6


def test_series_of_past_processes_are_forgotten(tmp_path: Path, intake: Intake) -> None:
    """What was sent and grows no more goes after an hour; ours stay for ever."""
    job = Job(intake, tmp_path)
    job.open()
    job.put(foreign(ForeignMetric("lib", "1", "n", "1", "", "sum", [ForeignPoint({}, 1)])))
    intake.prune(START + 7200 * SECOND)
    assert ("n",) in series(intake)
    intake._link.execute("update total set sent_version = version")
    intake.prune(START + 4 * 3600 * SECOND)
    assert ("n",) not in series(intake)
    assert ("pipeline.run.active",) in series(intake)
