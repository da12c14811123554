"""What `show` and `report` print of a run under way, and what was said of one that is over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs
from rich.cells import cell_len

from stagewatch import figures, in_flight, semconv
from stagewatch import report as r
from stagewatch.model import Doing, Live, Notice, Operation, Outcome, Role, Stage
from stagewatch.show import show, show_json
from stagewatch.tree import MOST_SPANS, tree
from tests.prepared import NOON, SECOND, active, identity, live_stage, run, span
from tests.test_report import printed

RUN = active(1, deadline=NOON - 185 * SECOND)
LOAD = live_stage(
    RUN,
    20,
    "load",
    1800,
    operation="pandas.to_sql",
    operation_start=NOON - 900 * SECOND,
    records_in=300_000,
    records_out=120_000,
    throughput=12_345.0,
    cpu_seconds=1_000.0,
    memory_peak=481_000_000,
)
LIVE = Live(
    at=NOON - SECOND,
    stages=(LOAD,),
    progress=0.52,
    estimated_end=NOON + 65 * SECOND,
    throughput=12_000.0,
    cpu_seconds=3_000.0,
    cpu_share=1.2,
    memory=412_000_000,
    memory_peak=481_000_000,
    processes=5,
    threads=12,
    read_bytes=5_700_000,
    written_bytes=8_000_000,
)
SPANS = [
    span(
        RUN, 10, "extract", 0, 1700, role=Role.STAGE, attributes={"pipeline.stage.name": "extract"}
    ),
    span(RUN, 11, "pandas.merge", 1900, 60, parent_span_id=LOAD.span_id),
]
LATE = Notice(
    at=NOON - 185 * SECOND,
    name=semconv.RUN_LATE,
    attributes={
        semconv.RUN_LATENESS: 2.5,
        semconv.ESCALATION: "warning",
        semconv.RUN_STAGE: "load",
    },
)
DIED = Notice(
    at=NOON - 60 * SECOND,
    name=semconv.PROCESS_DIED,
    attributes={semconv.PROCESS_PID: 4712, semconv.ERROR_TYPE: "killed"},
)


def picture(width: int, live: Live | None = LIVE, **changes: Any) -> str:
    """The run under way at that width."""
    stages = [Stage(name="extract", calls=1, start=RUN.start, seconds=1700.0)]
    return printed(show(RUN, SPANS, stages, [], [], now=NOON, live=live, **changes), width)


# --- show -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_show_of_a_run_in_flight(width: int) -> None:
    """Head, progress, figures so far and lateness are there, within the console's width."""
    shown = picture(width)
    assert max(map(cell_len, shown.splitlines())) <= width
    words = " ".join(shown.split())
    for part in (
        "flights running",
        "took 1h00m so far",
        "late by 3m05s",
        "doing load, in pandas.to_sql",
        "52 %, about 1m05s to go, until ",
        "336,776 in, 18,000 out, 12.0k records/s in the last minute",
        "1.2 cores now, 50m00s CPU, 412 MB memory (peak 481 MB), 5.7 MB read, 8.0 MB written, "
        "5 processes, 12 threads",
    ):
        assert part in words


def test_child_runs_are_shown_under_it() -> None:
    """The newest first; the JSON has all of them."""
    queries = [
        structs.replace(run(number, pipeline=f"flights.q{number}"), parent_run_id=RUN.run_id)
        for number in range(30, 52)
    ]
    shown = picture(120, child_runs=queries)
    assert "flights.q30 success" in " ".join(shown.split())
    assert ("flights.q49" in shown, "flights.q50" in shown) == (True, False)
    assert "… 2 more" in shown
    assert "flights.q51" in picture(120, child_runs=queries, everything=True)
    found = show_json(RUN, [], [], [], [], now=NOON, child_runs=queries)["child_runs"]
    assert [one["pipeline"] for one in found] == [query.pipeline for query in queries]


def test_lateness_is_red_and_what_is_likely_yellow() -> None:
    """Late now is a fact; an estimated end past the deadline is a warning."""
    late = printed(show(RUN, [], [], [], [], now=NOON, live=LIVE), 120, colour=True)
    assert "\x1b[31m" in next(line for line in late.splitlines() if "deadline" in line)
    coming = structs.replace(RUN, deadline=NOON + 5 * SECOND)
    shown = printed(show(coming, [], [], [], [], now=NOON, live=LIVE), 120, colour=True)
    line = next(line for line in shown.splitlines() if "deadline" in line)
    assert "5.0 s left" in line
    assert "\x1b[33mlikely late by 1m00s" in line


def test_waiting_and_stuck_say_since_when() -> None:
    """What it waits for: the open operation, or what the recorder saw it wait for."""
    since = NOON - 720 * SECOND
    waiting = structs.replace(LIVE, doing=Doing.WAITING, since=since, waits_for="operation")
    head = picture(120, waiting).splitlines()[0]
    assert head.startswith("flights  waiting for pandas.to_sql since ")
    assert head.endswith("(12m00s)")
    socket = structs.replace(waiting, waits_for="socket")
    assert picture(120, socket).startswith("flights  waiting for a socket since ")
    unreadable = structs.replace(waiting, waits_for="unreadable", stages=())
    assert picture(120, unreadable).startswith("flights  waiting since ")
    stuck = structs.replace(LIVE, doing=Doing.STUCK, since=since)
    assert picture(120, stuck).startswith("flights  stuck since ")


def test_a_run_that_nobody_watches_says_so() -> None:
    """Figures that are old are not passed off as new ones."""
    assert "no recorder watches it now" not in picture(120)
    old = structs.replace(LIVE, at=NOON - 60 * SECOND)
    assert "1m00s ago: no recorder watches it now" in picture(120, old)


def test_a_young_run_has_no_figures_yet() -> None:
    """Before a recorder has looked there is the run's row and nothing else."""
    shown = picture(80, None)
    assert "flights  active" in shown
    assert "open" not in shown


def test_open_stages_reach_now() -> None:
    """Open stages stand in the tree with what ended in them and the open operation beneath."""
    lines = tree(RUN, SPANS, [], [], now=NOON, live=LIVE)
    assert [(line.prefix + line.label, line.seconds, line.note) for line in lines] == [
        ("flights", 3600.0, "running"),
        ("├ extract", 1700.0, ""),
        ("└ load …", 1800.0, "open"),
        ("  ├ pandas.merge", 60.0, ""),
        ("  └ pandas.to_sql …", 900.0, "open"),
    ]
    bars = [line for line in picture(120).splitlines() if "█" in line and " open" in line]
    run_bar = next(
        line for line in picture(120).splitlines() if line.startswith("flights  ") and "█" in line
    )
    assert {line.rindex("█") for line in bars} == {run_bar.rindex("█")}
    assert [line.count("█") for line in bars] == [24, 12]


def test_open_operation_of_no_stage() -> None:
    """It hangs under the run."""
    live = Live(at=NOON, operation="pandas.merge", operation_start=NOON - 5 * SECOND)
    lines = tree(RUN, [], [], [], now=NOON, live=live)
    assert [(line.prefix + line.label, line.seconds) for line in lines[1:]] == [
        ("└ pandas.merge …", 5.0)
    ]


def test_a_stage_that_has_ended_since_is_not_open() -> None:
    """The recorder's last look may be older than the last span."""
    ended = span(RUN, 20, "load", 1800, 1700, role=Role.STAGE)
    labels = [line.label for line in tree(RUN, [ended], [], [], now=NOON, live=LIVE)]
    assert labels == ["flights", "load"]


def test_open_stages_are_never_cut() -> None:
    """However many stages have ended, what is open is shown; folded calls count only ended ones."""
    ended = [
        span(
            RUN,
            100 + i,
            "load",
            i,
            1700,
            role=Role.STAGE,
            attributes={"pipeline.stage.name": "load"},
        )
        for i in range(MOST_SPANS + 20)
    ]
    young = structs.replace(LIVE, stages=(structs.replace(LOAD, start=NOON - SECOND),))
    stages = [Stage(name="load", calls=len(ended) + 3, seconds=1e6)]
    operations = [Operation(name="pandas.fillna", stage="load", calls=2, folded=2)]
    labels = [line.label for line in tree(RUN, ended, stages, operations, now=NOON, live=young)]
    assert "load …" in labels
    assert "load ×3" in labels
    assert "pandas.fillna ×2" in labels


def test_lost_parents_are_made_up_for_by_the_stage() -> None:
    """What ran inside an operation that has not ended hangs under its stage, not under the run."""
    lost = span(
        RUN, 30, "GET", 1900, 1, parent_span_id=identity(99),
        attributes={semconv.STAGE_NAME: "load"},
    )  # fmt: skip
    elsewhere = structs.replace(lost, span_id=identity(31), start=RUN.start, end=RUN.start + 1)
    lines = tree(RUN, [lost, elsewhere], [], [], now=NOON, live=LIVE)
    assert [line.prefix + line.label for line in lines] == [
        "flights",
        "├ GET",
        "└ load …",
        "  ├ GET",
        "  └ pandas.to_sql …",
    ]


def test_table_of_stages_has_the_open_ones() -> None:
    """With their records, speed, CPU and memory so far; a pool's are added up, its CPU once."""
    row = next(line for line in picture(120).splitlines() if line.startswith("load …  "))
    assert row.split() == [
        "load", "…", "1", "open", "30m00s", "300,000", "120,000", "12.3k", "16m40s", "481", "MB",
    ]  # fmt: skip
    chunks = tuple(
        live_stage(RUN, 40 + i, "chunk", 10, pid=1 + i // 2, records_out=5, cpu_seconds=2.0)
        for i in range(4)
    )
    shown = picture(120, structs.replace(LIVE, stages=chunks))
    assert "doing     chunk ×4, in " not in shown
    assert "doing     chunk ×4" in shown
    row = next(line for line in shown.splitlines() if line.startswith("chunk …"))
    assert row.split()[2:] == ["4", "open", "59m50s", "20", "4.0", "s"]


def test_notices_are_a_short_list() -> None:
    """Each with its time and particulars, the stack of a stuck run beneath, long ones cut."""
    stack = "\n".join(f"    frame {n}" for n in range(30))
    stuck = Notice(
        at=NOON - 30 * SECOND,
        name=semconv.RUN_STUCK,
        attributes={semconv.RUN_OPERATION: "GET", semconv.STACKTRACE: stack},
    )
    slow = Notice(
        at=NOON - 20 * SECOND,
        name=semconv.STAGE_SLOW,
        attributes={semconv.STAGE_NAME: "load", semconv.STAGE_THROUGHPUT: 120.0},
    )
    long = Notice(
        at=NOON - 10 * SECOND,
        name=semconv.STAGE_LATE,
        attributes={semconv.STAGE_NAME: "load", semconv.STAGE_LATENESS: 60.0},
    )
    begun = Notice(at=RUN.start, name=semconv.RUN_STARTED, attributes={})
    shown = picture(120, notices=[begun, LATE, DIED, stuck, slow, long])
    for at, words in (
        (LATE.at, "run late by 2.5 s, warning, in load"),
        (DIED.at, "process died, 4712 killed"),
        (stuck.at, "run stuck, in GET"),
        (slow.at, "stage slow, 120 records/s, in load"),
        (long.at, "stage late by 1m00s, in load"),
    ):
        assert f"{figures.clock(at, NOON)}  {words}\n" in shown
    assert "run started" not in shown
    assert "frame 19" in shown and "frame 20" not in shown
    assert "… 10 more" in shown
    assert "frame 29" in picture(120, notices=[stuck], everything=True)
    assert "… 18 before" in picture(120, notices=[slow] * 30)


def test_a_dead_run_says_where_it_died() -> None:
    """Stage and operation, with the cause; and what was said while it ran."""
    dead = run(
        1, outcome=Outcome.ERROR, error_type="killed", last_stage="load", last_operation="GET"
    )
    shown = printed(show(dead, [], [], [], [], now=NOON, live=LIVE, notices=[LATE]), 80)
    assert "killed in load, in GET" in shown
    assert "run late by 2.5 s, warning" in shown
    assert "open" not in shown


def test_show_json_of_a_run_in_flight() -> None:
    """All of it, with documented keys."""
    found = json.loads(
        json.dumps(show_json(RUN, [], [], [], [], now=NOON, live=LIVE, notices=[DIED]))
    )
    assert found["notices"] == [
        {
            "at": "2026-11-21T11:59:00.000Z",
            "name": "process died",
            "attributes": {"process.pid": 4712, "error.type": "killed"},
        }
    ]
    live = found["run"]["live"]
    (stage,) = live.pop("stages")
    assert live == {
        "at": "2026-11-21T11:59:59.000Z",
        "doing": "running",
        "since": None,
        "waits_for": None,
        "operation": None,
        "operation_start": None,
        "progress": 0.52,
        "estimated_end": "2026-11-21T12:01:05.000Z",
        "throughput": 12_000.0,
        "cpu_seconds": 3_000.0,
        "cpu_share": 1.2,
        "memory": 412_000_000,
        "memory_peak": 481_000_000,
        "processes": 5,
        "threads": 12,
        "read_bytes": 5_700_000,
        "written_bytes": 8_000_000,
    }
    assert stage == {
        "name": "load",
        "span_id": "0000000000000014",
        "parent_span_id": "0000000000000001",
        "pid": 4711,
        "start": "2026-11-21T11:30:00.000Z",
        "duration": 1800.0,
        "operation": "pandas.to_sql",
        "operation_start": "2026-11-21T11:45:00.000Z",
        "records_in": 300_000,
        "records_out": 120_000,
        "records_rejected": 0,
        "throughput": 12_345.0,
        "cpu_seconds": 1_000.0,
        "memory_peak": 481_000_000,
        "expected_records": None,
    }
    assert show_json(run(1), [], [], [], [], now=NOON, live=LIVE)["run"]["live"] is None


def test_progress_is_whole_only_when_it_is() -> None:
    """99.9 % is not done."""
    assert [in_flight.whole_percent(p) for p in (0.0, 0.529, 0.999, 1.0, 1.7)] == [
        "0 %", "52 %", "99 %", "100 %", "100 %",
    ]  # fmt: skip


# --- report -----------------------------------------------------------------------------------


def test_report_says_what_active_runs_do() -> None:
    """In the table by a word, below it in a line each; in JSON under `live`."""
    waiting = structs.replace(LIVE, doing=Doing.WAITING, since=NOON - 720 * SECOND)
    runs = [active(1), active(2), active(3), run(4)]
    lives = {runs[0].run_id: LIVE, runs[1].run_id: waiting}
    summaries = r.summarise(runs, NOON, {})
    lines = printed(r.report(runs, summaries, NOON, lives), 100).splitlines()
    words = [line.split()[4] for line in lines[1:5]]
    assert words == ["running", "waiting", "active", "success"]
    assert lines[6:8] == [
        "00000001 flights: running in load, in pandas.to_sql · 52 % · about 1m05s to go",
        "00000002 flights: waiting for pandas.to_sql in load for 12m00s · 52 % · about 1m05s to go",
    ]
    found = r.report_json(runs, summaries, NOON, lives)["runs"]
    assert [one["live"] and one["live"]["doing"] for one in found] == [
        "running", "waiting", None, None,
    ]  # fmt: skip
    assert found[0]["live"]["progress"] == 0.52


def test_clock() -> None:
    """A time of another day comes with its date."""
    assert figures.clock(NOON, NOON) == figures.clock(NOON, NOON + SECOND)
    assert figures.clock(NOON - 2 * 86400 * SECOND, NOON).startswith("11-19 ")


# --- advice -------------------------------------------------------------------------------------


def advised(kind: str, at: int = NOON) -> Notice:
    attributes = {
        semconv.ADVICE_KIND: kind,
        semconv.ADVICE_EVIDENCE: "pyspark.collect at etl.py:12, Spark stage 7: 100 tasks, slow",
        semconv.ADVICE_REMEDY: "salt the key",
    }
    return Notice(at=at, name=semconv.ADVICE, attributes=attributes)


@pytest.mark.parametrize("live", [LIVE, None], ids=["while it runs", "afterwards"])
def test_advice_stands_under_the_stages(live: Live | None) -> None:
    """Kind, evidence and what to change; it is no news among the others. Long lists are cut."""
    shown = picture(120, live, notices=[LATE, advised("skew"), advised("spill")])
    lines = shown.splitlines()
    start = lines.index("advice")
    assert start > next(i for i, line in enumerate(lines) if line.startswith("stage "))
    assert lines[start + 1 : start + 5] == [
        "skew  pyspark.collect at etl.py:12, Spark stage 7: 100 tasks, slow",
        "  → salt the key",
        "spill  pyspark.collect at etl.py:12, Spark stage 7: 100 tasks, slow",
        "  → salt the key",
    ]
    assert "run late" in shown and shown.count("skew") == 1
    many = [advised(f"kind{number}") for number in range(20)]
    assert "… 8 more" in picture(120, live, notices=many)
    assert "kind19" in picture(120, live, notices=many, everything=True)
    assert "advice" not in picture(120, live, notices=[LATE])


def test_advice_of_a_newer_version_is_shown_as_far_as_it_goes() -> None:
    """Attributes may be missing, or hold what moves the cursor."""
    bare = Notice(at=NOON, name=semconv.ADVICE, attributes={semconv.ADVICE_EVIDENCE: "a\x1b[2Jb"})
    assert "advice  a\N{REPLACEMENT CHARACTER}[2Jb" in picture(120, notices=[bare])


def test_advice_as_json() -> None:
    """By itself, and among the notices."""
    found = show_json(RUN, [], [], [], [], now=NOON, notices=[LATE, advised("skew")])
    assert found["advice"] == [
        {
            "at": "2026-11-21T12:00:00.000Z",
            "kind": "skew",
            "evidence": "pyspark.collect at etl.py:12, Spark stage 7: 100 tasks, slow",
            "remedy": "salt the key",
        }
    ]
    assert [notice["name"] for notice in found["notices"]] == ["run late", "advice"]
