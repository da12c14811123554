"""Advice from the plans that Spark executed: one small function per rule, an action in.

Metrics of operators have Spark's own short names (4.3 and 3.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil
from typing import Final, NamedTuple

from msgspec import Struct

from stagewatch.instrumentation.pyspark.advice import (
    LOST_SECONDS,
    MANY,
    MB,
    Advice,
    Finished,
    Kind,
    number,
    percent,
    took,
    worst,
)
from stagewatch.instrumentation.pyspark.bounded import keep
from stagewatch.instrumentation.pyspark.datasets import nodes, uri
from stagewatch.instrumentation.pyspark.events import PlanNode, Relation, Source
from stagewatch.measures import size_text

SMALL_FILE: Final = 4 * MB
"""``spark.sql.files.openCostInBytes``: opening it takes as long as reading so much."""
FULL_FILE: Final = 128 * MB
"""``spark.sql.files.maxPartitionBytes``: what one task reads."""
LARGE_SCAN: Final = 10 * FULL_FILE
"""Ten tasks' worth; less is read quickly whatever is chosen of it."""
SMALL_SIDE: Final = 10 * MB
"""``spark.sql.autoBroadcastJoinThreshold``."""
LARGE_SIDE: Final = 10 * SMALL_SIDE
"""To shuffle less than that costs no more than to broadcast the other side."""
HUGE_BROADCAST: Final = 512 * MB
"""Half of ``spark.driver.memory`` and ``spark.executor.memory`` (1 GB): it has to fit into each."""
PYTHON_SHARE: Final = 0.5
"""Of the tasks' time: what is less cannot make it twice as fast."""
REPEATED_SECONDS: Final = 10.0
"""Of task time; caching costs time, too."""
REPEATS: Final = 3
"""Twice may be a check before a write; from the third time on it is a habit."""
_MOST_SCANS: Final = 1000
_MOST_NAMED: Final = 3
"""Of several that are alike."""


def small_files_read(action: Finished) -> Advice | None:
    """More time goes into opening files than into reading them."""
    scan = worst(
        _scans(action),
        lambda node: _metric(node, "numFiles"),
        lambda node: _are_small(action, node, "filesSize"),
    )
    if scan is None:
        return None
    files, size = _metric(scan, "numFiles"), _metric(scan, "filesSize")
    where = _where(scan)
    evidence = f"{where}: {files:,} files of {size_text(size // files)} on average"
    remedy = f"write it again in files of 128 MB: repartition({ceil(size / FULL_FILE)}).write"
    return Advice(Kind.SMALL_FILES_READ, where, evidence, remedy)


def small_files_written(action: Finished) -> Advice | None:
    """Who reads this next pays for it."""
    write = worst(
        (node for node in _operators(action) if "numOutputBytes" in node.metrics),
        lambda node: _metric(node, "numFiles"),
        lambda node: _are_small(action, node, "numOutputBytes"),
    )
    if write is None:
        return None
    files, size = _metric(write, "numFiles"), _metric(write, "numOutputBytes")
    parts, where = _metric(write, "numParts"), _where(write)
    evidence = f"{where}: {files:,} files of {size_text(size // files)} on average"
    if parts:
        evidence += f" in {number(parts, 'partition')}"
    if not parts:
        remedy = f"coalesce({ceil(size / FULL_FILE)}) before the write"
    elif files >= 2 * parts:
        remedy = "repartition() by the columns of partitionBy() before the write"
    else:
        remedy = "partition by a column with fewer values"
    return Advice(Kind.SMALL_FILES_WRITTEN, where, evidence, remedy)


def full_scan(action: Finished) -> Advice | None:
    """All partitions of a table are read, because no condition chooses any."""
    scan = worst(
        _scans(action),
        lambda node: _metric(node, "filesSize"),
        lambda node: (
            bool(node.partitioned_by)
            and not node.partition_filters
            and _metric(node, "numPartitions") > 1
            and _metric(node, "filesSize") >= LARGE_SCAN
        ),
    )
    if scan is None:
        return None
    columns = ", ".join(scan.partitioned_by)
    where = _where(scan)
    evidence = (
        f"{where}: all {_metric(scan, 'numPartitions'):,} partitions, "
        f"{size_text(_metric(scan, 'filesSize'))}"
    )
    remedy = f"a condition on {columns} itself, without a function or cast around it"
    return Advice(Kind.FULL_SCAN, where, evidence, remedy)


def missing_broadcast(action: Finished) -> Advice | None:
    """A large side is shuffled to be joined with one that every executor could hold."""
    joins = (
        (node, _shuffled(node.children[0]), _shuffled(node.children[1]))
        for node in _operators(action)
        if node.name.startswith(("SortMergeJoin", "ShuffledHashJoin")) and len(node.children) == 2
    )
    join = worst(
        ((node, min(left, right), max(left, right)) for node, left, right in joins),
        lambda join: join[2],
        lambda join: 0 < join[1] <= SMALL_SIDE and join[2] >= LARGE_SIDE,
    )
    if join is None:
        return None
    node, small, large = join
    names = _listed(_where(scan) for scan in nodes(node) if scan.relation)
    evidence = f"{node.name}: {size_text(large)} shuffled to be joined with {size_text(small)}"
    remedy = (
        "broadcast() around the small side, or spark.sql.autoBroadcastJoinThreshold (10 MB) above "
        "its size; not possible for a full outer join"
    )
    place = names or action.place
    return Advice(Kind.MISSING_BROADCAST, place, f"{place}: {evidence}", remedy)


def huge_broadcast(action: Finished) -> Advice | None:
    """What driver and every executor have to hold."""
    node = worst(
        (node for node in _operators(action) if node.name.startswith("BroadcastExchange")),
        lambda node: _metric(node, "dataSize"),
        lambda node: _metric(node, "dataSize") >= HUGE_BROADCAST,
    )
    if node is None:
        return None
    spent = sum(_metric(node, name) for name in ("collectTime", "buildTime", "broadcastTime"))
    names = _listed(_where(scan) for scan in nodes(node) if scan.relation)
    place = names or action.place
    evidence = (
        f"{place}: {size_text(_metric(node, 'dataSize'))}, {_metric(node, 'numOutputRows'):,} rows "
        f"broadcast in {took(spent)}"
    )
    remedy = (
        "no broadcast() around it, and spark.sql.autoBroadcastJoinThreshold below its size: "
        "a SortMergeJoin holds neither side in memory"
    )
    return Advice(Kind.HUGE_BROADCAST, place, evidence, remedy)


def python(action: Finished) -> Advice | None:
    """Rows leave the JVM for Python and come back, and that is most of the work."""
    found = [node for node in _operators(action) if "pythonDataSent" in node.metrics]
    running = sum(stage.run_time for stage in action.stages)
    if not found or not running:
        return None
    spent = sum(
        _metric(node, "pythonProcessingTime") or _metric(node, "pythonTotalTime") for node in found
    )
    how = "in Python"
    if not spent:  # Spark 3.5 does not say
        spent = running - sum(
            stage.cpu_time // 1_000_000 + stage.gc_time + stage.shuffle_fetch_wait
            for stage in action.stages
        )
        how = "waiting for others than the JVM, as for Python"
    if spent < max(LOST_SECONDS * 1e3, PYTHON_SHARE * running):
        return None
    names = ", ".join(dict.fromkeys(node.name for node in found))
    rows = sum(_metric(node, "pythonNumRowsReceived") for node in found)
    evidence = (
        f"{action.place}: {took(spent)} of {took(running)} task time "
        f"({percent(min(spent / running, 1.0))}) {how}; {names}, {rows:,} rows"
    )
    remedy = "functions of pyspark.sql.functions instead of a UDF"
    if any(node.name.startswith("BatchEvalPython") for node in found):
        remedy += "; else @pandas_udf, or spark.sql.execution.pythonUDF.arrow.enabled"
    return Advice(Kind.PYTHON, action.place, evidence, remedy)


# --- over several actions ----------------------------------------------------------------------


class _Scan(NamedTuple):
    """What is read again is alike in all of this."""

    relation: Relation | None
    files: int
    size: int
    filters: int
    """Conditions on partitions."""


class _Readers(Struct):
    count: int = 0
    repeated: int = 0
    """Task time of all but the first, ms."""
    places: dict[str, None] = {}
    """Of the actions; those that are named, and one more."""


class Scans:
    """What the actions of a run have read. What is cached has no scan in its plan."""

    def __init__(self) -> None:
        self._readers: dict[_Scan, _Readers] = {}

    def again(self, action: Finished) -> Advice | None:
        """The same data has been read, and what follows worked out, by several actions. Of several
        scans the largest is named."""
        running = sum(stage.run_time for stage in action.stages)
        found: dict[_Scan, _Readers] = {}
        for scan in dict.fromkeys(map(_scan, _scans(action))):
            readers = self._readers.get(scan) or _Readers()
            keep(self._readers, scan, readers, _MOST_SCANS)
            readers.repeated += running if readers.count else 0
            readers.count += 1
            if len(readers.places) <= _MOST_NAMED:
                readers.places[action.place] = None
            if readers.count >= REPEATS and readers.repeated >= REPEATED_SECONDS * 1e3:
                found[scan] = readers
        if not found:
            return None
        scan, readers = max(found.items(), key=lambda one: one[0].size)
        where = _named(scan.relation)
        evidence = (
            f"{where}: {size_text(scan.size)} read by {readers.count:,} actions "
            f"({_listed(readers.places)}), {took(readers.repeated)} of task time after the first"
        )
        remedy = "cache() or persist() the DataFrame that they share, or write it and read that"
        return Advice(Kind.RECOMPUTATION, where, evidence, remedy)


def _scan(node: PlanNode) -> _Scan:
    files, size = _metric(node, "numFiles"), _metric(node, "filesSize")
    return _Scan(node.relation, files, size, node.partition_filters)


# --- looking --------------------------------------------------------------------------------------


def _operators(action: Finished) -> Iterator[PlanNode]:
    for execution in action.executions:
        if execution.plan is not None:
            yield from nodes(execution.plan)


def _scans(action: Finished) -> Iterator[PlanNode]:
    return (
        node
        for node in _operators(action)
        if node.relation and "numFiles" in node.metrics and "numOutputBytes" not in node.metrics
    )


def _are_small(action: Finished, node: PlanNode, size: str) -> bool:
    if sum(stage.run_time for stage in action.stages) < LOST_SECONDS * 1e3:
        return False
    files = _metric(node, "numFiles")
    return files >= MANY and _metric(node, size) < files * SMALL_FILE


def _shuffled(side: PlanNode) -> int:
    """Bytes of the exchange that a side of a join comes from; 0 if it comes from none."""
    node = side
    while not node.name.startswith("Exchange"):
        if len(node.children) != 1:
            return 0
        node = node.children[0]
    return _metric(node, "dataSize")


def _listed(names: Iterable[str]) -> str:
    """The first of them."""
    found = list(dict.fromkeys(names))
    return ", ".join(found[:_MOST_NAMED]) + (", …" if len(found) > _MOST_NAMED else "")


def _metric(node: PlanNode, name: str) -> int:
    return node.metrics.get(name, 0)


def _where(node: PlanNode) -> str:
    return _named(node.relation) or node.name.partition("(")[0]


def _named(relation: Relation | None) -> str:
    if relation is None:
        return ""
    return relation.name if isinstance(relation, Source) else uri(relation) or ""
