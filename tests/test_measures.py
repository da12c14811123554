"""The measures: what holds for all inputs, and the days on which clocks jump."""

from __future__ import annotations

import statistics
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stagewatch import measures
from stagewatch.measures import SECOND
from stagewatch.model import Schedule, Sla

NOW = 1_770_000_000 * SECOND
counts = st.integers(0, 10**12)
times = st.integers(0, 2**62)
durations = st.floats(0, 1e9)
samples = st.lists(durations, min_size=1, max_size=50)


def at(text: str) -> int:
    """Nanoseconds of an ISO time with offset."""
    return int(datetime.fromisoformat(text).timestamp()) * SECOND


def unmet(_tick: int) -> bool:
    """No slot is met."""
    return False


# --- throughput and errors ----------------------------------------------------------------------


@given(counts, counts, st.floats(1e-6, 1e9))
def test_throughput_is_out_over_seconds(records_in: int, out: int, seconds: float) -> None:
    """Out decides where it is known, be it zero, else in."""
    assert out / seconds == measures.throughput(records_in, out, seconds)
    assert records_in / seconds == measures.throughput(records_in, None, seconds)


@pytest.mark.parametrize(
    ("records_in", "out", "seconds"), [(None, None, 1.0), (1, 1, 0.0), (1, 1, -1.0), (1, 1, None)]
)
def test_throughput_of_the_unknown(
    records_in: int | None, out: int | None, seconds: float | None
) -> None:
    """Without records or time there is none."""
    assert measures.throughput(records_in, out, seconds) is None


@given(st.none() | counts, counts, st.booleans())
def test_error_ratio_is_a_ratio(out: int | None, rejected: int, failed: bool) -> None:
    """It stays within 0 … 1 and is what its formula says."""
    ratio = measures.error_ratio(out, rejected, failed=failed)

    assert 0 <= ratio <= 1
    if (out or 0) + rejected:
        assert rejected / ((out or 0) + rejected) == ratio
    else:
        assert float(failed) == ratio


@given(counts, counts, st.integers(1, 10**6))
def test_error_ratio_grows_with_rejects(out: int, rejected: int, more: int) -> None:
    """More rejected records never make it smaller."""
    less = measures.error_ratio(out, rejected, failed=False)

    assert less <= measures.error_ratio(out, rejected + more, failed=False)


# --- deadlines ----------------------------------------------------------------------------------


def test_deadline_counts_from_the_scheduled_time() -> None:
    """What is scheduled has its deadline after the schedule, whenever it started."""
    sla = Sla(deadline=2700.0, max_duration=60.0)

    assert measures.deadline(NOW, NOW + 99 * SECOND, sla) == NOW + 2700 * SECOND


@pytest.mark.parametrize(
    ("scheduled", "sla", "seconds"),
    [
        (None, Sla(deadline=2700.0, max_duration=60.0), 60),
        (NOW - 500 * SECOND, Sla(max_duration=60.0), 60),
        (None, Sla(deadline=2700.0), None),
        (NOW, Sla(), None),
    ],
)
def test_deadline_else_counts_from_the_start(
    scheduled: int | None, sla: Sla, seconds: int | None
) -> None:
    """Without schedule or promise after it, the maximum duration counts."""
    expected = None if seconds is None else NOW + seconds * SECOND

    assert expected == measures.deadline(scheduled, NOW, sla)


@given(st.none() | times, times)
def test_lateness_is_never_negative(deadline: int | None, end: int) -> None:
    """Zero until the deadline, then the distance to it."""
    late = measures.lateness(deadline, end)

    assert late >= 0
    assert (late > 0) == (deadline is not None and end > deadline)
    if deadline is not None and end > deadline:
        assert (end - deadline) / SECOND == late


# --- percentiles, usual duration, ETA -----------------------------------------------------------


@given(st.lists(durations, min_size=2, max_size=50), st.integers(1, 99))
def test_percentile_agrees_with_the_standard_library(values: list[float], q: int) -> None:
    """`statistics.quantiles` in its inclusive form is the same definition."""
    expected = statistics.quantiles(values, n=100, method="inclusive")[q - 1]

    assert pytest.approx(expected, rel=1e-9, abs=1e-300) == measures.percentile(values, q)


@given(samples, st.floats(0, 100), st.floats(0, 100))
@example([0.1, 0.3], 49.99999999999999, 50.0)
def test_percentile_is_ordered_and_bounded(values: list[float], a: float, b: float) -> None:
    """It lies within the values and never falls when `q` grows."""
    low, high = (measures.percentile(values, q) for q in sorted((a, b)))

    assert low is not None and high is not None
    assert min(values) <= low <= high <= max(values)


def test_percentile_ends_and_nothing() -> None:
    """0 is the least, 100 the greatest, and of nothing there is none."""
    assert measures.percentile([3.0, 1.0, 2.0], 0) == 1.0
    assert measures.percentile([3.0, 1.0, 2.0], 100) == 3.0
    assert measures.percentile([], 50) is None


@pytest.mark.parametrize("q", [-1, 101, float("nan")])
def test_percentile_refuses_what_is_none(q: float) -> None:
    """A `q` outside 0 … 100 is an error of the caller."""
    with pytest.raises(ValueError, match="not a percentile"):
        measures.percentile([1.0], q)


def test_usual_duration_is_a_median_of_enough() -> None:
    """One outlier does not move it, and two runs do not make a habit."""
    assert measures.usual_duration([60.0, 61.0, 3600.0]) == 61.0
    assert measures.usual_duration([60.0, 61.0]) is None


def test_eta_looks_at_those_that_took_longer() -> None:
    """As a run goes on, the runs it has outlasted say nothing any more."""
    past = [60.0, 100.0, 300.0]

    assert measures.eta(NOW, NOW, past) == NOW + 100 * SECOND
    assert measures.eta(NOW, NOW + 90 * SECOND, past) == NOW + 200 * SECOND
    assert measures.eta(NOW, NOW + 300 * SECOND, past) is None


@given(samples, st.integers(0, 10**18))
def test_eta_lies_ahead(past: list[float], elapsed: int) -> None:
    """An expected end is never behind us (rounded to a nanosecond)."""
    expected = measures.eta(NOW, NOW + elapsed, past)

    assert expected is None or expected >= NOW + elapsed - 1


def test_progress_is_never_all_of_it() -> None:
    """Not while it runs, whatever was expected; unknown where nothing was."""
    found = [measures.progress(done, 200.0) for done in (0, 50, 500, -1)]
    assert found == [0.0, 0.25, measures.MOST_PROGRESS, 0.0]
    assert (measures.progress(5, None), measures.progress(5, 0)) == (None, None)


def test_what_remains_goes_on_as_it_went() -> None:
    """A quarter took 10 s, so the rest takes 30."""
    assert measures.remaining(10 * SECOND, 0.25) == 30 * SECOND


def test_a_moment_by_the_uptime() -> None:
    """Where the uptime is known at both ends the clock says nothing; never before the start."""
    assert measures.moment(NOW - 5, 70, NOW, 60) == NOW + 10
    assert measures.moment(NOW - 5, 50, NOW, 60) == NOW
    assert [measures.moment(NOW - 5, *known) for known in ((0, NOW, 60), (70, NOW, 0))] == [
        NOW - 5, NOW - 5,
    ]  # fmt: skip


# --- buckets ------------------------------------------------------------------------------------


def test_buckets_reach_from_10_ms_to_a_day() -> None:
    """The bounds are sorted, unique and cover what pipelines take."""
    bounds = measures.DURATION_BUCKETS

    assert sorted(set(bounds)) == list(bounds)
    assert (bounds[0], bounds[-1]) == (0.01, 86400.0)


@given(st.floats(0, 1e6))
@example(0.01)
@example(86400.0)
def test_bucket_holds_its_value(seconds: float) -> None:
    """Lower bound < value ≤ upper bound."""
    bounds = (float("-inf"), *measures.DURATION_BUCKETS, float("inf"))
    index = measures.bucket_index(seconds)

    assert bounds[index] < seconds <= bounds[index + 1]


# --- ticks --------------------------------------------------------------------------------------


def recent(cron: str, zone: str, latest: str, number: int) -> list[str]:
    """The last `number` ticks, oldest first, in UTC."""
    found = islice(measures.ticks(Schedule(cron, zone), at(latest)), number)
    return [f"{datetime.fromtimestamp(t // SECOND, UTC):%d %H:%M}" for t in found][::-1]


def test_a_skipped_time_is_due_at_the_next_valid_one() -> None:
    """02:30 does not exist on 29 March 2026 in Berlin: 03:00 summer time is 01:00 UTC."""
    found = recent("30 2 * * *", "Europe/Berlin", "2026-03-30T12:00:00+00:00", 3)

    assert found == ["28 01:30", "29 01:00", "30 00:30"]


def test_a_doubled_time_is_due_once() -> None:
    """02:30 comes twice on 25 October 2026 in Berlin: the first one, 00:30 UTC, counts."""
    found = recent("30 2 * * *", "Europe/Berlin", "2026-10-26T12:00:00+00:00", 3)

    assert found == ["24 00:30", "25 00:30", "26 01:30"]


def test_a_doubled_time_seen_from_within_the_second_hour() -> None:
    """At 02:15 for the second time, 02:30 has already been due."""
    found = recent("30 2 * * *", "Europe/Berlin", "2026-10-25T01:15:00+00:00", 1)

    assert found == ["25 00:30"]


def test_times_that_one_jump_skips_are_due_together_once() -> None:
    """02:00 and 02:30 both move to 03:00, which is one tick."""
    found = recent("0,30 2 * * *", "Europe/Berlin", "2026-03-30T12:00:00+00:00", 4)

    assert found == ["28 01:30", "29 01:00", "30 00:00", "30 00:30"]


def test_hourly_ticks_follow_real_time() -> None:
    """A job of every hour runs every hour, whatever the clock shows."""
    skipped = recent("30 * * * *", "Europe/Berlin", "2026-03-29T02:00:00+00:00", 3)
    doubled = recent("30 * * * *", "Europe/Berlin", "2026-10-25T02:00:00+00:00", 3)

    assert skipped == ["28 23:30", "29 00:30", "29 01:30"]
    assert doubled == ["24 23:30", "25 00:30", "25 01:30"]


@settings(deadline=None, max_examples=60)
@given(
    cron=st.sampled_from(
        ["30 2 * * *", "0,20,40 1,2,3 * * *", "15 0 * * *", "*/30 * * * *", "5 */2 * * *"]
    ),
    zone=st.sampled_from(
        ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Africa/Cairo"]
    ),
    start=st.integers(at("2024-01-01T00:00:00+00:00"), at("2027-01-01T00:00:00+00:00")),
)
@example("15 0 * * *", "Africa/Cairo", at("2026-04-24T12:00:00+00:00"))
@example("0,20,40 1,2,3 * * *", "Australia/Lord_Howe", at("2026-04-05T06:00:00+00:00"))
def test_backwards_finds_what_forwards_finds(cron: str, zone: str, start: int) -> None:
    """Two days of ticks are the same set from both ends, none doubled, none later than asked."""
    backwards = []
    for tick in measures.ticks(Schedule(cron, zone), start):
        if tick < start - 2 * 86400 * SECOND:
            break
        backwards.append(tick)
    begin = datetime.fromtimestamp(start // SECOND, UTC) - timedelta(days=5)
    forwards = set()
    for moment in CronSim(cron, begin.astimezone(ZoneInfo(zone))):
        tick = int(moment.timestamp()) * SECOND
        if tick > start + 3 * 86400 * SECOND:
            break
        if start - 2 * 86400 * SECOND <= tick <= start:
            forwards.add(tick)

    assert sorted(backwards, reverse=True) == backwards
    assert sorted(forwards, reverse=True) == backwards


# --- scheduled time -----------------------------------------------------------------------------

DAILY = Schedule("0 6 * * *")
LAST = at("2026-02-10T06:00:00+00:00")
DAY = 86400 * SECOND


def test_without_a_schedule_nothing_is_scheduled() -> None:
    """No schedule, no slot."""
    assert measures.scheduled_time(None, Sla(), NOW, unmet) is None


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (LAST, LAST),
        (LAST + 3 * 3600 * SECOND, LAST),
        (LAST - 300 * SECOND, LAST),
        (LAST - 301 * SECOND, LAST - DAY),
    ],
    ids=["on time", "hours late", "within the grace", "before the grace"],
)
def test_newest_tick_without_maximum_age(start: int, expected: int) -> None:
    """A run is for the last tick, or for the one that its grace reaches."""
    assert expected == measures.scheduled_time(DAILY, Sla(), start, unmet)


@pytest.mark.parametrize(
    ("start", "met", "expected"),
    [(1, (), 0), (64, (), 0), (10, (0,), None), (110, (0,), 120), (121, (0,), 120)],
    ids=["at its tick", "a minute late", "once more", "early for the next", "the next"],
)
def test_ticks_closer_than_the_grace(start: int, met: tuple[int, ...], expected: int) -> None:
    """A job that runs every other minute is for the tick that started it, not for one to come."""
    done = {LAST + tick * SECOND for tick in met}.__contains__
    found = measures.scheduled_time(Schedule("*/2 * * * *"), Sla(), LAST + start * SECOND, done)
    assert found == (None if expected is None else LAST + expected * SECOND)


def test_a_met_tick_is_not_asked_twice() -> None:
    """A second run on the same day is for nothing that was scheduled."""
    met = {LAST}.__contains__

    assert measures.scheduled_time(DAILY, Sla(), LAST + SECOND, met) is None


def test_the_oldest_unmet_tick_within_the_maximum_age() -> None:
    """Missed days are caught up from the oldest, but not from before the maximum age."""
    sla = Sla(max_age=3.5 * 86400)
    met = {LAST - 2 * DAY}.__contains__
    start = LAST + SECOND

    assert measures.scheduled_time(DAILY, sla, start, met) == LAST - 3 * DAY
    met = {LAST - 2 * DAY, LAST - 3 * DAY}.__contains__
    assert measures.scheduled_time(DAILY, sla, start, met) == LAST - DAY
    met = {LAST - n * DAY for n in range(4)}.__contains__
    assert measures.scheduled_time(DAILY, sla, start, met) is None


def test_a_tick_of_just_the_maximum_age_still_counts() -> None:
    """The bound itself is not older than the bound."""
    sla = Sla(max_age=86400.0)

    assert measures.scheduled_time(DAILY, sla, LAST, unmet) == LAST - DAY


def test_looking_back_is_bounded() -> None:
    """A tick a minute for a year does not hold up a job's start."""
    asked = []

    def met(tick: int) -> bool:
        asked.append(tick)
        return True

    sla = Sla(max_age=365.0 * 86400)

    assert measures.scheduled_time(Schedule("* * * * *"), sla, NOW, met) is None
    assert len(asked) == measures.MAX_TICKS
