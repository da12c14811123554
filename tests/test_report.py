"""What `stagewatch report` and `stagewatch show` print, by width, colour and content."""

from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from stagewatch import figures
from stagewatch import report as r
from stagewatch.columns import Parts, in_the_middle
from stagewatch.model import Dataset, Operation, Outcome, Role, Stage
from stagewatch.show import show, show_json
from stagewatch.stage_table import stage_table
from stagewatch.tree import MOST_SPANS, tree
from tests.prepared import NOON, SECOND, Span, identity, run, span

FAILED = run(
    2,
    outcome=Outcome.FAILURE,
    error_type="KeyError",
    error_message="column ? is missing",
    error_place="etl.py:12 in transform",
    records_rejected=12,
    cpu_seconds=8.0,
    memory_peak=412_000_000,
    deadline=NOON - 2 * 3600 * SECOND + 4 * SECOND,
)
STAGES = [
    Stage(
        name="extract", calls=1, start=FAILED.start, seconds=4.0, records_in=336_776,
        bytes_in=5_700_000,
    ),
    Stage(name="load", calls=3, failed=1, seconds=6.0, records_out=30, records_rejected=10),
    Stage(name="tiny", calls=5_000, seconds=0.5),
]  # fmt: skip
OPERATIONS = [
    Operation(name="pandas.fillna", stage="extract", calls=1_204, folded=1_204, seconds=0.9),
    Operation(name="pandas.merge", stage="", calls=7, folded=4, seconds=0.2),
    Operation(name="requests.GET", stage="load", calls=9, failed=3, errors={"503": 2, "404": 1}),
]
SPANS = [
    span(FAILED, 2, "flights", 0, 10, span_id=FAILED.span_id, role=Role.RUN, failed=True),
    span(FAILED, 10, "extract", 0, 4, role=Role.STAGE),
    span(
        FAILED,
        11,
        "pandas.read_csv",
        1,
        1,
        parent_span_id=identity(10),
        attributes={"pipeline.dataset.uri": "file:///data/weather.csv"},
    ),
    *(span(FAILED, 20 + i, "load", 4 + 2 * i, 2, role=Role.STAGE) for i in range(3)),
    span(
        FAILED,
        30,
        "GET",
        9,
        0.001,
        parent_span_id=identity(22),
        failed=True,
        attributes={"error.type": "Timeout"},
    ),
]


def printed(shown: RenderableType, width: int, *, colour: bool = False) -> str:
    """As a console of that width shows it."""
    out = io.StringIO()
    console = Console(
        file=out,
        width=width,
        force_terminal=colour,
        color_system="standard" if colour else None,
        legacy_windows=False,
    )
    console.print(shown)
    return out.getvalue()


def picture(width: int, *, everything: bool = False) -> str:
    """The failed run at that width."""
    datasets = [
        Dataset(uri="file:///data/weather.csv", direction="in", stage="extract", rows=26_115),
        Dataset(uri="sqlite:///out.db/flights", direction="out", bytes=2_000_000),
    ]
    return printed(
        show(FAILED, SPANS, STAGES, OPERATIONS, datasets, now=NOON, everything=everything), width
    )


# --- figures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.0456, "46 ms"),
        (0.9996, "1.0 s"),
        (9.84, "9.8 s"),
        (59.96, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (8040, "2h14m"),
        (187_200, "2d04h"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    """A duration has the unit a person would choose, also where rounding crosses it."""
    assert figures.duration(seconds) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (None, "–"),
        (0, "0"),
        (4.25, "4.2"),
        (9_999, "9,999"),
        (10_000, "10.0k"),
        (336_776, "337k"),
        (999_999, "1.00M"),
        (1_250_000, "1.25M"),
    ],
)
def test_count(number: float | None, expected: str) -> None:
    """A count keeps three digits or so."""
    assert figures.count(number) == expected


@given(st.floats(0, 9e14))
def test_count_is_short(number: float) -> None:
    """No count breaks its column."""
    assert len(figures.count(number)) <= 5


@given(st.floats(0, 1), st.integers(1, 80))
def test_bar(share: float, width: int) -> None:
    """A bar fills its column exactly; what is not nothing leaves a mark."""
    bar = figures.bar(share, width)
    assert len(bar) == width
    assert bool(bar.strip()) == (share > 0)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0, "0 %"), (0.0001, "<0.1 %"), (0.025, "2.5 %"), (0.9999, ">99.9 %"), (1, "100 %")],
)
def test_percent(ratio: float, expected: str) -> None:
    """Neither a few errors nor a few survivors are rounded away."""
    assert figures.percent(ratio) == expected


def test_size() -> None:
    """Sizes have decimal units."""
    assert [figures.size(n) for n in (0, 999, 4_200, 412_000_000)] == [
        "0 B",
        "999 B",
        "4.2 kB",
        "412 MB",
    ]


def test_text_of_others_cannot_move_the_cursor() -> None:
    """Escape sequences and line ends in names are taken out."""
    assert figures.plain("a\x1b[2Jb\nc") == "a�[2Jb c"


# --- report -----------------------------------------------------------------------------------


RUNS = [
    run(1, end=None, outcome=None, deadline=NOON - 60 * SECOND),
    FAILED,
    run(3, pipeline="a_pipeline_with_quite_a_long_name", outcome=Outcome.CANCELLATION),
    run(4, records_in=None, records_out=None),
]


@pytest.mark.parametrize("width", [80, 120])
def test_report_fits(width: int) -> None:
    """Every run is one line of the table, no line is wider than the console."""
    shown = printed(r.report(RUNS, r.summarise(RUNS, NOON, {}), NOON, {}), width)
    lines = shown.splitlines()
    assert max(map(cell_len, lines)) <= width
    assert [line.split()[2] for line in lines[1:5]] == [one.run_id[:8] for one in RUNS]
    assert lines[1].split()[4:6] == ["active", "1h00m"]
    assert lines[2].split()[4:7] == ["failure", "10.0", "s"]
    assert "+6 s 337k 18.0k 1,800 <0.1 %" in " ".join(lines[2].split())
    assert " ".join(lines[4].split()).endswith("– – – – 0 %")


@given(st.integers(20, 130))
def test_figures_are_whole_or_not_there(width: int) -> None:
    """No column of figures is cut: a narrow console shows fewer of them."""
    shown = printed(r.RunsTable(tuple(RUNS), NOON), width).splitlines()
    assert max(map(cell_len, shown)) <= width
    assert "…" not in "".join(shown[0].split("pipel")[0])
    for head, cell in (("in", "337k"), ("out", "18.0k"), ("rec/s", "1,800"), ("err", "<0.1 %")):
        assert (head in shown[0].split()) == (cell in shown[2])
    table = printed(stage_table(STAGES, (), NOON), width).splitlines()
    assert max(map(cell_len, table)) <= width
    for head, cell in (("in", "336,776"), ("rejected", "10"), ("bytes in", "5.7 MB")):
        column = re.search(rf"(?<=\s){head}(?=\s|$)", table[0].rstrip())
        whole = any(re.search(rf"\s{cell}(\s|$)", line) for line in table[1:])
        assert bool(column) == whole


def test_silent_columns_go_first() -> None:
    """What says nothing in any row makes room, however important it is elsewhere."""
    calm = (run(4), run(5))
    assert "late" in printed(r.RunsTable(calm, NOON), 100)
    heads = printed(r.RunsTable(calm, NOON), 62).splitlines()[0].split()
    assert "late" not in heads and "in" in heads and "run" in heads


def test_errors_of_a_run_that_failed() -> None:
    """It rejected nothing and counted records: 0 % would read as if all were well."""
    failed = run(2, outcome=Outcome.FAILURE, error_type="KeyError")
    lines = printed(r.RunsTable((failed, run(3)), NOON), 120).splitlines()
    assert lines[1].rstrip().endswith("1,800   –")
    assert lines[2].rstrip().endswith("0 %")


@pytest.mark.parametrize(
    ("uri", "width", "expected"),
    [
        ("file:///a.csv", 20, "file:///a.csv"),
        ("file:///srv/etl/.demo/out/flights.parquet", 32, "file:///…/out/flights.parquet"),
        ("s3://bucket/2026/11/21/a.csv", 20, "s3://bucket/…/a.csv"),
        ("s3://bucket/2026/11/21/a.csv", 12, "…11/21/a.csv"),
        ("no uri, but a long name of a table", 11, "…of a table"),
    ],
)
def test_a_uri_is_cut_in_the_middle(uri: str, width: int, expected: str) -> None:
    """Where it is and what it is stay, what lies between goes."""
    assert in_the_middle(uri, width) == expected


@given(st.text(max_size=40), st.integers(1, 50))
def test_a_cut_uri_fits(uri: str, width: int) -> None:
    """Whatever it is."""
    assert cell_len(in_the_middle(uri, width)) <= width


def test_facts_are_not_torn_apart() -> None:
    """A line is broken between facts, not between a number and its unit."""
    facts = Text("0.1 cores now, 4.5 s CPU, 353 MB memory (peak 354 MB), 3 threads")
    lead = Text("used  ")
    for width in range(34, 80):
        lines = printed(Parts(facts, lead), width).splitlines()
        assert max(map(cell_len, lines)) <= width
        assert " ".join(line[6:].rstrip() for line in lines) == facts.plain
        assert all(line.rstrip().endswith((",", "threads")) for line in lines)


def test_a_stage_that_was_called_off_says_why() -> None:
    """SIGTERM is no failure, so the span has none; its cause is beside the bar all the same."""
    ended = span(FAILED, 10, "load", 0, 4, role=Role.STAGE, attributes={"error.type": "terminated"})
    assert tree(FAILED, [ended], [], [], now=NOON)[1].note == "terminated"


def test_bars_compare_runs() -> None:
    """The longest run fills the column of bars, a run half as long half of it."""
    runs = [run(1), run(2, end=run(2).start + 5 * SECOND)]
    first, second = printed(r.RunsTable(tuple(runs), NOON), 120).splitlines()[1:]
    assert first.count("█") == 2 * second.count("█") > 0


def test_summary_line() -> None:
    """Each pipeline says how its runs went, what is usual and when it last worked."""
    shown = printed(r.report(RUNS, r.summarise(RUNS, NOON, {"flights": 12.3}), NOON, {}), 200)
    assert (
        "flights: 3 runs, 1 success, 1 failure, 1 active, 2 late · usually 12.3 s · "
        "last success 4h00m ago"
    ) in shown
    assert "a_pipeline_with_quite_a_long_name: 1 run, 1 cancellation" in shown


def test_outcomes_are_coloured_and_said() -> None:
    """Colour is only beside the word; without a terminal there is none."""
    shown = r.report(RUNS, (), NOON, {})
    assert "\x1b[31mfailure" in printed(shown, 120, colour=True)
    assert "\x1b" not in printed(shown, 120)


def test_report_json() -> None:
    """Keys and units of the machine's report are what the docstring promises."""
    found = r.report_json([FAILED], r.summarise([FAILED], NOON, {"flights": 12.3}), NOON, {})
    assert json.loads(json.dumps(found)) == {
        "runs": [
            {
                "run_id": "00000002" + "0" * 24,
                "trace_id": "02" * 16,
                "pipeline": "flights",
                "active": False,
                "outcome": "failure",
                "start": "2026-11-21T10:00:00.000Z",
                "end": "2026-11-21T10:00:10.000Z",
                "duration": 10.0,
                "scheduled": None,
                "attempt": 1,
                "deadline": "2026-11-21T10:00:04.000Z",
                "lateness": 6.0,
                "records_in": 336_776,
                "records_out": 18_000,
                "records_rejected": 12,
                "throughput": 1800.0,
                "error_ratio": 12 / 18_012,
                "error_type": "KeyError",
                "error_message": "column ? is missing",
                "error_place": "etl.py:12 in transform",
                "cpu_seconds": 8.0,
                "memory_peak": 412_000_000,
                "host": "worker",
                "pid": 4711,
                "wait_status": 0,
                "parent_run_id": None,
                "last_stage": None,
                "last_operation": None,
                "live": None,
            }
        ],
        "pipelines": [
            {
                "pipeline": "flights",
                "runs": 1,
                "outcomes": {"failure": 1},
                "late": 1,
                "usual_duration": 12.3,
                "last_success": None,
            }
        ],
        "advice": {},
    }


# --- the tree ---------------------------------------------------------------------------------


def test_tree_lines() -> None:
    """Parents come before children, children by start, folded calls as counts at their stage."""
    lines = tree(FAILED, SPANS, STAGES, OPERATIONS, now=NOON)
    assert [(line.prefix + line.label, line.seconds, line.note) for line in lines] == [
        ("flights", 10.0, "KeyError"),
        ("├ extract", 4.0, ""),
        ("│ ├ pandas.read_csv weather.csv", 1.0, ""),
        ("│ └ pandas.fillna ×1,204", 0.9, "(folded)"),
        ("├ load", 2.0, ""),
        ("├ load", 2.0, ""),
        ("├ load", 2.0, ""),
        ("│ └ GET", 0.001, "Timeout"),
        ("├ tiny ×5,000", 0.5, "(folded)"),
        ("└ pandas.merge ×4", None, "(folded; all 7 calls took 200 ms)"),
    ]


def test_orphans_hang_under_the_run() -> None:
    """A span whose parent is still open, or was never stored, is shown all the same."""
    orphan = span(FAILED, 5, "orphan", 1, 1, parent_span_id=identity(999))
    lines = tree(FAILED, [orphan], [], [], now=NOON)
    assert [line.prefix + line.label for line in lines] == ["flights", "└ orphan"]


def big(count: int) -> list[Span]:
    """One stage with so many details, the last of which failed, and one that took long."""
    details = [
        span(FAILED, 100 + i, f"call {i}", i / count, 0.001, parent_span_id=identity(10))
        for i in range(count)
    ]
    long = span(FAILED, 50, "long", 0, 3, parent_span_id=identity(10))
    failed = span(FAILED, 51, "bad", 3, 0.0001, parent_span_id=identity(10), failed=True)
    return [SPANS[1], long, *details, failed]


def test_big_tree_is_cut_and_counted() -> None:
    """Of thousands of spans the telling ones are left, and the number of the others is said."""
    lines = tree(FAILED, big(5_000), [], [], now=NOON)
    labels = [line.label for line in lines]
    assert len(lines) <= MOST_SPANS + 2
    assert {"extract", "long", "bad"} <= set(labels)
    shown = sum(label.startswith("call") for label in labels)
    assert labels[-1] == f"… {5_000 - shown:,} more"
    assert len(tree(FAILED, big(5_000), [], [], now=NOON, most=None)) == 5_004


def test_deep_tree() -> None:
    """Depth is no problem, and the branches in front of a name stay short."""
    chain = [
        span(FAILED, 100 + i, f"level {i}", 0, 1, parent_span_id=identity(99 + i))
        for i in range(3_000)
    ]
    lines = tree(FAILED, chain, [], [], now=NOON, most=None)
    assert len(lines) == 3_001
    assert max(len(line.prefix) for line in lines) <= 40


def test_spans_in_a_circle_do_not_hang() -> None:
    """Wrong parents, which only a broken foreign library makes, cost their spans and no more."""
    circle = [
        span(FAILED, 100, "a", 0, 1, parent_span_id=identity(101)),
        span(FAILED, 101, "b", 0, 1, parent_span_id=identity(100)),
    ]
    assert [line.label for line in tree(FAILED, circle, [], [], now=NOON, most=1)] == ["flights"]


# --- show -------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_show_fits_and_says_it_all(width: int) -> None:
    """Header, tree, stages, datasets and error are there, within the console's width."""
    shown = picture(width)
    assert max(map(cell_len, shown.splitlines())) <= width
    for part in (
        "flights  failure (KeyError)",
        FAILED.run_id,
        FAILED.trace_id.hex(),
        "took 10.0 s",
        "late by 6.0 s",
        "336,776 in, 18,000 out, 12 rejected, 1,800 records/s",
        "8.0 s CPU (80 % of a core), 412 MB memory at its peak",
        "pandas.fillna ×1,204",
        "requests.GET: 503     2 load",
        "requests.GET: 404     1 load",
        "read  file:///data/weather.csv",
        "26,115",
        "wrote sqlite:///out.db/flights",
        "KeyError at etl.py:12 in transform",
        "column ? is missing",
    ):
        assert part in shown


def test_bars_share_one_axis() -> None:
    """A stage's bar begins where the one before it ends."""
    lines = picture(120).splitlines()
    extract = next(line for line in lines if "├ extract" in line)
    load = next(line for line in lines if "├ load" in line)
    assert abs(load.index("█") - (extract.rindex("█") + 1)) <= 1
    assert "0 ─" in picture(80)


def test_stages_table() -> None:
    """Records of each stage are exact; a column nobody fills is left out."""
    lines = picture(120).splitlines()
    head = next(line for line in lines if line.startswith("stage "))
    assert head.split() == (
        ["stage", "calls", "took", "in", "out", "rejected", "rec/s", "errors", "bytes", "in"]
    )
    row = next(line for line in lines if line.startswith("load "))
    assert row.split() == ["load", "3", "6.0", "s", "–", "30", "10", "5", "25", "%", "–"]
    row = next(line for line in lines if line.startswith("extract "))
    assert row.split()[-2:] == ["5.7", "MB"]


def test_active_run_is_marked() -> None:
    """A run under way says so, how long so far and how much time is left."""
    active = run(1, end=None, outcome=None, deadline=NOON + 60 * SECOND)
    shown = printed(show(active, [], [], [], [], now=NOON), 80)
    assert "flights  active" in shown
    assert "took 1h00m so far" in shown
    assert "1m00s left" in shown


def test_many_datasets_are_cut() -> None:
    """A job that touches thousands of files still has a readable picture."""
    many = [Dataset(uri=f"file:///data/{i}.csv", direction="in") for i in range(1_000)]
    shown = printed(show(FAILED, [], [], [], many, now=NOON), 80)
    assert "… 960 more" in shown
    everything = printed(show(FAILED, [], [], [], many, now=NOON, everything=True), 80)
    assert "file:///data/999.csv" in everything


def test_show_json() -> None:
    """The machine gets every span, stage, operation and dataset, uncut."""
    found = show_json(FAILED, SPANS, STAGES, OPERATIONS, [], now=NOON)
    assert found["run"]["run_id"] == FAILED.run_id
    assert [stage["name"] for stage in found["stages"]] == ["extract", "load", "tiny"]
    assert found["stages"][1]["error_ratio"] == 0.25
    assert [stage["bytes_in"] for stage in found["stages"]] == [5_700_000, 0, 0]
    assert found["operations"][0]["folded"] == 1_204
    assert found["operations"][2]["errors"] == {"503": 2, "404": 1}
    assert found["spans"][2] == {
        "span_id": "000000000000000b",
        "parent_span_id": "000000000000000a",
        "name": "pandas.read_csv",
        "role": "detail",
        "start": "2026-11-21T10:00:01.000Z",
        "duration": 1.0,
        "failed": False,
        "attributes": {"pipeline.dataset.uri": "file:///data/weather.csv"},
    }


def test_declared_stages_that_never_came() -> None:
    """A misspelled function is said where one looks: on a run that went well without it."""
    done = run()
    shown = printed(show(done, [], STAGES, [], [], now=NOON, declared=["load", "laod"]), 80)
    assert "declared, but never seen in this run: laod" in shown


# --- Spark --------------------------------------------------------------------------------------


def spark_stage(number: int, name: str, **more: object) -> Span:
    attributes = {
        "spark.stage.id": number, "spark.stage.attempt": 0, "spark.stage.name": name, **more,
    }  # fmt: skip
    failed = "error.type" in more
    return span(FAILED, 50 + number, "spark.stage", number, 1, parent_span_id=identity(50),
                failed=failed, attributes=attributes)  # fmt: skip


def test_jobs_and_stages_of_spark_in_the_tree() -> None:
    """Their number and the user's line, what is remarkable, and why one failed."""
    spans = [
        span(FAILED, 50, "spark.job", 0, 9, attributes={"spark.job.id": 2}),
        spark_stage(3, "collect at /srv/etl/etl.py:12"),
        spark_stage(4, "$anonfun$withThreadLocalCaptured$1 at CompletableFuture.java:1768"),
        spark_stage(5, "parquet at NativeMethodAccessorImpl.java:0", **{
            "spark.stage.attempt": 1, "spark.task.skew": 12.4, "spark.task.duration.max": 30.0,
            "spark.spill.disk": 300_000_000,
        }),
        spark_stage(6, "sum at job.py:1", **{
            "spark.task.skew": 40.0, "spark.task.duration.max": 0.2, "spark.spill.disk": 9,
        }),
        spark_stage(7, "count at job.py:2", **{"error.type": "ValueError", "spark.task.skew": 9.0,
                                               "spark.task.duration.max": 30.0}),
        span(FAILED, 60, "spark.stage", 9, 1),
        span(FAILED, 60, "spark.stage", 9, 1),
        span(FAILED, 61, "spark.jobs", 9.5, 1, attributes={"spark.job.id": 7}),
    ]  # fmt: skip
    lines = tree(FAILED, spans, [], [], now=NOON)[1:]
    assert [(line.label, line.note, line.failed) for line in lines] == [
        ("spark.job 2", "", False),
        ("spark.stage 3 collect at etl.py:12", "", False),
        ("spark.stage 4", "", False),
        ("spark.stage 5.1", "skew ×12, spill 300 MB", False),
        ("spark.stage 6 sum at job.py:1", "", False),
        ("spark.stage 7 count at job.py:2", "ValueError", True),
        ("spark.stage", "", False),
        ("spark.jobs", "", False),
    ]


def test_report_says_how_much_advice_there_is() -> None:
    """A column, where any run has some; JSON has it by run."""
    runs = [FAILED, run(3)]
    advice = {FAILED.run_id: 3, "of another": 9}
    with_it, without = (
        printed(r.report(runs, r.summarise(runs, NOON, {}), NOON, {}, found), 160)
        for found in (advice, {})
    )
    assert with_it.splitlines()[0].split()[-1] == "advice"
    assert [line.split()[-1] == "3" for line in with_it.splitlines()[1:3]] == [True, False]
    assert "advice" not in without
    found = r.report_json(runs, [], NOON, {}, advice)
    assert found["advice"] == {FAILED.run_id: 3}
