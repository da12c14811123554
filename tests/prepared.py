"""Runs with a known shape for the tests of what reads the history, and how they get in there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, msgpack, structs

from stagewatch import records
from stagewatch.database import KEPT, PENDING, ROLES, connect
from stagewatch.model import Dataset, Live, LiveStage, Notice, Operation, Outcome, Role, Run, Stage

SECOND = 1_000_000_000
_NO_ATTRIBUTES = b"\x80"
NOON = 1_795_262_400 * SECOND
"""2026-11-21 12:00 UTC."""


class Span(Struct, frozen=True):
    """What the tree reads of a `stagewatch.history.SpanRow`."""

    name: str
    span_id: bytes
    parent_span_id: bytes
    start: int
    end: int
    role: Role = Role.DETAIL
    failed: bool = False
    attributes: dict[str, Any] = {}


def run(number: int = 1, **changes: Any) -> Run:
    """A success of 10 s that started `number` hours before noon."""
    start = NOON - number * 3600 * SECOND
    fields: dict[str, Any] = {
        "run_id": f"{number:08x}" + "0" * 24,
        "trace_id": bytes([number % 256]) * 16,
        "span_id": identity(number),
        "pipeline": "flights",
        "start": start,
        "end": start + 10 * SECOND,
        "outcome": Outcome.SUCCESS,
        "records_in": 336_776,
        "records_out": 18_000,
        "host": "worker",
        "pid": 4711,
        "wait_status": 0,
    }
    return Run(**{**fields, **changes})


def active(number: int = 1, **changes: Any) -> Run:
    """A run under way that started `number` hours before noon."""
    return run(number, **{"end": None, "outcome": None, "wait_status": None, **changes})


def live_stage(of: Run, number: int, name: str, begin: float, **changes: Any) -> LiveStage:
    """A stage that has been open since so many seconds into the run."""
    fields: dict[str, Any] = {
        "name": name,
        "span_id": identity(number),
        "parent_span_id": of.span_id,
        "start": of.start + round(begin * SECOND),
        "pid": of.pid,
    }
    return LiveStage(**{**fields, **changes})


def identity(number: int) -> bytes:
    """A span id."""
    return number.to_bytes(8, "big")


def span(of: Run, number: int, name: str, begin: float, seconds: float, **changes: Any) -> Span:
    """A span that begins so many seconds into the run and hangs under it unless told otherwise."""
    start = of.start + round(begin * SECOND)
    made = Span(name, identity(number), of.span_id, start, start + round(seconds * SECOND))
    return structs.replace(made, **changes)


def store(
    state: Path,
    of: Run,
    spans: Sequence[Span] = (),
    stages: Sequence[Stage] = (),
    operations: Sequence[Operation] = (),
    datasets: Sequence[Dataset] = (),
    *,
    live: Live | None = None,
    notices: Sequence[Notice] = (),
    pending_for: str | None = None,
) -> None:
    """Write one run into the history; its spans wait for the destination *pending_for*."""
    state.mkdir(exist_ok=True)
    link = connect(state)
    with link:
        number = _insert(link, "run", structs.asdict(of), has_spans=int(bool(spans)))
        for stage in stages:
            row = structs.asdict(stage)
            _insert(link, "stage", row, run=number, active_seconds=stage.seconds)
        for operation in operations:
            _insert(link, "operation", structs.asdict(operation), run=number)
        for at, dataset in enumerate(datasets):
            _insert(link, "dataset", structs.asdict(dataset), run=number, at=at)
        if live is not None:
            _insert(link, "live", {"run": number, "state": msgpack.encode(live)})
        for key, notice in enumerate(notices):
            row = {"name": notice.name, "key": str(key), "at": notice.at}
            _insert(link, "notice", row, run=number, attributes=msgpack.encode(notice.attributes))
        link.execute("insert or ignore into scope values(1, 'stagewatch', '', '')")
        link.execute("insert or ignore into resource values(1, x'00', ?, 0)", [_NO_ATTRIBUTES])
        if pending_for:
            link.execute("insert or ignore into destination values(1, ?, 'traces')", [pending_for])
        for one in spans:
            ended = records.SpanEnded(
                name=one.name,
                trace_id=of.trace_id,
                span_id=one.span_id,
                parent_span_id=one.parent_span_id,
                start=one.start,
                end=one.end,
                kind=0,
                status=2 if one.failed else 0,
                status_description=None,
                scope=1,
                attributes=one.attributes,
            )
            row = {
                "trace_id": of.trace_id,
                "span_id": one.span_id,
                "parent": one.parent_span_id,
                "run": number,
                "role": ROLES.index(one.role),
                "start": one.start,
                "seconds": (one.end - one.start) / SECOND,
                "failed": int(one.failed),
                "state": PENDING if pending_for else KEPT,
                "destination": 1,
                "resource": 1,
                "scope": 1,
                "record": records.encode(ended),
            }
            _insert(link, "span", row)
    link.close()


def _insert(link: Any, table: str, row: dict[str, Any], **more: Any) -> int:
    row = {**row, **more}
    marks = ", ".join("?" * len(row))
    statement = f"insert into {table}({', '.join(row)}) values({marks})"
    return int(link.execute(statement, list(row.values())).lastrowid)
