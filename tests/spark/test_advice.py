"""Advice on what a real Spark has done: its operators carry the names and metrics of the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import pytest

from stagewatch.instrumentation.pyspark import rules_of_plans, rules_of_stages, work
from stagewatch.instrumentation.pyspark.advice import Finished, Kind
from stagewatch.instrumentation.pyspark.advisor import Advisor, of_action
from tests.jobs import wait_for
from tests.recorded import Recorded

RULES_OF_STAGES = {
    "GC_SHARE": 0,
    "IDLE_SECONDS": 0,
    "LONG_TASK": 1,
    "LOST_SECONDS": 0.001,
    "MANY": 2,
    "SHORT_TASK": 1000,
    "SKEW": 2,
    "SPILLED": 1,
}
"""So that seconds on a small machine are enough."""
OF_PLANS = {Kind.SMALL_FILES_READ, Kind.SMALL_FILES_WRITTEN, Kind.FULL_SCAN, Kind.PYTHON}


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, recorded: Recorded) -> list[Finished]:
    """Actions of the session as they complete, and rules that take any amount for a large one."""
    for name in ("LARGE_SCAN", "LARGE_SIDE", "HUGE_BROADCAST", "PYTHON_SHARE", "LOST_SECONDS"):
        monkeypatch.setattr(rules_of_plans, name, 0)
    monkeypatch.setattr(rules_of_plans, "REPEATED_SECONDS", 0)
    monkeypatch.setattr(rules_of_plans, "MANY", 2)
    monkeypatch.setattr(rules_of_stages, "IDLE_SECONDS", inf)  # of a slow machine
    monkeypatch.setattr(rules_of_stages, "LOST_SECONDS", inf)
    found: list[Finished] = []
    complete = work.Work._complete

    def completed(self: work.Work, action: work.Finished, later: Any) -> None:
        known = (later.ended.name, later.ended.nanoseconds / 1e9, action.busy / 1e3, self.slots)
        stages, executions = tuple(action.stages), tuple(action.ended)
        if executions:
            found.append(Finished(*known, stages=stages, executions=executions))
        complete(self, action, later)

    monkeypatch.setattr(work.Work, "_complete", completed)
    return found


@contextmanager
def _settings(spark: Any, settings: dict[str, str]) -> Iterator[None]:
    """Of the session's SQL, and what they were."""
    before = {name: spark.conf.get(f"spark.sql.{name}") for name in settings}
    try:
        for name, value in settings.items():
            spark.conf.set(f"spark.sql.{name}", value)
        yield
    finally:
        for name, value in before.items():
            spark.conf.set(f"spark.sql.{name}", value)


@pytest.mark.once
def test_advice_on_real_stages(
    spark: Any, finished: list[Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks, spill, skew and the collector's time by their real figures; each is said of what it
    was provoked by, and not of a query that has nothing of it."""
    for name, value in RULES_OF_STAGES.items():
        monkeypatch.setattr(rules_of_stages, name, value)

    def kinds(act: Callable[[], Any]) -> set[Kind]:
        number = len(finished) + 1
        act()
        wait_for(lambda: len(finished) == number, timeout=120)
        return {advice.kind for advice in of_action(finished[-1])} - OF_PLANS

    rows = spark.range(0, 80_000, 1, 2)
    few = kinds(lambda: spark.range(0, 80_000, 1, 1).selectExpr("sum(id)").collect())
    assert Kind.FEW_PARTITIONS in few
    assert not few & {Kind.SKEW, Kind.SPILL, Kind.TINY_TASKS}
    many = kinds(lambda: spark.range(0, 40, 1, 40).collect())
    assert many >= {Kind.TINY_TASKS, Kind.IDLE_CORES}
    assert not many & {Kind.SKEW, Kind.SPILL, Kind.FEW_PARTITIONS}
    collected = spark.range(0, 20, 1, 2).selectExpr("reflect('java.lang.System', 'gc')")
    assert Kind.GARBAGE_COLLECTION in kinds(collected.collect)
    with _settings(spark, {"adaptive.enabled": "false", "shuffle.partitions": "4"}):
        keyed = rows.selectExpr("if(id < 79000, 0, id % 64) AS k", "uuid() AS text")
        even = rows.selectExpr("id % 64 AS k", "uuid() AS text")
        for frame, is_skewed in ((keyed, True), (even, False)):
            hashed = frame.repartition("k").selectExpr("max(sha2(text, 512))")
            assert (Kind.SKEW in kinds(hashed.collect)) is is_skewed
    limits = ("windowExec.buffer.in.memory.threshold", "windowExec.buffer.spill.threshold")
    with _settings(spark, dict.fromkeys(limits, "15000")):
        ranked = rows.selectExpr("sum(id) OVER (PARTITION BY id % 2) AS s")
        assert Kind.SPILL in kinds(lambda: ranked.selectExpr("max(s)").collect())


@pytest.mark.filterwarnings("ignore:PySpark does not yet fully support pandas")
def test_advice_on_real_plans(spark: Any, finished: list[Finished], tmp_path: Path) -> None:
    """Writes, scans, joins and Python by their real operators; none where there is no reason."""
    from pyspark.sql import functions

    def kinds(number: int) -> set[Kind]:
        wait_for(lambda: len(finished) == number, timeout=120)
        return {advice.kind for advice in of_action(finished[-1])}

    where = str(tmp_path / "rows")
    ids = spark.range(0, 50_000, numPartitions=2)
    ids.withColumn("d", ids.id % 5).write.partitionBy("d").parquet(where)
    assert kinds(1) == {Kind.SMALL_FILES_WRITTEN}
    rows = spark.read.parquet(where)
    rows.groupBy("d").count().collect()
    assert kinds(2) == {Kind.SMALL_FILES_READ, Kind.FULL_SCAN}
    rows.where("d = 2").agg(functions.sum("id")).collect()
    assert Kind.FULL_SCAN not in kinds(3)
    few = spark.range(0, 5).toDF("id")
    rows.join(functions.broadcast(few), "id").agg(functions.sum("id")).collect()
    assert Kind.HUGE_BROADCAST in kinds(4)
    rows.join(few.hint("merge"), "id").agg(functions.sum("id")).collect()
    assert Kind.MISSING_BROADCAST in kinds(5)
    assert Kind.HUGE_BROADCAST not in kinds(5)
    plus = functions.udf(lambda number: number + 1, "long")
    rows.select(plus("id").alias("n")).agg(functions.sum("n")).collect()
    assert Kind.PYTHON in kinds(6)
    advisor = Advisor()
    given = [{advice.kind for advice in advisor.advise(action)} for action in finished]
    # Read by all but the write, and by one under a condition.
    assert [Kind.RECOMPUTATION in one for one in given] == [False] * 4 + [True, False]
    (python,) = (one for one in of_action(finished[5]) if one.kind is Kind.PYTHON)
    assert "50,000 rows" in python.evidence
