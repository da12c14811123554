"""What the journals' records add to each metric: pure, a record in, increments out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from stagewatch import measures, semconv
from stagewatch.measures import DURATION_BUCKETS, SECOND
from stagewatch.model import Outcome
from stagewatch.records import (
    DatasetTouched,
    Record,
    RunStarted,
    StageEnded,
    StageFailed,
    StageMeasured,
)
from stagewatch.semconv import Metric

FAILED: Final = frozenset({Outcome.FAILURE, Outcome.ERROR, Outcome.TIMEOUT})


class Increment(Struct, frozen=True):
    """What one event does to one series.

    `attributes` are those besides pipeline and source. A gauge is replaced by `value`; of a
    histogram `value` is the sum and `buckets` are the counts over `DURATION_BUCKETS`.
    """

    metric: Metric
    attributes: tuple[tuple[str, str], ...]
    value: float
    buckets: tuple[int, ...] | None = None


def increments(record: Record) -> list[Increment]:
    """What *record* alone says; most records say nothing."""
    match record:
        case StageEnded():
            return _of_stage(record)
        case StageFailed() if record.outcome in FAILED:
            return [_error(record.name, record.error_type)]
        case RunStarted():
            found = [
                Increment(semconv.RUN_ACTIVE, (), 1),
                Increment(semconv.LAST_START, (), record.start / SECOND),
                Increment(semconv.HEARTBEAT, (), record.start / SECOND),
            ]
            if record.deadline is not None:
                found.append(Increment(semconv.DEADLINE, (), record.deadline / SECOND))
            who = ((semconv.OWNER, record.owner), (semconv.VERSION, record.version))
            known = tuple((name, value) for name, value in who if value)
            return [*found, Increment(semconv.INFO, known, 1)]
        case StageMeasured():
            return list(_measured(record))
        case DatasetTouched(declared=str(name), newest_event=int(at)):
            return [Increment(semconv.NEWEST_EVENT, ((semconv.DATASET, name),), at / SECOND)]
        case _:
            return []


def of_operation(stage: str, name: str, calls: int, nanoseconds: int) -> list[Increment]:
    """*calls* of one operation in *stage* (empty: in the run itself)."""
    labels = (*_stage(stage), (semconv.OPERATION, name))
    return [
        Increment(semconv.OPERATIONS, labels, calls),
        Increment(semconv.OPERATION_TIME, labels, nanoseconds / SECOND),
    ]


def of_folded_stage(stage: str, cell: Mapping[str, int]) -> list[Increment]:
    """All folded calls of *stage*, as its cell (layout ``folded_stage``) counts them.

    The cell does not say how long the failed ones took: they stand among the others. Their errors
    have been counted by type, from `StageFailed`.
    """
    found = of_records(stage, cell)
    if not cell["calls"]:  # a forked process counts records of a call that its parent ends
        return found
    buckets = tuple(cell[f"bucket_{number}"] for number in range(len(DURATION_BUCKETS) + 1))
    outcome = Outcome.FAILURE if cell["failed"] == cell["calls"] else Outcome.SUCCESS
    labels = (*_stage(stage), (semconv.RUN_OUTCOME, str(outcome)))
    seconds = cell["nanoseconds"] / SECOND
    found.append(Increment(semconv.STAGE_DURATION, labels, seconds, buckets))
    if cell["cpu_nanoseconds"]:
        cpu = cell["cpu_nanoseconds"] / SECOND
        found.append(Increment(semconv.STAGE_CPU, _stage(stage), cpu))
    return found


def of_records(stage: str, cell: Mapping[str, int]) -> list[Increment]:
    """Records and retries of any cell that counts them."""
    counts = {side: cell[f"records_{side}"] for side in ("in", "out", "rejected")}
    found = _records(stage, counts)
    if cell["retries"]:
        found.append(Increment(semconv.RETRIES, _stage(stage), cell["retries"]))
    return found


def of_run_end(
    start: int, end: int, outcome: Outcome, error_type: str | None, deadline: int | None
) -> list[Increment]:
    """A run that is over. Times in ns."""
    result = ((semconv.RUN_OUTCOME, str(outcome)),)
    cause = ((semconv.ERROR_TYPE, error_type),) if error_type else ()
    seconds = max(end - start, 0) / SECOND
    found = [
        Increment(semconv.RUNS, (*result, *cause), 1),
        Increment(semconv.RUN_DURATION, result, seconds, _bucket(seconds)),
        Increment(semconv.RUN_ACTIVE, (), -1),
        Increment(semconv.LAST_END, (), end / SECOND),
    ]
    if deadline is not None:
        found.append(Increment(semconv.LATENESS, (), measures.lateness(deadline, end)))
    if outcome in (Outcome.SUCCESS, Outcome.SKIP):
        found.append(Increment(semconv.LAST_SUCCESS, (), end / SECOND))
    return found


def of_stage_so_far(
    stage: str,
    seconds: float,
    records_in: int | None,
    records_out: int | None,
    rejected: int,
    failed: bool,
    memory_peak: int | None,
) -> list[Increment]:
    """The gauges of a stage, from its sums over the run. `seconds`: active ones."""
    labels = _stage(stage)
    ratio = measures.error_ratio(records_out, rejected, failed=failed)
    found = [Increment(semconv.ERROR_RATIO, labels, ratio)]
    speed = measures.throughput(records_in, records_out, seconds)
    if speed is not None:
        found.append(Increment(semconv.THROUGHPUT, labels, speed))
    if memory_peak:
        found.append(Increment(semconv.STAGE_MEMORY, labels, memory_peak))
    return found


def dropped(signal: str, reason: str, count: int) -> Increment:
    """Telemetry of ours that was lost or cut."""
    labels = ((semconv.SIGNAL, signal), (semconv.REASON, reason))
    return Increment(semconv.TELEMETRY_DROPPED, labels, count)


def _of_stage(record: StageEnded) -> list[Increment]:
    seconds = max(record.end - record.start, 0) / SECOND
    labels = (*_stage(record.name), (semconv.RUN_OUTCOME, record.outcome))
    found = [Increment(semconv.STAGE_DURATION, labels, seconds, _bucket(seconds))]
    counts = {
        "in": record.records_in,
        "out": record.records_out,
        "rejected": record.records_rejected,
    }
    found += _records(record.name, counts)
    if record.outcome in FAILED:
        found.append(_error(record.name, record.error_type))
    if record.retries:
        found.append(Increment(semconv.RETRIES, _stage(record.name), record.retries))
    if record.cpu_seconds:
        found.append(Increment(semconv.STAGE_CPU, _stage(record.name), record.cpu_seconds))
    return found


def _records(stage: str, counts: Mapping[str, int | None]) -> list[Increment]:
    return [
        Increment(semconv.RECORDS, (*_stage(stage), (semconv.DIRECTION, side)), count)
        for side, count in counts.items()
        if count
    ]


def _measured(record: StageMeasured) -> Iterator[Increment]:
    for name, value in record.values.items():
        metric = semconv.MEASURED.get(name)  # None: of a newer version's job
        if metric is not None and math.isfinite(value) and (value or metric.kind == "gauge"):
            yield Increment(metric, _stage(record.stage), value)


def _error(stage: str, error_type: str | None) -> Increment:
    labels = (*_stage(stage), (semconv.ERROR_TYPE, error_type or "unknown"))
    return Increment(semconv.ERRORS, labels, 1)


def _stage(name: str) -> tuple[tuple[str, str], ...]:
    return ((semconv.STAGE_NAME, name),) if name else ()


def _bucket(seconds: float) -> tuple[int, ...]:
    index = measures.bucket_index(seconds)
    return tuple(int(number == index) for number in range(len(DURATION_BUCKETS) + 1))
