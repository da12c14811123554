"""What the figures mean: pure functions, the same for the live view and for the history.

Times are nanoseconds since the epoch, durations seconds. Nothing here keeps state, and nothing but
`uptime` reads a clock. What a job rarely needs is imported where it is used: every millisecond of a
start counts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator
from itertools import chain, islice, takewhile
from math import ceil, floor
from time import clock_gettime_ns
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import tzinfo

    from stagewatch.model import Schedule, Sla

SECOND = 1_000_000_000

_UPTIME_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

MAX_TICKS = 200
"""So many ticks back are looked at for an unmet one (60 µs each, while a job is starting)."""

DURATION_BUCKETS = (
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14400.0, 43200.0, 86400.0,
)  # fmt: skip
"""Upper bounds, inclusive, in seconds: 10 ms … 24 h."""


def uptime() -> int:
    """Nanoseconds since boot, suspended time included: the same clock for all processes of a host,
    which nobody sets. Without such a clock (macOS) the monotonic one."""
    return clock_gettime_ns(_UPTIME_CLOCK)


def duration_text(seconds: float) -> str:
    """Three digits or so, with a unit: ``0.4 ms``, ``45 ms``, ``9.8 s``, ``3m05s``, ``2h14m``."""
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if 0 < milliseconds < 9.95 else f"{milliseconds:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    minutes = round(seconds / 60)
    if minutes < 2880:
        return f"{minutes // 60}h{minutes % 60:02}m"
    hours = round(seconds / 3600)
    return f"{hours // 24}d{hours % 24:02}h"


def size_text(count_of_bytes: int) -> str:
    """Bytes with a decimal unit: ``412 MB``."""
    value, unit = float(count_of_bytes), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, bigger
    return f"{value:.1f} {unit}" if value < 9.95 and unit != "B" else f"{value:.0f} {unit}"


def throughput(
    records_in: int | None, records_out: int | None, seconds: float | None
) -> float | None:
    """Records per second: out / seconds; in / seconds where nothing is known of out (decision 14).

    None where neither side is known, or no time has passed.
    """
    records = records_in if records_out is None else records_out
    if records is None or seconds is None or seconds <= 0:
        return None
    return records / seconds


def error_ratio(out: int | None, rejected: int, *, failed: bool) -> float:
    """rejected / (out + rejected), between 0 and 1; 0 without any record.

    1 for a stage that failed before it counted anything: it has brought none of its records home.
    """
    total = (out or 0) + rejected
    if total <= 0:
        return 1.0 if failed else 0.0
    return rejected / total


def deadline(scheduled: int | None, start: int, sla: Sla) -> int | None:
    """When the run has to be over, in ns: scheduled + ``sla.deadline``, where both are known.

    Else start + ``sla.max_duration``; None where nothing is promised.
    """
    if scheduled is not None and sla.deadline is not None:
        return scheduled + round(sla.deadline * SECOND)
    if sla.max_duration is not None:
        return start + round(sla.max_duration * SECOND)
    return None


def lateness(deadline: int | None, at: int) -> float:
    """Seconds past the deadline at `at`, the run's end or now; 0 on time or without a deadline."""
    if deadline is None or at <= deadline:
        return 0.0
    return (at - deadline) / SECOND


def percentile(values: Collection[float], q: float) -> float | None:
    """The `q`-th percentile (0 … 100), None without values.

    Linear between the two nearest of the sorted values, at position (n - 1) q / 100: definition 7
    of Hyndman and Fan, "Sample Quantiles in Statistical Packages" (1996); what numpy, pandas and
    `statistics.quantiles(method="inclusive")` do.

    Raises ValueError for a `q` outside 0 … 100.
    """
    if not 0 <= q <= 100:
        raise ValueError(f"{q} is not a percentile (0 … 100)")
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * q / 100
    low, high = ordered[floor(position)], ordered[ceil(position)]
    if low == high:
        return low
    share = position - floor(position)
    # Weighted from the nearer side, so that rounding cannot leave [low, high].
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def usual_duration(durations: Collection[float]) -> float | None:
    """Median of past durations; None of fewer than three, which say nothing about "usual"."""
    return percentile(durations, 50) if len(durations) >= 3 else None


MOST_PROGRESS = 0.99
"""What is still going is not done."""


def progress(done: float, whole: float | None) -> float | None:
    """done / whole, between 0 and `MOST_PROGRESS`; None where nobody knows the whole."""
    if not whole:
        return None
    return min(max(done / whole, 0.0), MOST_PROGRESS)


def remaining(elapsed: int, progress: float) -> int:
    """Nanoseconds that are left if all goes on as it went: elapsed (1 - progress) / progress."""
    return round(elapsed * (1 - progress) / progress)


def moment(at: int, uptime: int, start: int, start_uptime: int) -> int:
    """When, in ns, something happened to what began at *start*: start + what the uptime says.

    *at*, what the clock showed, counts only where an uptime is unknown (0): a clock that was set in
    between changes neither order nor duration.
    """
    if not uptime or not start_uptime:
        return at
    return start + max(uptime - start_uptime, 0)


def eta(start: int, now: int, durations: Collection[float]) -> int | None:
    """When a run that is still going may end, in ns, judged by past durations.

    start + the median of those past durations that were longer than this run already is: the
    median residual life of the empirical distribution (Schmittlein and Morrison, "The Median
    Residual Lifetime", 1981). None once it has outlasted all of them.
    """
    elapsed = (now - start) / SECOND
    usual = percentile([d for d in durations if d > elapsed], 50)
    return None if usual is None else start + round(usual * SECOND)


def bucket_index(seconds: float) -> int:
    """Index into the counts of a histogram over `DURATION_BUCKETS`; the last one is the overflow.

    A bound belongs to the bucket below it, as in OTLP's explicit histograms.
    """
    return bisect_left(DURATION_BUCKETS, seconds)


def scheduled_time(
    schedule: Schedule | None, sla: Sla, start: int, met: Callable[[int], bool]
) -> int | None:
    """The tick a run that started at `start` is for, in ns (decision 13).

    With a maximum age the oldest tick within it that no run has met. Without one the last tick
    before the start, if it is no older than the start grace; else the next one, if the run is no
    earlier than the start grace; else the last one all the same. Nobody is early for a tick who is
    nearer to the one before it. None where all are met, or there is no schedule.

    `met` says of a tick's time in ns whether a success or a skip has met it; it is asked of at
    most `MAX_TICKS` ticks.
    """
    if schedule is None:
        return None
    grace = round(sla.start_grace * SECOND)
    upcoming, passed = None, ticks(schedule, start + grace)
    for tick in passed:
        if tick <= start:
            passed = chain([tick], passed)
            if upcoming is not None and upcoming - start > start - tick:
                upcoming = None
            break
        upcoming = tick
    if sla.max_age is None:
        candidates = [tick for tick in (next(passed, None), upcoming) if tick is not None]
        if candidates and start - candidates[0] > grace:
            candidates.reverse()
    else:
        oldest = start - round(sla.max_age * SECOND)
        recent = takewhile(lambda tick: tick >= oldest, islice(passed, MAX_TICKS))
        candidates = [*reversed(list(recent)), *([] if upcoming is None else [upcoming])]
    return next((tick for tick in candidates if not met(tick)), None)


def ticks(schedule: Schedule, latest: int) -> Iterator[int]:
    """Times in ns at which `schedule` is due, backwards from the last one not after `latest`.

    The clock is the declared zone's, and its jumps are taken as Debian's cron takes them: a fixed
    local time that a jump skips is due at the next valid minute, one that comes twice is due the
    first time. A line whose hour or minute starts with ``*`` follows the time that really passes.

    Raises `cronsim.CronSimError` and what `zoneinfo.ZoneInfo` raises; `stagewatch.config` has
    checked both.
    """
    from datetime import datetime, timedelta

    from cronsim import CronSim

    zone = zone_info(schedule.timezone)
    local = datetime.fromtimestamp(latest // SECOND, zone)
    if local.fold:
        # The hour that comes twice is here for the second time: local times later than now have
        # already been due, the first time.
        first = local.replace(fold=0).utcoffset() or timedelta()
        local += first - (local.utcoffset() or timedelta())
    # A tick at `latest` itself is one, and the iterator starts before the time it is given.
    for tick in CronSim(schedule.cron, local + timedelta(seconds=1), reverse=True):
        at = int(tick.timestamp()) * SECOND
        if at <= latest:
            yield at


def zone_info(name: str) -> tzinfo:
    """Time zone of an IANA name; UTC needs no database.

    Raises KeyError, ValueError or OSError for a name that is none.
    """
    if name == "UTC":
        from datetime import UTC

        return UTC
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


_RANDOM_BITS = 56


def sampling_threshold(ratio: float) -> int:
    """The rejection threshold of OpenTelemetry's consistent sampling: of 2**56 values."""
    return round((1 - min(max(ratio, 0.0), 1.0)) * (1 << _RANDOM_BITS))


def threshold_value(ratio: float) -> str:
    """The ``th`` value of a ratio: the threshold in hex without trailing zeros."""
    return f"{sampling_threshold(ratio):014x}".rstrip("0") or "0"


def is_sampled(identity: bytes, limit: int) -> bool:
    """Whether a span or trace, by its random id, belongs to the sample of a `sampling_threshold`:
    always the same answer."""
    return int.from_bytes(identity[-7:], "big") >= limit
