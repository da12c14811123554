"""Advice on Spark jobs: each rule on its case, and not on what is almost one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from stagewatch.instrumentation.pyspark import rules_of_plans, rules_of_stages
from stagewatch.instrumentation.pyspark.advice import MB, Advice, Finished, Kind
from stagewatch.instrumentation.pyspark.advisor import Advisor, of_action
from stagewatch.instrumentation.pyspark.events import (
    ExecutionEnded,
    Files,
    PlanNode,
    Source,
    StageCompleted,
    Table,
)

DATA = Files("file:/data/flights")


def stage(seconds: float = 60.0, **figures: Any) -> StageCompleted:
    """One of 100 tasks of a second each."""
    fields: dict[str, Any] = {
        "stage": 7, "attempt": 0, "name": "collect at etl.py:3", "tasks": 100, "succeeded": 100,
        "submitted": 1_000_000, "completed": 1_000_000 + round(seconds * 1000),
        "task_median": 1000, "task_max": 1500, "run_time": 100_000, "cpu_time": 95_000_000_000,
        "input_records": 1_000_000, "input_bytes": 500 * MB,
    }  # fmt: skip
    return StageCompleted(**{**fields, **figures})


def action(*stages: StageCompleted, plan: PlanNode | None = None, **known: Any) -> Finished:
    """On four slots, which it uses."""
    executions = () if plan is None else (ExecutionEnded(1, 0, plan=plan),)
    fields: dict[str, Any] = {
        "name": "pyspark.collect", "seconds": 25.0, "busy_seconds": 25.0, "slots": 4,
        "call_site": "etl.py:12",
    }  # fmt: skip
    return Finished(**{**fields, **known}, stages=stages, executions=executions)


def scan(files: int = 10, size: int = 1000 * MB, **more: Any) -> PlanNode:
    metrics = {"numFiles": files, "filesSize": size, **more.pop("metrics", {})}
    return PlanNode("Scan parquet ", metrics, DATA, **more)


def write(files: int, size: int, **metrics: int) -> PlanNode:
    found = {"numFiles": files, "numOutputBytes": size, "numOutputRows": 5, **metrics}
    return PlanNode("Execute InsertIntoHadoopFsRelationCommand", found, Files("file:/out"))


def exchange(size: int, *children: PlanNode) -> PlanNode:
    """A side of a join: below its sort, as adaptive execution reads it."""
    shuffled = PlanNode("Exchange", {"dataSize": size}, children=list(children))
    return PlanNode("Sort", children=[PlanNode("AQEShuffleRead", children=[shuffled])])


def join(left: int, right: int, name: str = "SortMergeJoin") -> PlanNode:
    return PlanNode(name, children=[exchange(left, scan()), exchange(right)])


def python(name: str = "ArrowEvalPython", **metrics: int) -> PlanNode:
    return PlanNode(name, {"pythonDataSent": 1, "pythonNumRowsReceived": 5000, **metrics})


SKEWED: dict[str, Any] = {
    "task_max": 60_000, "shuffle_read_bytes": 900 * MB, "read_max": 500 * MB, "read_median": MB,
}  # fmt: skip
LONG: dict[str, Any] = {"tasks": 2, "succeeded": 2, "task_median": 40_000, "task_max": 41_000}
TINY: dict[str, Any] = {"tasks": 2000, "succeeded": 2000, "task_median": 12, "task_max": 40}

CASES: list[tuple[Callable[[Finished], Advice | None], Finished, list[Finished], str, str]] = [
    (
        rules_of_stages.skew,
        action(stage(**SKEWED)),
        [
            action(stage(**{**SKEWED, "task_max": 4999})),
            action(stage(**{**SKEWED, "read_max": MB})),  # one machine is slow
            action(stage(**{**SKEWED, "succeeded": 2})),
            action(stage(**{**SKEWED, "task_median": 20, "task_max": 200})),
            action(stage(task_max=60_000)),  # no shuffle
        ],
        "Spark stage 7: slowest of 100 tasks 1m00s, median 1.0 s; the largest read 524 MB, "
        "the median 1.0 MB",
        "salt",
    ),
    (
        rules_of_stages.spill,
        action(stage(spill_disk=300 * MB, spill_memory=2000 * MB)),
        [action(stage(spill_disk=63 * MB, spill_memory=2000 * MB))],
        "315 MB written to disk, 2.1 GB in memory, by 100 tasks",
        "spark.sql.shuffle.partitions",
    ),
    (
        rules_of_stages.tiny_tasks,
        action(stage(**TINY)),
        [
            action(stage(**{**TINY, "task_median": 250})),
            action(stage(**{**TINY, "tasks": 199})),
            action(stage(**TINY), slots=300),
            action(stage(4.0, **TINY)),
            action(stage(**TINY), slots=0),
        ],
        "2,000 tasks of 12 ms (median) on 4 slots took 1m00s",
        "about 12 partitions",
    ),
    (
        rules_of_stages.few_partitions,
        action(stage(**LONG)),
        [
            action(stage(**LONG), slots=2),
            action(stage(**{**LONG, "task_median": 9000})),
            action(stage(**LONG, **{"input_records": 3})),  # nothing to be split
        ],
        "2 tasks on 4 slots, 40.0 s (median), for 524 MB",
        "repartition(8)",
    ),
    (
        rules_of_stages.garbage_collection,
        action(stage(gc_time=20_000)),
        [
            action(stage(gc_time=9_999)),
            action(stage(run_time=20_000, gc_time=4000)),
            action(stage(run_time=0, gc_time=20_000)),
        ],
        "20.0 s of 1m40s task time (20 %)",
        "spark.executor.memory",
    ),
    (
        rules_of_stages.idle_cores,
        action(stage(run_time=20_000), seconds=100.0, busy_seconds=30.0),
        [
            action(stage(run_time=120_000), seconds=100.0),
            action(stage(run_time=20_000), seconds=29.0),
            action(stage(run_time=20_000), seconds=100.0, slots=1),
            action(stage(run_time=20_000), seconds=100.0, slots=0),
        ],
        "0.2 of 4 slots had a task over 1m40s; for 1m10s no job ran",
        "the driver works alone",
    ),
    (
        rules_of_plans.small_files_read,
        action(stage(), plan=scan(500, 500 * MB)),
        [
            action(stage(), plan=scan(199, 199 * MB)),
            action(stage(), plan=scan(500, 2000 * MB)),
            action(stage(run_time=4000), plan=scan(500, 500 * MB)),
            action(stage(), plan=write(500, 500 * MB)),
        ],
        "file:///data/flights: 500 files of 1.0 MB on average",
        "repartition(4).write",
    ),
    (
        rules_of_plans.small_files_written,
        action(stage(), plan=write(500, 500 * MB)),
        [
            action(stage(), plan=write(199, 199 * MB)),
            action(stage(), plan=write(500, 2000 * MB)),
            action(stage(run_time=4000), plan=write(500, 500 * MB)),
            action(stage(), plan=scan(500, 500 * MB)),
        ],
        "file:///out: 500 files of 1.0 MB on average",
        "coalesce(4)",
    ),
    (
        rules_of_plans.full_scan,
        action(stage(), plan=scan(365, 5000 * MB, partitioned_by=["day"],
                                  metrics={"numPartitions": 365})),
        [
            action(stage(), plan=scan(365, 5000 * MB, partitioned_by=["day"],
                                      partition_filters=1, metrics={"numPartitions": 30})),
            action(stage(), plan=scan(365, 1000 * MB, partitioned_by=["day"],
                                      metrics={"numPartitions": 365})),
            action(stage(), plan=scan(365, 5000 * MB)),
            action(stage(), plan=scan(365, 5000 * MB, partitioned_by=["day"],
                                      metrics={"numPartitions": 1})),
        ],
        "file:///data/flights: all 365 partitions, 5.2 GB",
        "a condition on day",
    ),
    (
        rules_of_plans.missing_broadcast,
        action(stage(), plan=join(800 * MB, 2 * MB)),
        [
            action(stage(), plan=join(800 * MB, 11 * MB)),
            action(stage(), plan=join(2 * MB, 99 * MB)),
            action(stage(), plan=join(800 * MB, 0)),
            action(stage(), plan=join(800 * MB, 2 * MB, "BroadcastHashJoin")),
            action(stage(), plan=PlanNode("SortMergeJoin", children=[exchange(800 * MB), scan()])),
        ],
        "file:///data/flights: SortMergeJoin: 839 MB shuffled to be joined with 2.1 MB",
        "broadcast()",
    ),
    (
        rules_of_plans.huge_broadcast,
        action(stage(), plan=PlanNode(
            "BroadcastExchange", {"dataSize": 900 * MB, "numOutputRows": 7, "collectTime": 3000,
                                  "buildTime": 1000, "broadcastTime": 500}, children=[scan()])),
        [
            action(stage(), plan=PlanNode("BroadcastExchange", {"dataSize": 511 * MB})),
            action(stage(), plan=PlanNode("Exchange", {"dataSize": 900 * MB})),
        ],
        "file:///data/flights: 944 MB, 7 rows broadcast in 4.5 s",
        "spark.sql.autoBroadcastJoinThreshold",
    ),
    (
        rules_of_plans.python,
        action(stage(), plan=python(pythonTotalTime=99_000, pythonProcessingTime=80_000)),
        [
            action(stage(), plan=python(pythonTotalTime=99_000, pythonProcessingTime=40_000)),
            action(stage(run_time=5000), plan=python(pythonTotalTime=4900)),
            action(stage(), plan=PlanNode("Project", {"pythonTotalTime": 90_000})),
            action(stage(), plan=python()),  # 3.5, and its JVM was busy
            action(plan=python(pythonTotalTime=90_000)),
        ],
        "1m20s of 1m40s task time (80 %) in Python; ArrowEvalPython, 5,000 rows",
        "pyspark.sql.functions",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].__name__)
def test_a_rule_and_its_near_misses(
    case: tuple[Callable[[Finished], Advice | None], Finished, list[Finished], str, str],
) -> None:
    """Evidence in figures, the setting or code to change, and nothing where it is not the case."""
    rule, fires, misses, evidence, remedy = case
    advice = rule(fires)
    assert advice is not None
    assert advice.evidence.endswith(evidence)
    assert remedy in advice.remedy
    assert "etl.py:12" in advice.evidence or "file:///" in advice.evidence
    assert [rule(one) for one in misses] == [None] * len(misses)
    assert advice in of_action(fires)


def test_a_remedy_fits_its_case() -> None:
    """Join or aggregation, driver or executors, directories or files, pickle or Arrow."""
    skewed = stage(**SKEWED)
    after_join = rules_of_stages.skew(action(skewed, plan=join(5, 5)))
    assert after_join is not None and "skewJoin" in after_join.remedy
    after_group = rules_of_stages.skew(action(skewed, plan=PlanNode("HashAggregate")))
    assert after_group is not None and "two steps" in after_group.remedy
    busy = rules_of_stages.idle_cores(action(stage(run_time=1000), seconds=90.0, busy_seconds=80.0))
    assert busy is not None and "FAIR" in busy.remedy
    for files, parts, remedy in ((5000, 100, "repartition()"), (300, 300, "fewer values")):
        written = rules_of_plans.small_files_written(
            action(stage(), plan=write(files, files * MB, numParts=parts))
        )
        assert written is not None and remedy in written.remedy
        assert f"{parts} partitions" in written.evidence
    pickled = rules_of_plans.python(
        action(stage(), plan=python("BatchEvalPython", pythonTotalTime=80_000))
    )
    assert pickled is not None and "arrow.enabled" in pickled.remedy


def test_python_of_a_spark_that_does_not_say() -> None:
    """3.5 counts rows only: what its tasks waited for is told as just that."""
    waited = stage(cpu_time=20_000_000_000, gc_time=1000)
    advice = rules_of_plans.python(action(waited, plan=python("BatchEvalPython")))
    assert advice is not None
    assert "1m19s of 1m40s task time (79 %) waiting for others than the JVM" in advice.evidence


def test_idle_cores_that_have_a_better_reason() -> None:
    """Long tasks on few partitions leave slots idle: that is said, not both."""
    found = of_action(action(stage(**LONG, run_time=80_000), seconds=100.0))
    assert [advice.kind for advice in found] == [Kind.FEW_PARTITIONS]


def test_the_worst_stage_is_named() -> None:
    """One piece of advice of a kind for an action."""
    first, second = stage(spill_disk=100 * MB), stage(stage=8, spill_disk=200 * MB)
    (advice,) = of_action(action(first, second))
    assert "Spark stage 8" in advice.evidence


# --- a run --------------------------------------------------------------------------------------


def test_what_is_read_again_and_again() -> None:
    """From the third action on that reads the same; other files, filters or the cache are new."""
    advisor = Advisor()
    found = []
    for number, plan in enumerate([
        scan(), scan(11), scan(size=7), scan(partition_filters=1),
        PlanNode("HashAggregate", children=[scan()]), PlanNode("InMemoryTableScan"),
        PlanNode("Project", children=[scan(), scan()]), scan(),
    ]):  # fmt: skip
        name = "pyspark.count" if number % 2 else "pyspark.collect"
        found.append(advisor.advise(action(stage(run_time=6000), plan=plan, name=name)))
    assert [len(one) for one in found] == [0, 0, 0, 0, 0, 0, 1, 0]
    (advice,) = found[6]
    assert (advice.kind, advice.place) == (Kind.RECOMPUTATION, "file:///data/flights")
    assert advice.evidence == (
        "file:///data/flights: 1.0 GB read by 3 actions (pyspark.collect at etl.py:12), "
        "12.0 s of task time after the first"
    )


def test_readers_without_end_take_no_memory_without_end() -> None:
    """Of the actions that read something those are remembered that are named, and of what is read
    the newest."""
    scans = rules_of_plans.Scans()
    advice = None
    for line in range(100):
        advice = scans.again(action(stage(), plan=scan(), call_site=f"cell.py:{line}"))
    (readers,) = scans._readers.values()
    assert (readers.count, len(readers.places)) == (100, 4)
    assert advice is not None
    assert "cell.py:0, pyspark.collect at cell.py:1, pyspark.collect at cell.py:2, …)" in (
        advice.evidence
    )
    for files in range(1100):
        scans.again(action(stage(), plan=scan(files)))
    assert len(scans._readers) == 1000
    assert max(one.files for one in scans._readers) == 1099


def test_what_is_quick_may_be_done_again() -> None:
    """Caching would cost more."""
    advisor = Advisor()
    assert not any(advisor.advise(action(stage(run_time=200), plan=scan())) for _ in range(20))


def test_advice_is_given_once() -> None:
    """A loop does not repeat it; another place is another piece."""
    advisor = Advisor()
    spilling = action(stage(spill_disk=300 * MB))
    again = action(stage(stage=9, spill_disk=400 * MB))
    elsewhere = structs.replace(spilling, call_site="etl.py:40")
    given = [advisor.advise(one) for one in (spilling, again, elsewhere)]
    assert [[advice.key for advice in one] for one in given] == [
        ["spill pyspark.collect at etl.py:12"], [], ["spill pyspark.collect at etl.py:40"],
    ]  # fmt: skip


def test_no_secrets_in_advice() -> None:
    """Of where data is its URI without credentials and query."""
    where = Files("s3a://key:s3cret@bucket/x?token=s3cret")
    many = structs.replace(scan(500, 500 * MB), relation=where)
    (advice,) = of_action(action(stage(), plan=many))
    assert "bucket/x" in advice.evidence
    assert "s3cret" not in str(advice)


# --- any figures --------------------------------------------------------------------------------

counts = st.integers(0, 10**12)
small = st.integers(0, 200)
METRICS = [
    "numFiles", "filesSize", "numOutputBytes", "numPartitions", "numParts", "dataSize",
    "collectTime", "pythonDataSent", "pythonTotalTime", "pythonProcessingTime",
]  # fmt: skip
NAMES = ["Scan parquet ", "Exchange", "BroadcastExchange", "SortMergeJoin", "ArrowEvalPython"]
FIGURES = [
    name for name, kind in StageCompleted.__annotations__.items() if kind == "int"
]  # fmt: skip


def plans(values: st.SearchStrategy[int]) -> st.SearchStrategy[PlanNode]:
    def node(children: st.SearchStrategy[list[PlanNode]]) -> st.SearchStrategy[PlanNode]:
        return st.builds(
            PlanNode, st.sampled_from(NAMES), st.dictionaries(st.sampled_from(METRICS), values),
            st.sampled_from([None, DATA, Source("X"), Table("")]), st.just(["day"]), st.just(0),
            children,
        )  # fmt: skip

    return st.recursive(
        node(st.just([])), lambda below: node(st.lists(below, max_size=2)), max_leaves=6
    )


def stages(values: st.SearchStrategy[int]) -> st.SearchStrategy[StageCompleted]:
    return st.fixed_dictionaries({name: values for name in FIGURES}).map(
        lambda figures: StageCompleted(name="x", **figures)
    )


@given(st.lists(stages(counts), max_size=3), plans(counts), st.integers(0, 64), st.floats(0, 1e6))
def test_any_figures_can_be_looked_at(
    found: list[StageCompleted], plan: PlanNode, slots: int, seconds: float
) -> None:
    """No rule fails, and each piece of advice has all its parts in one line each."""
    one = action(*found, plan=plan, slots=slots, seconds=seconds, busy_seconds=seconds)
    for advice in of_action(one):
        assert advice.evidence and advice.remedy and advice.place
        assert "\n" not in advice.evidence + advice.remedy


@given(st.lists(stages(small), max_size=3), plans(small), st.integers(0, 64))
def test_little_data_yields_no_advice(
    found: list[StageCompleted], plan: PlanNode, slots: int
) -> None:
    """However it is spread."""
    one = action(*found, plan=plan, slots=slots, seconds=0.2, busy_seconds=0.2)
    assert of_action(one) == []
