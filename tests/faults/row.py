"""What a row of the matrix is: a job, what happens to it, and what must be known of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct, field

from stagewatch.model import Outcome
from tests.faults.worlds import plain

if TYPE_CHECKING:
    from tests.faults.scene import Scene
    from tests.faults.worlds import World


_RECORDS = {"extract out": 5, "load out": 3, "load rejected": 1}


class Backend(StrEnum):
    """The three set-ups of every row."""

    ALIVE = "alive"
    DOWN = "down and back"
    """Refuses connections until the run is over, then serves."""
    NONE = "no backend"
    """No endpoint is set: only the local history can be asked."""


class Row(Struct, frozen=True, kw_only=True):
    """One line of the matrix and everything that is expected of it.

    In a `tree` children stand in brackets behind their parent, in alphabetical order, ``×n``
    behind what is there n times, and ``(error.type)`` behind what did not end well.
    """

    name: str
    job: str
    """A file of ``jobs/`` and its arguments."""
    sees: str
    """What a user sees of it, for the README."""
    stock: str = ""
    """What the stock SDK shows of it, for the README; measured, not thought."""
    deed: Callable[[Scene], None] | None = None
    """What the harness does while the job waits for it."""
    before: Callable[[Scene], None] | None = None
    """What the harness does before the job starts."""
    after: Callable[[Scene], None] | None = None
    """What the harness does once the job is gone."""
    world: Callable[[Path], AbstractContextManager[World]] = plain
    launcher: tuple[str, ...] = ("opentelemetry-instrument", "python")
    config: str = ""
    """stagewatch.yaml"""
    exit: int = 0
    """As `subprocess` gives it: negative for a signal."""
    outcome: Outcome = Outcome.SUCCESS
    error_type: str | None = None
    tree: str = "extract[page] load[batch]"
    records: dict[str, int] = field(default_factory=lambda: dict(_RECORDS))
    """Of the run: stage and direction."""
    operations: dict[str, int] = {}
    """Calls by stage and operation."""
    notices: tuple[str, ...] = ()
    """What was said while it ran, besides that it started."""
    warning: str = ""
    """Pattern of the one line of ours on stderr."""
    vague_end: bool = False
    """Nobody watched when it died: its end is its last sign of life."""
    may_repeat: bool = False
    """Its recorder was killed, or could not note what it sent: the same span may arrive twice."""
    is_long: bool = False
    """It is begun first, so that the others overlap with it."""
    has_bare: bool = True
    """Its output is compared with what the job does with nothing around it."""
    losses: str = ""
    """Reason for which spans may be dropped: ``{kept}`` in the tree is what the count leaves."""
    spans: int = 0
    """Of that name (``{kept}``), how many the job opened."""
