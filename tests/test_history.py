"""The history: schema, reading, retention; several writers."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stagewatch import database
from stagewatch.database import FILE, connect, transaction
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.history import History, open_history
from stagewatch.model import Dataset, Operation, Outcome, Role, Stage
from stagewatch.records import DatasetTouched, OperationEnded
from tests import scenes
from tests.scenes import FAILED, SECOND, START, Job, environment

DAY = 86_400 * SECOND


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    """One that sends nothing."""
    yield from scenes.intake(tmp_path, environment())


@pytest.fixture
def history(tmp_path: Path, intake: Intake) -> Iterator[History]:
    """What was taken in, as a reader sees it."""
    with open_history(tmp_path, readonly=True) as found:
        yield found


def ran(intake: Intake, directory: Path, seconds: float = 10.0, status: int = 0, **process: object):
    """A whole run; returns its job."""
    job = Job(intake, directory, **process)  # type: ignore[arg-type]
    job.open()
    job.exits(seconds)
    job.dies(status)
    return job


def test_a_run_reads_as_it_was(tmp_path: Path, intake: Intake, history: History) -> None:
    """Run, stages, operations, datasets and spans come back as the model's types."""
    job = Job(intake, tmp_path, resource={"service.name": "etl", "host.name": "worker"})
    job.open(deadline=START + 5 * SECOND)
    load = job.stage("load", 1.0)
    job.put(
        OperationEnded(job.run, "load", "pandas.merge", 2 * SECOND, 3, 4),
        *(OperationEnded(job.run, "load", "requests.GET", 1, 0, 0, e) for e in ("503", "404")),
        OperationEnded(job.run, "load", "requests.GET", 1, 0, 0, "503"),
        OperationEnded(job.run, "load", "requests.GET", SECOND, 0, 0),
        DatasetTouched(job.run, "load", "in", "file:///a", 3, 30, "f", None, None, START),
        DatasetTouched(job.run, "load", "in", "file:///a", 4, 70, "f", None, None, START + 1),
    )
    job.put(job.detail("pandas.merge", parent_span_id=load.span_id))
    bytes_moved = {"bytes_in": 100, "bytes_out": 4}
    job.stage_ended(load, 4.0, records_in=3, records_out=2, records_rejected=1, **bytes_moved)
    job.exits(8.0, error_type="KeyError", error_message="'…'", error_place="etl.py:3 in load")
    job.dies(FAILED)
    run = history.run(job.run)
    assert (run.pipeline, run.outcome, run.error_type) == ("flights", Outcome.FAILURE, "KeyError")
    assert (run.start, run.end, run.wait_status) == (START, START + 8 * SECOND, FAILED)
    assert (run.records_in, run.records_out, run.records_rejected) == (3, 2, 1)
    assert (run.host, run.cpu_seconds, run.error_place) == ("worker", 1.5, "etl.py:3 in load")
    assert history.stages(job.run) == [
        Stage(
            name="load", calls=1, start=START + SECOND, seconds=4.0, records_in=3, records_out=2,
            records_rejected=1, bytes_in=100, bytes_out=4,
        )
    ]  # fmt: skip
    assert history.operations(job.run) == [
        Operation(name="pandas.merge", stage="load", calls=1, seconds=2.0, rows_in=3, rows_out=4),
        Operation(
            name="requests.GET", stage="load", calls=4, failed=3, seconds=1.000000003,
            errors={"503": 2, "404": 1},
        ),
    ]  # fmt: skip
    assert history.datasets(job.run) == [
        Dataset(uri="file:///a", direction="in", stage="load", rows=7, bytes=70, fingerprint="f")
    ]
    assert sorted((span.role, span.name, span.state) for span in history.spans(job.run)) == [
        (Role.DETAIL, "pandas.merge", "local"),
        (Role.RUN, "flights", "local"),
        (Role.STAGE, "load", "local"),
    ]


def test_runs_are_found_by_pipeline_and_prefix(
    tmp_path: Path, intake: Intake, history: History
) -> None:
    """Newest first; an id may be shortened as long as it is unique."""
    runs = [
        ran(intake, tmp_path, run=prefix * 16, start=START + number * SECOND, pipeline=pipeline)
        for number, (prefix, pipeline) in enumerate([("a1", "x"), ("a2", "y"), ("b3", "x")])
    ]
    assert [run.run_id for run in history.runs()] == [job.run for job in reversed(runs)]
    assert [run.run_id for run in history.runs("x", limit=1)] == [runs[2].run]
    assert history.run("b").run_id == runs[2].run
    assert history.run("last").run_id == runs[2].run
    assert history.run("A2").run_id == runs[1].run
    assert history.pipelines() == ["x", "y"]


def test_the_last_run_is_no_child(tmp_path: Path, intake: Intake, history: History) -> None:
    """Runs that another has opened belong to that one, where it is known."""

    def open_run(run: str, start: int, parent: str | None = None) -> str:
        job = Job(intake, tmp_path, run=run, start=START + start * SECOND)
        job.open(parent_run_id=parent)
        return job.run

    main = open_run("a" * 32, 0)
    queries = [open_run(name * 32, start, main) for name, start in (("c", 1), ("b", 2))]
    assert history.run("last").run_id == main
    children = history.child_runs(history.run("last"))
    assert [run.run_id for run in children] == queries[::-1]
    assert history.child_runs(children[0]) == []
    orphan = open_run("d" * 32, 3, "e" * 32)
    assert history.run("last").run_id == orphan


@pytest.mark.parametrize(
    ("prefix", "line"),
    [
        ("c", 'no run "c"; the last ones are a2a2a2a2, a1a1a1a1'),
        ("a", '"a" is the beginning of several runs: a2a2a, a1a1a …'),
        ("%", 'no run "%"; the last ones are a2a2a2a2, a1a1a1a1'),
    ],
)
def test_an_unknown_run_is_one_clear_line(
    tmp_path: Path, intake: Intake, history: History, prefix: str, line: str
) -> None:
    """The error says what is there instead."""
    for number, name in enumerate(["a1", "a2"]):
        ran(intake, tmp_path, run=name * 16, start=START + number)
    with pytest.raises(LookupError) as caught:
        history.run(prefix)
    assert caught.value.args == (line,)


def test_an_empty_history_answers(history: History) -> None:
    """There is nothing, and that is no error but where one run was asked for."""
    assert (history.runs(), history.pipelines(), history.pending()) == ([], [], {})
    with pytest.raises(LookupError, match="no run yet"):
        history.run("last")


def test_usual_duration_and_met_slots(tmp_path: Path, intake: Intake, history: History) -> None:
    """Successes say what is usual; a success meets its slot, a failure does not."""
    for number, (seconds, status) in enumerate([(10, 0), (20, 0), (99, FAILED), (30, 0)]):
        job = Job(intake, tmp_path, start=START + number * SECOND)
        job.open(scheduled=START + number)
        job.exits(seconds)
        job.dies(status)
    assert history.usual_duration("flights") == 20.0
    assert history.usual_duration("other") is None
    assert history.met_slots("flights") == {START, START + 1, START + 3}


def test_retention_takes_spans_first_and_runs_later(
    tmp_path: Path, intake: Intake, history: History
) -> None:
    """Old details go, older runs go, an open run stays."""
    old = ran(intake, tmp_path, start=START - 500 * DAY)
    middle = ran(intake, tmp_path, start=START - 100 * DAY)
    new = ran(intake, tmp_path, start=START)
    Job(intake, tmp_path, start=START - 600 * DAY).open()
    with open_history(tmp_path) as writer:
        gone = writer.prune(START)
    assert gone == (1, 2, 0)
    assert [run.run_id for run in history.runs()][:2] == [new.run, middle.run]
    assert len(history.runs()) == 3
    assert (len(list(history.spans(middle.run))), len(list(history.spans(new.run)))) == (0, 1)
    with pytest.raises(LookupError):
        history.run(old.run)


def test_retention_of_runs_opened_elsewhere(
    tmp_path: Path, intake: Intake, history: History
) -> None:
    """Nobody here ever says that they end: they go when no process writes to them any more."""
    for dies in (True, False):
        joined = Job(intake, tmp_path, start=START - 500 * DAY, opens=False)
        joined.put(joined.span_ended("x"))
        if dies:
            joined.dies()
    with open_history(tmp_path) as writer:
        assert writer.prune(START) == (1, 1, 0)
    rows = history.link.execute("select run_id, has_spans from run").fetchall()
    assert rows == [(joined.run, 1)]


def test_retention_by_size(tmp_path: Path, intake: Intake, history: History) -> None:
    """While the file is too large the oldest spans go, and the runs stay."""
    for number in range(30):
        job = Job(intake, tmp_path, start=START + number * SECOND)
        job.open()
        job.put(*(job.span_ended("x" * 1000) for _ in range(50)))
        job.dies()
    with open_history(tmp_path) as writer:
        gone = writer.prune(START + DAY, max_bytes=1_000_000)
    assert gone.spans >= 600
    counts = [len(list(history.spans(run.run_id))) for run in history.runs(limit=30)]
    assert len(counts) == 30
    assert counts[-1] == 0


def test_the_file_is_private(tmp_path: Path, intake: Intake) -> None:
    """History, WAL and index are for their owner alone, whatever the umask."""
    for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    """Better no history than a wrong one."""
    connect(tmp_path).execute("pragma user_version=99")
    with pytest.raises(sqlite3.DatabaseError, match="newer stagewatch"):
        connect(tmp_path)


@pytest.mark.parametrize("readonly", [False, True])
def test_an_older_file_is_brought_up_to_date(tmp_path: Path, readonly: bool) -> None:
    """Format 1 gets what format 2 has, and keeps its runs; so does one that is only read."""
    with closing(sqlite3.connect(tmp_path / FILE)) as old:
        old.executescript(database._SCHEMA)
        old.execute("pragma journal_mode=wal")
        old.execute("pragma user_version=1")
        old.execute("insert into meta values('instance', 'i'), ('born', '1')")
        old.execute(
            "insert into run(run_id, pipeline, start, end, outcome, span_id, trace_id) "
            "values('ab', 'flights', 1, 2, 'success', x'01', x'02')"
        )
        old.commit()
    with open_history(tmp_path, readonly=readonly) as history:
        (run,) = history.runs()
        assert (run.run_id, run.last_stage, run.last_operation) == ("ab", None, None)
        assert (history.live("ab"), history.notices("ab"), history.active()) == (None, [], [])
        assert history.link.execute("pragma user_version").fetchone() == (database.VERSION,)
        columns = "select name from pragma_table_info('run') order by name"
        migrated = history.link.execute(columns).fetchall()
    (tmp_path / "new").mkdir()
    with closing(connect(tmp_path / "new")) as new:
        assert new.execute(columns).fetchall() == migrated


def test_a_transaction_is_undone_as_a_whole(tmp_path: Path) -> None:
    """What an error interrupts leaves nothing."""
    link = connect(tmp_path)
    with pytest.raises(ZeroDivisionError), transaction(link):
        link.execute("insert into meta values('x', 'y')")
        raise ZeroDivisionError
    assert link.execute("select count(*) from meta where key = 'x'").fetchone() == (0,)
    link.close()


def test_many_make_it_at_once(tmp_path: Path) -> None:
    """Eight processes that open a new history find one and the same."""
    program = (
        "import sys, pathlib; from stagewatch.database import connect\n"
        "link = connect(pathlib.Path(sys.argv[1]))\n"
        "print(link.execute(\"select value from meta where key = 'instance'\").fetchone()[0])"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    answers = {process.communicate(timeout=60)[0] for process in started}
    assert len(answers) == 1
    assert all(process.returncode == 0 for process in started)
