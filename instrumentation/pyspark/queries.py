"""A streaming query is a run of its own: what is known of it while it goes on, and how it ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from statistics import median
from typing import Any, Final

from msgspec import Struct, field, structs

from stagewatch import clock, semconv
from stagewatch.child_runs import ChildRun
from stagewatch.failures import Cause, error_message, error_place, verdict
from stagewatch.instrumentation.pyspark import batches, events, failures, progress
from stagewatch.instrumentation.pyspark.batches import Batch
from stagewatch.instrumentation.pyspark.spans import moment
from stagewatch.model import Outcome

STOPPED: Final = "stopped"
_SLOW: Final = 3.0
"""So many times the usual duration."""
_RECENT: Final = 20
"""Batches by which the usual duration is judged."""
_ENOUGH: Final = 5
_MOST_SLOW: Final = 20
"""Slow batches that get spans, in a minute: of a query that is always behind all are slow."""
_MOST_BATCHES: Final = 10
"""Under way: there is one, and late events of the last."""
_SECOND: Final = 1_000_000_000


class Query(Struct, eq=False):
    """One under way."""

    child: ChildRun
    id: str
    run: str
    started: int
    """Nanoseconds since the epoch."""
    interval: float | None = None
    """Seconds, of its trigger."""
    ends_itself: bool = False
    """Its trigger has it end when all that was there is processed."""
    is_stopped: bool = False
    """By the user."""
    batches: dict[int, Batch] = field(default_factory=dict)
    last: int = -1
    """Number of the newest."""
    count: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    """Durations of the last batches, seconds."""
    slow: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_SLOW))
    """When slow ones were kept, on the monotonic clock."""
    terminated: events.QueryTerminated | None = None

    @property
    def has_progress(self) -> bool:
        """Of a batch that is not finished yet."""
        return any(batch.progress for batch in list(self.batches.values()))


def set_trigger(query: Query, trigger: str) -> None:
    """*trigger* as Spark prints it."""
    kind, _, interval = trigger.rstrip(")").partition("(")
    query.ends_itself = not kind.startswith(("ProcessingTime", "Continuous", "RealTime"))
    if interval.isdecimal() and int(interval):
        query.interval = int(interval) / 1e3
        query.child.span.set_attribute(semconv.SPARK_QUERY_TRIGGER, query.interval)


def batch_of(query: Query, number: int) -> Batch | None:
    """The batch under way with this *number*, or a new one; None: of one that is over."""
    found = query.batches.get(number)
    if found is None and number > query.last:
        found = query.batches[number] = Batch(query.child, query.id, number)
        query.last = number
        if len(query.batches) > _MOST_BATCHES:
            _forget(query, [next(iter(query.batches))])
    return found


def progressed(query: Query, told: dict[str, Any]) -> None:
    """Measure what a trigger was like."""
    batches.measure(query.child, progress.measured(told, query.interval, clock.now()))


def finish(query: Query, batch: Batch, told: progress.Progress) -> None:
    """A batch that went well."""
    seconds = progress.duration(told)
    start = moment(progress.started(told), 0)
    end = start + round(seconds * _SECOND)
    query.count += 1
    reason = "slow" if _is_slow(query, seconds) else None
    query.recent.append(seconds)
    ended = batches.ended(batch, start, end, progress.rows_in(told), progress.rows_out(told))
    batches.write(batch, ended, reason, progress.times(told))


def end(query: Query) -> None:
    """It has terminated, or nobody has told its end."""
    told = query.terminated
    query.child.span.set_attribute(semconv.SPARK_QUERY_BATCHES, query.count)
    if told is None or (told.error is None and told.message is None):
        if query.ends_itself and not query.is_stopped:
            close(query, Outcome.SUCCESS, None)
        else:
            close(query, Outcome.CANCELLATION, STOPPED)
        return
    under_way = max(list(query.batches.values()), key=lambda batch: batch.number, default=None)
    raised = under_way.error if under_way is not None else None
    cause = _of_error(raised) if raised is not None else _of_text(told)
    if under_way is not None:
        del query.batches[under_way.number]
        _fail(query, under_way, cause)
    _forget(query, query.batches)
    query.child.end(cause.outcome, cause.error_type, cause.message, cause.place)


def close(query: Query, outcome: Outcome, error_type: str | None) -> None:
    """It is over, and nothing more is told of its batches."""
    _forget(query, query.batches)
    query.child.end(outcome, error_type)


def _forget(query: Query, numbers: Iterable[int]) -> None:
    for number in tuple(numbers):
        batches.forget(query.batches.pop(number))


def _fail(query: Query, batch: Batch, cause: Cause) -> None:
    """A batch that its query has failed in."""
    start = batch.began or batches.first_job(batch, query.started)
    ended = batches.ended(batch, start, max(clock.now(), start))
    failed = structs.replace(ended, outcome=str(cause.outcome), error_type=cause.error_type)
    batches.write(batch, failed, "failed", {})


def _is_slow(query: Query, seconds: float) -> bool:
    """Of a batch: so that it gets spans, as not too many do."""
    is_slow = query.interval is not None and 0 < query.interval < seconds
    if len(query.recent) >= _ENOUGH:
        is_slow |= seconds >= max(
            _SLOW * median(query.recent), query.child.recording.threshold / _SECOND
        )
    now, full = time.monotonic(), len(query.slow) == _MOST_SLOW
    if not is_slow or (full and now - query.slow[0] < 60):
        return False
    query.slow.append(now)
    return True


def _of_error(error: BaseException) -> Cause:
    """Of what the user's function raised."""
    outcome, error_type = verdict(error)
    return Cause(error_type or "unknown", outcome, error_place(error), error_message(error))


def _of_text(told: events.QueryTerminated) -> Cause:
    """The user's exception of a Python worker, else what Spark says."""
    text = told.message or ""
    found = failures.of_text(text)
    return found if found is not None else Cause(told.error or "unknown", message=text or None)
