"""The fault matrix can fail: whatever is wrong at one place is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from stagewatch import semconv
from tests.faults.play import play
from tests.faults.row import Backend, Row
from tests.faults.rows import ROWS
from tests.faults.scene import Scene
from tests.faults.seen import Seen, Span, tree
from tests.faults.verdict import Bare, differences
from tests.faults.worlds import World

ROW = Row(name="kill", job="ends.py wait", sees="", exit=-9, error_type="killed")
GREEN = Seen(
    place="receiver",
    runs={"success killed": 1},
    ends=(101_000_000_000,),
    tree="extract[page] load[batch]",
    ids={"load": {"aa"}},
    records={"extract out": 5, "load out": 3, "load rejected": 1},
    operations={},
    notices=("run started",),
    dropped={},
    faults=(),
    seconds={"extract": 1.0},
)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A job that ran from 100 to 101 s after the epoch."""
    notes = [
        {"begun": "load", "id": "aa"},
        {"begun": "extract", "id": "bb"},
        {"ended": "extract", "least": 0.9, "most": 1.1},
        {"last": 100.9},
    ]
    (tmp_path / "notes").write_text("\n".join(json.dumps(note) for note in notes))
    world = World(tmp_path, tmp_path)
    found = Scene(ROW, Backend.ALIVE, tmp_path, world, tmp_path, None, {})
    found.started, found.ended, found.exit = 100.0, 101.0, -9
    return found


def test_green_is_green(scene: Scene) -> None:
    """Nothing is said where everything is as expected."""
    seen = structs.replace(GREEN, ids={"load": {"aa"}, "extract": {"bb"}})
    assert differences(scene, [seen], Bare(-9, "", "")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"runs": {"failure exit_3": 1}}, "runs: expected {'success killed': 1}"),
        ({"runs": {"success killed": 2}}, "runs: expected"),
        ({"ends": (100_000_000_000,)}, "end: expected"),
        ({"ends": (109_000_000_000,)}, "end: expected"),
        ({"tree": "extract load[batch]"}, "trace: expected"),
        ({"records": {"extract out": 5, "load out": 4, "load rejected": 1}}, "records: expected"),
        ({"operations": {"load pandas.merge": 1}}, "operations: expected none"),
        ({"notices": ("process died",)}, "notices: expected none"),
        ({"notices": ("run started",) * 2}, "more than once"),
        ({"dropped": {"disk": 1}}, "dropped: expected none"),
        ({"ids": {"load": {"cc"}, "extract": {"bb"}}}, "load: 1 of 1 are not there"),
        ({"seconds": {"extract": 3600.0}}, "extract: expected 0.900"),
        ({"faults": ("1 orphans called row",)}, "receiver: 1 orphans called row"),
    ],
)
def test_what_is_wrong_is_said(scene: Scene, change: dict[str, Any], said: str) -> None:
    """One line for one thing that is not as expected."""
    green = structs.replace(GREEN, ids={"load": {"aa"}, "extract": {"bb"}})
    found = differences(scene, [structs.replace(green, **change)], Bare(-9, "", ""))
    assert len(found) == 1
    assert said in found[0]


def test_the_job_is_looked_at(scene: Scene) -> None:
    """Exit status and output are those of the job with nothing around it."""
    scene.exit, scene.out, scene.err = 0, "more", "a warning\n"
    found = differences(scene, [], Bare(-9, "", ""))
    assert [text.partition(":")[0] for text in found] == ["exit status", "stdout", "stderr"]


def test_lost_spans_must_be_counted(scene: Scene) -> None:
    """Where spans may be lost, as many have to be counted as dropped."""
    scene.row = structs.replace(ROW, losses="disk", spans=10, tree="load[row×{kept}]")
    seen = structs.replace(GREEN, tree="load[row×7]", dropped={"disk": 3})
    assert differences(scene, [seen], None) == []
    seen = structs.replace(GREEN, tree="load[row×7]", dropped={"disk": 2})
    assert differences(scene, [seen], None) == [
        "receiver: 3 spans were lost, 2 are counted as dropped"
    ]


def test_tree_in_words() -> None:
    """Children in brackets, equal ones counted, causes behind the names."""

    def span(span_id: str, parent: str, name: str, cause: str | None = None) -> Span:
        attributes = {semconv.ERROR_TYPE: cause} if cause else {}
        return Span(name, "t", span_id, parent, 0, 0, attributes)

    spans = [
        span("1", "", "run"),
        span("2", "1", "load", "killed"),
        span("3", "2", "work"),
        span("4", "2", "work"),
        span("5", "2", "a"),
        span("6", "1", "extract"),
    ]
    assert tree(spans, "1") == "extract load(killed)[a work×2]"


def test_a_row_is_played() -> None:
    """One row, really: a job, its recorder, the history."""
    (row,) = (row for row in ROWS if row.name == "os._exit(3)")
    assert play(row, Backend.NONE, None).differences == []
