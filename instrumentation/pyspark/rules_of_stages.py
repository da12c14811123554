"""Advice from the figures of Spark's stages: one small function per rule, an action in."""

from __future__ import annotations

from typing import Final

from stagewatch.instrumentation.pyspark.advice import (
    LOST_SECONDS,
    MANY,
    MB,
    Advice,
    Finished,
    Kind,
    number,
    percent,
    took,
    worst,
)
from stagewatch.instrumentation.pyspark.datasets import nodes
from stagewatch.instrumentation.pyspark.events import StageCompleted
from stagewatch.measures import duration_text, size_text

IDLE_SECONDS: Final = 30.0
"""A job of seconds cannot use a cluster well."""
SKEW: Final = 5.0
"""``spark.sql.adaptive.skewJoin.skewedPartitionFactor``: so much larger than the median."""
SKEWED_READ: Final = 2.0
"""Compressed, a hot key is smaller than its rows are many; with less it is a slow machine."""
SPILLED: Final = 64 * MB
"""``spark.sql.adaptive.advisoryPartitionSizeInBytes``: one partition as Spark would have it."""
SHORT_TASK: Final = 200
"""Milliseconds; Spark's tuning guide: "tasks as short as 200 ms" are supported efficiently."""
TASKS_PER_SLOT: Final = 10
"""The tuning guide recommends two or three; adaptive execution aims at less."""
LONG_TASK: Final = 10_000
"""Milliseconds: fifty times what is long enough for a task."""
GC_SHARE: Final = 0.1
"""From there on Spark's own UI shows an executor in red."""
USED_SHARE: Final = 0.3
"""Of the slots; less than a third."""


def skew(action: Finished) -> Advice | None:
    """After a shuffle one task takes many times as long as the others."""
    stage = worst(
        action.stages,
        lambda stage: stage.task_max - stage.task_median,
        lambda stage: (
            stage.succeeded > 2
            and stage.read_max >= SKEWED_READ * max(stage.read_median, 1)
            and stage.task_max >= SKEW * max(stage.task_median, 1)
            and stage.task_max - stage.task_median >= LOST_SECONDS * 1e3
        ),
    )
    if stage is None:
        return None
    evidence = (
        f"{_name(action, stage)}: slowest of {stage.succeeded:,} tasks {took(stage.task_max)}, "
        f"median {took(stage.task_median)}; the largest read {size_text(stage.read_max)}, "
        f"the median {size_text(stage.read_median)}"
    )
    return Advice(Kind.SKEW, action.place, evidence, _skew_remedy(action))


def _skew_remedy(action: Finished) -> str:
    plans = (execution.plan for execution in action.executions if execution.plan is not None)
    if any("Join" in node.name for plan in plans for node in nodes(plan)):
        return (
            "salt the hot keys of the join, or let adaptive execution split them: "
            "spark.sql.adaptive.skewJoin.enabled, with skewedPartitionThresholdInBytes below "
            "the largest read"
        )
    return "aggregate in two steps: first by key and a random salt, then by key"


def spill(action: Finished) -> Advice | None:
    """Partitions do not fit into the memory of their tasks."""
    stage = worst(
        action.stages, lambda stage: stage.spill_disk, lambda stage: stage.spill_disk >= SPILLED
    )
    if stage is None:
        return None
    evidence = (
        f"{_name(action, stage)}: {size_text(stage.spill_disk)} written to disk, "
        f"{size_text(stage.spill_memory)} in memory, by {stage.tasks:,} tasks"
    )
    return Advice(
        Kind.SPILL,
        action.place,
        evidence,
        "smaller partitions: more spark.sql.shuffle.partitions, or a smaller "
        "spark.sql.adaptive.advisoryPartitionSizeInBytes; or more spark.executor.memory",
    )


def tiny_tasks(action: Finished) -> Advice | None:
    """The scheduler is busier than the tasks."""
    stage = worst(
        action.stages,
        lambda stage: stage.tasks,
        lambda stage: (
            action.slots > 0
            and stage.tasks >= max(TASKS_PER_SLOT * action.slots, MANY)
            and stage.task_median < SHORT_TASK
            and _seconds(stage) >= LOST_SECONDS
        ),
    )
    if stage is None:
        return None
    evidence = (
        f"{_name(action, stage)}: {stage.tasks:,} tasks of {took(stage.task_median)} (median) on "
        f"{action.slots:,} slots took {duration_text(_seconds(stage))}"
    )
    remedy = (
        f"about {3 * action.slots:,} partitions: coalesce(), a larger "
        "spark.sql.files.maxPartitionBytes or openCostInBytes for what is read, fewer "
        "spark.sql.shuffle.partitions or spark.default.parallelism for what is shuffled"
    )
    return Advice(Kind.TINY_TASKS, action.place, evidence, remedy)


def few_partitions(action: Finished) -> Advice | None:
    """Long tasks, and slots without any."""
    stage = worst(
        action.stages,
        lambda stage: stage.task_median,
        lambda stage: (
            stage.tasks < action.slots
            and stage.task_median >= LONG_TASK
            and stage.input_records + stage.shuffle_read_records > action.slots
        ),
    )
    if stage is None:
        return None
    evidence = (
        f"{_name(action, stage)}: {number(stage.tasks, 'task')} on {action.slots:,} slots, "
        f"{took(stage.task_median)} (median), for "
        f"{size_text(stage.input_bytes + stage.shuffle_read_bytes)}"
    )
    remedy = (
        f"repartition({2 * action.slots}) before it; files that can be split (no gzip), "
        "numPartitions and partitionColumn for JDBC, a smaller "
        "spark.sql.adaptive.coalescePartitions.minPartitionSize (1 MB) after a shuffle"
    )
    return Advice(Kind.FEW_PARTITIONS, action.place, evidence, remedy)


def garbage_collection(action: Finished) -> Advice | None:
    """Much of the tasks' time is the JVM's."""
    running = sum(stage.run_time for stage in action.stages)
    collecting = sum(stage.gc_time for stage in action.stages)
    if not running or collecting < max(LOST_SECONDS * 1e3, GC_SHARE * running):
        return None
    share = percent(collecting / running)
    evidence = f"{action.place}: {took(collecting)} of {took(running)} task time ({share})"
    remedy = (
        "more spark.executor.memory (spark.driver.memory in local mode) or fewer "
        "spark.executor.cores; unpersist() what is not needed, cache with "
        "StorageLevel.DISK_ONLY or MEMORY_AND_DISK"
    )
    return Advice(Kind.GARBAGE_COLLECTION, action.place, evidence, remedy)


def idle_cores(action: Finished) -> Advice | None:
    """Slots without tasks, because the driver works alone or only few tasks run."""
    running = sum(stage.run_time for stage in action.stages) / 1e3
    there = action.slots * action.seconds
    if action.slots < 2 or action.seconds < IDLE_SECONDS or running >= USED_SHARE * there:
        return None
    alone = max(0.0, action.seconds - action.busy_seconds)
    evidence = (
        f"{action.place}: {running / action.seconds:.1f} of {action.slots:,} slots had a task over "
        f"{duration_text(action.seconds)}; for {duration_text(alone)} no job ran"
    )
    if alone > action.seconds / 2:
        remedy = (
            "the driver works alone: write or aggregate in Spark instead of collect() and "
            "toPandas(), and what remains in threads beside other actions"
        )
    else:
        remedy = (
            "run independent actions from several threads (spark.scheduler.mode=FAIR), or take "
            "fewer executors: spark.dynamicAllocation.enabled"
        )
    return Advice(Kind.IDLE_CORES, action.place, evidence, remedy)


def _seconds(stage: StageCompleted) -> float:
    if stage.submitted is None or stage.completed is None:
        return 0.0
    return (stage.completed - stage.submitted) / 1e3


def _name(action: Finished, stage: StageCompleted) -> str:
    # Spark's own name of a stage is the user's line for few of them.
    return f"{action.place}, Spark stage {stage.stage}"
