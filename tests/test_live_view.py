"""What `stagewatch watch` shows, by width and height, and how one gets out of it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from rich.cells import cell_len

from stagewatch import semconv
from stagewatch.database import connect
from stagewatch.history import open_history
from stagewatch.live_view import ENDED_SECONDS, LiveTable, Look, look, look_json
from stagewatch.model import Doing, Live, Notice, Outcome
from tests.jobs import wait_for
from tests.prepared import NOON, SECOND, active, live_stage, run, store
from tests.test_cli import COMMAND, environment, stagewatch
from tests.test_report import printed

CALM = active(2)
LATE = active(1, deadline=NOON - 600 * SECOND, pipeline="daily_sales_of_all_regions")
STUCK = active(3, records_out=None)
YOUNG = active(4, start=NOON - SECOND, records_in=None, records_out=None)
LIVE = Live(
    at=NOON - SECOND,
    stages=(live_stage(CALM, 90, "load", 60, operation="pandas.to_sql"),),
    progress=0.52,
    estimated_end=NOON + 65 * SECOND,
    throughput=12_345.0,
    cpu_share=1.2,
    memory=481_000_000,
)
KILLED = run(
    5,
    end=NOON - 20 * SECOND,
    outcome=Outcome.ERROR,
    error_type="killed",
    last_stage="load",
    last_operation="GET",
)
LIVES = {
    CALM.run_id: LIVE,
    LATE.run_id: structs.replace(LIVE, progress=None, estimated_end=None),
    STUCK.run_id: structs.replace(LIVE, doing=Doing.STUCK, since=NOON - 720 * SECOND),
}
ALL = Look(now=NOON, active=(LATE, STUCK, CALM, YOUNG), lives=LIVES, ended=(KILLED,))
NOTHING = Look(now=NOON, active=(), lives={}, ended=())


def lines(seen: Look, width: int, **more: Any) -> list[str]:
    """As they are printed."""
    return [line.rstrip() for line in printed(LiveTable(seen, **more), width).splitlines()]


# --- the table --------------------------------------------------------------------------------


def test_table_with_room_for_all() -> None:
    """One line for each run, with all there is to say; those that ended come last."""
    title, head, *rows = lines(ALL, 200)
    assert title.split()[:7] == ["4", "under", "way,", "1", "late,", "1", "stuck"]
    assert head.split() == [
        "pipeline", "run", "doing", "stage", "took", "progress", "to", "go", "records", "rec/s",
        "cores", "memory", "late",
    ]  # fmt: skip
    assert [" ".join(row.split()) for row in rows] == [
        "daily_sales_of_all_regions 00000001 running load · pandas.to_sql 1h00m 18.0k 12.3k 1.2 "
        "481 MB +10m",
        "flights 00000003 stuck load · pandas.to_sql 3h00m ████▏ 52 % 1m05s 337k 12.3k 1.2 481 MB",
        "flights 00000002 running load · pandas.to_sql 2h00m ████▏ 52 % 1m05s 18.0k 12.3k 1.2 "
        "481 MB",
        "flights 00000004 active 1.0 s",
        "",
        "just ended",
        "flights 00000005 error killed in load, in GET 5h00m 20.0 s ago 18.0k",
    ]


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (120, "pipeline run doing stage took progress to go records rec/s cores memory late"),
        (80, "pipeline doing stage took progress to go rec/s late"),
        (60, "pipeline doing stage took late"),
        (40, "pipeline doing took late"),
        (10, "pipeline"),
    ],
)
def test_narrow_consoles_lose_the_least_important(width: int, heads: str) -> None:
    """Columns go, lines are never broken."""
    shown = lines(ALL, width)
    assert max(map(cell_len, shown)) <= width
    assert " ".join(shown[1].split()) == heads
    assert len(shown) == 9


@given(st.integers(1, 250), st.integers(0, 3), st.integers(0, 1))
def test_it_always_fits(width: int, under_way: int, ended: int) -> None:
    """Whatever there is to show, no line of the table is wider than the console."""
    seen = structs.replace(ALL, active=ALL.active[:under_way], ended=ALL.ended[:ended])
    assert max(map(cell_len, lines(seen, width))) <= width


@pytest.mark.parametrize("height", [8, 12, 24])
def test_low_consoles_lose_runs_and_say_so(height: int) -> None:
    """Trouble stands on top and stays; how many are not shown is said."""
    many = tuple(active(n) for n in range(1, 31))
    seen = Look(now=NOON, active=(LATE, *many), lives=LIVES, ended=(KILLED,))
    shown = lines(seen, 100, height=height)
    assert len(shown) <= height
    assert shown[2].endswith("+10m")
    rows = sum("flights" in line for line in shown)
    assert shown[-1] == f"… {len(many) - rows} more"
    assert len(lines(seen, 100, height=60)) == 31 + 2 + 3


def test_nothing_runs() -> None:
    """The empty state says how to start a run; those that just ended are there all the same."""
    shown = lines(NOTHING, 80)
    assert shown[0].startswith("0 under way")
    assert shown[-1] == "  opentelemetry-instrument python etl.py"
    ended = lines(structs.replace(NOTHING, ended=(KILLED,)), 80)
    assert "Nothing is running." in ended[2]
    assert "killed in load" in ended[-1]


def test_colours() -> None:
    """Late and stuck are red, what ended is dim, what nobody watches is dim, too."""
    shown = printed(LiveTable(ALL), 200, colour=True).splitlines()
    assert "\x1b[31m   +10m" in shown[2]
    assert "\x1b[1;31mstuck" in shown[3]
    assert "\x1b[2m00000005" in shown[-1]
    assert "\x1b[2m00000002" not in shown[4]
    stale = {CALM.run_id: structs.replace(LIVE, at=NOON - 60 * SECOND)}
    shown = printed(LiveTable(structs.replace(ALL, lives=stale)), 200, colour=True).splitlines()
    assert "\x1b[2m00000002" in shown[4]


def test_a_recorder_that_does_not_answer_is_said() -> None:
    """Old figures are not passed off as new ones."""
    assert "a recorder does not answer" in lines(structs.replace(ALL, is_complete=False), 120)[0]


def test_names_cannot_move_the_cursor() -> None:
    """Names of pipelines, stages and errors come from others."""
    bad = structs.replace(KILLED, pipeline="a\x1b[2J", error_type="b\x07", last_stage="c\nd")
    evil = Live(at=NOON, stages=(live_stage(CALM, 90, "e\x1b[H", 0, operation="f\r"),))
    seen = Look(now=NOON, active=(CALM,), lives={CALM.run_id: evil}, ended=(bad,))
    assert not set("\x1b\x07\r") & set(printed(LiveTable(seen), 200))


# --- what is looked at ------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Four active runs, one that just ended, and one that ended before."""
    place = tmp_path / "state"
    for one in (CALM, LATE, STUCK, YOUNG, KILLED):
        store(place, one, live=LIVES.get(one.run_id))
    before = NOON - round(ENDED_SECONDS * SECOND)
    store(place, run(6, end=before))
    return place


def test_look(state: Path) -> None:
    """Late ones first, then stuck ones, then the oldest; of one pipeline, if asked."""
    with open_history(state, readonly=True) as history:
        seen = look(history, NOON, None)
        assert seen.active == (LATE, STUCK, CALM, YOUNG)
        assert seen.lives == LIVES
        assert seen.ended == (KILLED,)
        of_one = look(history, NOON, "daily_sales_of_all_regions")
        assert (of_one.active, of_one.ended) == ((LATE,), ())
        plan = history.link.execute(
            "explain query plan select run_id from run where end is null order by start"
        ).fetchall()
        assert "run_end" in plan[0][-1]


def test_a_late_or_slow_stage_is_trouble(state: Path) -> None:
    """It is marked as long as it is open, and its run stands above those that do well."""
    troubled = active(1, pipeline="hourly", run_id="000000aa" + "0" * 24)
    stages = (live_stage(troubled, 91, "load", 60), live_stage(troubled, 92, "clean", 1000))
    before = Notice(
        at=troubled.start + 500 * SECOND,
        name=semconv.STAGE_LATE,
        attributes={semconv.STAGE_NAME: "clean"},
    )
    slow = Notice(
        at=NOON - SECOND, name=semconv.STAGE_SLOW, attributes={semconv.STAGE_NAME: "load"}
    )
    store(state, troubled, live=structs.replace(LIVE, stages=stages), notices=[before, slow])
    with open_history(state, readonly=True) as history:
        seen = look(history, NOON, None)
    assert seen.active == (LATE, STUCK, troubled, CALM, YOUNG)
    assert seen.troubles == {troubled.run_id: {"load": "slow"}}
    shown = lines(seen, 200)
    assert ", 1 with a late or slow stage" in shown[0]
    assert "load !slow, clean" in shown[4]


def test_look_json() -> None:
    """The same in the same order, under documented keys."""
    found = json.loads(json.dumps(look_json(ALL)))
    assert (found["at"], found["complete"]) == ("2026-11-21T12:00:00.000Z", True)
    assert [one["run_id"] for one in found["runs"]] == [one.run_id for one in ALL.active]
    assert found["runs"][0]["lateness"] == 600.0
    assert found["runs"][2]["live"]["stages"][0]["operation"] == "pandas.to_sql"
    assert found["runs"][3]["live"] is None
    assert [one["last_stage"] for one in found["ended"]] == ["load"]


# --- the command ------------------------------------------------------------------------------


def test_watch_once(state: Path) -> None:
    """Where stdout is no terminal it looks once; `--once` does so anyway."""
    done = stagewatch(state, "watch")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("4 under way, 1 late, 1 stuck")
    assert "\x1b" not in done.stdout and "q leaves" not in done.stdout
    assert stagewatch(state, "watch", "--once").stdout.splitlines()[2].split()[1] == "00000001"


def test_watch_json(state: Path) -> None:
    """With `--once` one document, else a line for each look until nobody reads on."""
    found = json.loads(stagewatch(state, "watch", "flights", "--once", "--json").stdout)
    assert [one["run_id"][:8] for one in found["runs"]] == ["00000003", "00000002", "00000004"]
    process = subprocess.Popen(
        [COMMAND, "watch", "--json", "--interval", "0.05"],
        env=environment(state),
        cwd=state.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    looks = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert all(len(seen["runs"]) == 4 for seen in looks)
    assert looks[0]["at"] < looks[2]["at"]
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_watch_of_nothing(tmp_path: Path) -> None:
    """Before the first run the view says how to get one; the JSON is empty."""
    done = stagewatch(tmp_path / "state", "watch")
    assert (done.returncode, done.stderr) == (0, "")
    assert "opentelemetry-instrument python etl.py" in done.stdout
    found = json.loads(stagewatch(tmp_path / "state", "watch", "--once", "--json").stdout)
    assert (found["runs"], found["ended"]) == ([], [])


def test_watch_of_an_unknown_pipeline(state: Path) -> None:
    """One clear line; a pipeline that is declared may be waited for."""
    done = stagewatch(state, "watch", "flghts")
    assert (done.returncode, done.stdout) == (1, "")
    known = "daily_sales_of_all_regions, flights"
    assert done.stderr == f'stagewatch: no pipeline "flghts"; there are {known}\n'
    (state.parent / "stagewatch.yaml").write_text("pipelines:\n  nightly: {owner: me}\n")
    assert "Nothing is running" in stagewatch(state, "watch", "nightly").stdout


class Screen:
    """`stagewatch watch` in a terminal of its own."""

    def __init__(self, state: Path, *arguments: str, **settings: str) -> None:
        self.terminal, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 120))
        self.before = termios.tcgetattr(theirs)
        self.theirs = theirs
        self.text = ""
        settings = {"TERM": "xterm-256color", "COLUMNS": "", **settings}
        self.process = subprocess.Popen(
            [COMMAND, "watch", "--interval", "0.05", *arguments],
            env=environment(state, **settings),
            cwd=state.parent,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            process_group=0,  # beside ours, as a shell's jobs: an orphaned group cannot be stopped
        )
        os.set_blocking(self.terminal, False)

    def wait_for(self, words: str) -> None:
        """Until these have been on it."""
        wait_for(lambda: (self.read(), words in self.text)[1], timeout=60)

    def read(self) -> None:
        """Take in what has been written."""
        try:
            while data := os.read(self.terminal, 1 << 16):
                self.text += data.decode(errors="replace")
        except OSError:  # nothing more just now
            return

    def end(self) -> int:
        """Wait for its end, reading on: a full terminal would hold it."""
        wait_for(lambda: (self.read(), self.process.poll())[1] is not None, timeout=60)
        self.read()
        return self.process.returncode


@contextmanager
def screen(state: Path, *arguments: str, **settings: str) -> Iterator[Screen]:
    """Ended with the block, at the latest."""
    shown = Screen(state, *arguments, **settings)
    try:
        yield shown
    finally:
        if shown.process.poll() is None:
            shown.process.kill()
            shown.process.wait()
        os.close(shown.terminal)
        os.close(shown.theirs)


def leave(shown: Screen, how: str) -> int:
    """Type a key, or send a signal; returns the exit status."""
    if how.startswith("SIG"):
        shown.process.send_signal(signal.Signals[how])
    else:
        os.write(shown.terminal, how.encode())
    return shown.end()


@pytest.mark.parametrize(
    ("how", "status"), [("q", 0), ("Q", 0), ("SIGINT", 0), ("SIGTERM", 143), ("SIGHUP", 129)]
)
def test_leaving_puts_the_terminal_in_order(state: Path, how: str, status: int) -> None:
    """The screen of before is back, the cursor shown, keys echo: however one leaves."""
    with screen(state) as shown:
        shown.wait_for("4 under way")
        assert "\x1b[?1049h" in shown.text and "\x1b[?25l" in shown.text
        assert leave(shown, how) == status, shown.text
        assert shown.text.rindex("\x1b[?1049l") > shown.text.rindex("\x1b[?1049h")
        assert shown.text.rindex("\x1b[?25h") > shown.text.rindex("\x1b[?25l")
        assert "Traceback" not in shown.text
        assert termios.tcgetattr(shown.theirs) == shown.before


def test_stopped_and_continued(state: Path) -> None:
    """Ctrl-Z gives the terminal back as it was; `fg` shows the view again."""
    with screen(state) as shown:
        shown.wait_for("4 under way")
        for _ in range(2):
            shown.process.send_signal(signal.SIGTSTP)
            wait_for(lambda: (shown.read(), is_stopped(shown))[1])
            shown.read()
            assert shown.text.endswith("\x1b[?25h\x1b[?1049l")
            assert shown.text.rindex("\x1b[?1049l") > shown.text.rindex("\x1b[?1049h")
            assert termios.tcgetattr(shown.theirs) == shown.before
            shown.text = ""
            shown.process.send_signal(signal.SIGCONT)
            shown.wait_for("\x1b[?1049h")
            shown.wait_for("4 under way")
        assert leave(shown, "q") == 0
        assert shown.text.rindex("\x1b[?1049l") > shown.text.rindex("\x1b[?1049h")
        assert termios.tcgetattr(shown.theirs) == shown.before


def is_stopped(shown: Screen) -> bool:
    stat = Path(f"/proc/{shown.process.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


def test_the_view_follows_the_history(state: Path) -> None:
    """Runs come and go while one looks; other keys than `q` do nothing."""
    with screen(state) as shown:
        shown.wait_for("00000002")
        os.write(shown.terminal, b"x\x1b[A\n")
        store(state, active(7, start=time.time_ns(), pipeline="brand_new"))
        shown.wait_for("brand_new")
        link = connect(state)
        now = time.time_ns()
        link.execute("update run set end = ?, outcome = 'skip' where pipeline = 'brand_new'", [now])
        link.close()
        shown.wait_for("just ended")
        assert leave(shown, "q") == 0


def test_no_color_in_the_view(state: Path) -> None:
    """With NO_COLOR the screen is filled without a single style."""
    with screen(state, NO_COLOR="1") as shown:
        shown.wait_for("4 under way")
        assert leave(shown, "q") == 0
        assert not re.search(r"\x1b\[[\d;]*m", shown.text)
    with screen(state) as shown:
        shown.wait_for("4 under way")
        assert leave(shown, "q") == 0
        assert re.search(r"\x1b\[[\d;]*m", shown.text)


def test_dumb_terminals_get_one_look(state: Path) -> None:
    """A terminal that cannot move its cursor is no place for a live view."""
    with screen(state, TERM="dumb") as shown:
        assert shown.end() == 0
        assert "4 under way" in shown.text and "\x1b[?1049h" not in shown.text
