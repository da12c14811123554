"""Figures of Spark stages: as attributes of spans, summed up for actions, and as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stagewatch import semconv
from stagewatch.instrumentation.pyspark.events import StageCompleted

_SUMMED: Final = {
    semconv.SPARK_INPUT_RECORDS: "input_records",
    semconv.SPARK_INPUT_BYTES: "input_bytes",
    semconv.SPARK_OUTPUT_RECORDS: "output_records",
    semconv.SPARK_OUTPUT_BYTES: "output_bytes",
    semconv.SPARK_SHUFFLE_READ_RECORDS: "shuffle_read_records",
    semconv.SPARK_SHUFFLE_READ_BYTES: "shuffle_read_bytes",
    semconv.SPARK_SHUFFLE_WRITE_RECORDS: "shuffle_write_records",
    semconv.SPARK_SHUFFLE_WRITE_BYTES: "shuffle_write_bytes",
    semconv.SPARK_SPILL_MEMORY: "spill_memory",
    semconv.SPARK_SPILL_DISK: "spill_disk",
    semconv.SPARK_TASKS_FAILED: "failed",
    semconv.SPARK_TASKS_KILLED: "killed",
}
_TIMES: Final = {
    semconv.SPARK_EXECUTOR_RUN_TIME: ("run_time", 1e3),
    semconv.SPARK_EXECUTOR_CPU_TIME: ("cpu_time", 1e9),
    semconv.SPARK_GC_TIME: ("gc_time", 1e3),
    semconv.SPARK_SHUFFLE_FETCH_WAIT: ("shuffle_fetch_wait", 1e3),
}
"""Field, and how many of its unit are a second."""
_ALWAYS: Final = frozenset({semconv.SPARK_TASKS, semconv.SPARK_EXECUTOR_RUN_TIME})
_LARGEST: Final = (
    semconv.SPARK_TASK_SKEW,
    semconv.SPARK_SHUFFLE_SKEW,
    semconv.SPARK_TASK_MEMORY_PEAK,
    semconv.SPARK_TASK_DURATION_MAX,
)

Figures = Mapping[str, float]
"""Attributes by name; what is 0 is absent, but for tasks and their time."""


def of_stage(stage: StageCompleted) -> Figures:
    """All that one attempt of a stage has."""
    found: dict[str, float] = {name: getattr(stage, field) for name, field in _SUMMED.items()}
    for name, (field, unit) in _TIMES.items():
        found[name] = getattr(stage, field) / unit
    # Of a stage that failed most tasks may never have run; of what succeeds nobody hears twice.
    ended = stage.tasks if stage.failure is None else stage.succeeded
    found[semconv.SPARK_TASKS] = ended + stage.failed + stage.killed
    found[semconv.SPARK_TASK_MEMORY_PEAK] = stage.memory_peak
    if stage.succeeded:
        found[semconv.SPARK_TASK_DURATION_MEDIAN] = stage.task_median / 1e3
        found[semconv.SPARK_TASK_DURATION_MAX] = stage.task_max / 1e3
    if stage.succeeded > 1:
        # A task of no millisecond took one at most.
        found[semconv.SPARK_TASK_SKEW] = round(stage.task_max / max(stage.task_median, 1), 2)
        if stage.read_max:
            found[semconv.SPARK_SHUFFLE_SKEW] = round(stage.read_max / max(stage.read_median, 1), 2)
    return {name: value for name, value in found.items() if value or name in _ALWAYS}


def add(sums: dict[str, float], figures: Figures) -> None:
    """Sum up stages of one action: skew and peaks are those of the worst."""
    for name, value in figures.items():
        if name == semconv.SPARK_TASK_DURATION_MEDIAN:
            continue
        before = sums.get(name, 0)
        sums[name] = max(before, value) if name in _LARGEST else before + value


def increments(figures: Figures) -> dict[str, float]:
    """What a stage adds to the counters of `semconv.MEASURED`, by the metric's name."""
    found = {
        semconv.SPARK_SHUFFLE_READ.name: figures.get(semconv.SPARK_SHUFFLE_READ_BYTES, 0),
        semconv.SPARK_SHUFFLE_WRITE.name: figures.get(semconv.SPARK_SHUFFLE_WRITE_BYTES, 0),
        semconv.SPARK_SPILL.name: figures.get(semconv.SPARK_SPILL_DISK, 0),
        semconv.SPARK_TASK_COUNT.name: figures.get(semconv.SPARK_TASKS, 0),
        semconv.SPARK_TASK_FAILURES.name: figures.get(semconv.SPARK_TASKS_FAILED, 0),
    }
    return {name: value for name, value in found.items() if value}


def ratios(sums: Figures, slot_seconds: float) -> dict[str, float]:
    """Gauges of `semconv.MEASURED`, of the *sums* over what a pipeline's stage has run so far.

    *slot_seconds*: time that the executors' slots were there for it; 0 if unknown. Idle share:
    1 - executor run time / slot seconds.
    """
    found = {}
    if semconv.SPARK_TASK_SKEW in sums:
        found[semconv.SPARK_SKEW.name] = sums[semconv.SPARK_TASK_SKEW]
    running = sums.get(semconv.SPARK_EXECUTOR_RUN_TIME, 0)
    if running:
        found[semconv.SPARK_GC_RATIO.name] = sums.get(semconv.SPARK_GC_TIME, 0) / running
    if slot_seconds:
        found[semconv.SPARK_IDLE_SLOTS.name] = min(1.0, max(0.0, 1 - running / slot_seconds))
    return found
