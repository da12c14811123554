"""Words of what a Spark job had better do otherwise: the action that was looked at, the advice, and
what it takes to be worth a word.

The rules (`rules_of_stages`, `rules_of_plans`) are pure: an action in, at most one `Advice` out.
Little data never yields any, however it is spread. Durations of Spark's events are milliseconds,
sizes bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final, TypeVar

from msgspec import Struct

from stagewatch.instrumentation.pyspark.events import ExecutionEnded, StageCompleted
from stagewatch.measures import duration_text

MB: Final = 1 << 20
LOST_SECONDS: Final = 5.0
"""What is shorter no setting is worth: so long a session takes to start, at best."""
MANY: Final = 200
"""``spark.sql.shuffle.partitions``: tasks of a shuffle, and files of its result, where nobody has
chosen."""
_Candidate = TypeVar("_Candidate")


class Kind(StrEnum):
    """The closed set of `semconv.ADVICE_KIND`."""

    SKEW = "skew"
    SPILL = "spill"
    TINY_TASKS = "tiny tasks"
    FEW_PARTITIONS = "few partitions"
    SMALL_FILES_READ = "small files read"
    SMALL_FILES_WRITTEN = "small files written"
    FULL_SCAN = "full scan"
    MISSING_BROADCAST = "missing broadcast"
    HUGE_BROADCAST = "huge broadcast"
    PYTHON = "python"
    RECOMPUTATION = "recomputation"
    GARBAGE_COLLECTION = "garbage collection"
    IDLE_CORES = "idle cores"


class Advice(Struct, frozen=True):
    """One thing to change."""

    kind: Kind
    place: str
    """What it is about, the same in every turn of a loop: an action or a dataset."""
    evidence: str
    """One line."""
    remedy: str
    """Setting or code to change."""

    @property
    def key(self) -> str:
        """Of this there is one in a run."""
        return f"{self.kind} {self.place}"


class Finished(Struct, frozen=True):
    """One finished action, with all that Spark did for it."""

    name: str
    """Of the operation: ``pyspark.write.parquet``."""
    seconds: float
    """From the call to its return."""
    busy_seconds: float
    """Of them, those in which at least one job ran."""
    slots: int
    """Tasks that could run at once; 0 where that is unknown."""
    call_site: str = ""
    """``etl.py:12`` of the user's code; empty where that is unknown."""
    stages: tuple[StageCompleted, ...] = ()
    """Every attempt that was told as completed, of all its jobs."""
    executions: tuple[ExecutionEnded, ...] = ()
    """Of SQL; none for RDDs."""

    @property
    def place(self) -> str:
        """``pyspark.collect at etl.py:12``."""
        return f"{self.name} at {self.call_site}" if self.call_site else self.name


def worst(
    found: Iterable[_Candidate],
    size: Callable[[_Candidate], int],
    counts: Callable[[_Candidate], bool],
) -> _Candidate | None:
    """The largest by *size* of those that count."""
    return max(filter(counts, found), key=size, default=None)


def took(milliseconds: int) -> str:
    """As people say it."""
    return duration_text(milliseconds / 1e3)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def number(count: int, what: str) -> str:
    """``1 task``, ``2,000 tasks``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
