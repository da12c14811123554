"""What executions of Spark read and wrote, as datasets: rows and bytes as its own metrics say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import Struct

from stagewatch import redaction
from stagewatch.instrumentation import _datasets
from stagewatch.instrumentation.pyspark.events import (
    ExecutionEnded,
    Files,
    Jdbc,
    PlanNode,
    Relation,
    Source,
    Table,
)
from stagewatch.model import Dataset

_ROWS: Final = "numOutputRows"
_BYTES_READ: Final = "filesSize"
_BYTES_WRITTEN: Final = "numOutputBytes"
_FILE: Final = re.compile(r"file:/+")
_NAME: Final = re.compile(r"[\w.$`\"]+\Z")
_IN_FILES: Final = re.compile(r"(?:derby|duckdb|h2|hsqldb|sqlite):[\w./:-]*")
"""``derby:memory:x``, ``sqlite:/srv/x.db``: no place for a password."""
_URL: Final = re.compile(r"[A-Za-z][\w+-]*://")
_CONTAINER: Final = re.compile(r"(?:abfss?|wasbs?)://([\w$-]+)@")
"""Azure's: what looks like a user is a part of the name."""
_PROPERTIES: Final = re.compile(r"[:,]")
_SCANS: Final = ("Scan", "BatchScan")

_Sums = dict[Relation, list[int | None]]
"""Rows and bytes; None where nobody has counted them."""


class Seen(Struct, frozen=True):
    """All that the executions of one action read and wrote."""

    datasets: tuple[Dataset, ...]
    """What was written first: it is what the action was for."""
    rows_in: int | None
    """None: nothing was read that is known; the same for what was written."""
    rows_out: int | None


def seen(executions: Iterable[ExecutionEnded], records_out: int = 0) -> Seen:
    """Sum up *executions*: one that runs another (``CREATE TABLE … AS``) names what that one does,
    and has no figures of its own.

    *records_out*: as the stages counted them, for a write whose plan does not (JDBC).
    """
    read: _Sums = {}
    written: _Sums = {}
    for execution in executions:
        for relation in execution.inputs:
            read.setdefault(relation, [None, None])
        for relation in execution.outputs:
            written.setdefault(relation, [None, None])
        if execution.plan is not None:
            for node in nodes(execution.plan):
                if node.relation is None:
                    continue
                if node.name.startswith(_SCANS):
                    _add(read, node.relation, node.metrics.get(_ROWS, 0), _BYTES_READ, node)
                else:
                    _add(written, node.relation, node.metrics.get(_ROWS, 0), _BYTES_WRITTEN, node)
    _name_tables(written)
    if records_out and len(written) == 1 and _sum(written) is None:
        next(iter(written.values()))[0] = records_out
    return Seen(
        (*_datasets_of(written, "out"), *_datasets_of(read, "in")), _sum(read), _sum(written)
    )


def nodes(plan: PlanNode) -> Iterator[PlanNode]:
    """Every operator of a plan, from the last to run to the first."""
    waiting = [plan]
    while waiting:
        node = waiting.pop()
        yield node
        waiting.extend(reversed(node.children))


def uri(relation: Relation) -> str | None:
    """URI without secrets: of files ``file:///x``, of a table ``spark_catalog.default.t``, of one
    in a database ``postgresql://host/db/table``. None where only its class is known."""
    match relation:
        case Table(name):
            return named(name) or None
        case Files(path):
            return _located(_FILE.sub("file:///", path, count=1)) or None
        case Jdbc(url, table):
            where = _database(url.removeprefix("jdbc:").partition(";")[0])
            name = table.strip() if _NAME.match(table.strip()) else ""
            return f"{where.rstrip('/')}/{name}" if name else where
        case Source():
            return None


def named(table: str) -> str:
    """*table*, or the URI without secrets of the path that stands for one: ``delta.`s3a://x` ``."""
    found = _URL.search(table)
    return _located(table[found.start() :].rstrip("`")) if found else table


def _located(url: str) -> str:
    found = redaction.url(url)
    container = _CONTAINER.match(url)
    return found.replace("://", f"://{container[1]}@", 1) if container else found


def _database(url: str) -> str:
    """Some drivers take user and password behind the database's name, or in place of a host."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        return url if _IN_FILES.fullmatch(url) else url.partition(":")[0]
    host, _, path = redaction.url(url).partition("://")[2].partition("/")
    database = _PROPERTIES.split(path)[0]
    if not database or "=" in database:
        return f"{scheme}://{host}"
    return f"{scheme}://{host}/{database}"


def _name_tables(written: _Sums) -> None:
    """A table that is created is named by one execution, its files by the one that fills it."""
    tables = [one for one in written if isinstance(one, Table)]
    files = [one for one in written if not isinstance(one, Table)]
    if len(tables) == len(files) == 1 and written[tables[0]][0] is None:
        written[tables[0]] = written.pop(files[0])


def _add(sums: _Sums, relation: Relation, rows: int, size: str, node: PlanNode) -> None:
    found = sums.setdefault(relation, [None, None])
    found[0] = (found[0] or 0) + rows
    if size in node.metrics:
        found[1] = (found[1] or 0) + node.metrics[size]


def _datasets_of(sums: _Sums, direction: str) -> Iterator[Dataset]:
    for relation, (rows, size) in sums.items():
        where = uri(relation)
        if where is not None:
            yield Dataset(
                uri=where,
                direction=direction,
                rows=rows,
                bytes=size,
                declared=_datasets.declared(where)[0],
            )


def _sum(sums: _Sums) -> int | None:
    known = [rows for rows, _ in sums.values() if rows is not None]
    return sum(known) if known else None
