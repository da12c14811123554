"""What is expected against what was seen: every difference in plain words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from msgspec import Struct

from stagewatch import semconv
from tests.faults.row import Row
from tests.faults.scene import Scene, Told
from tests.faults.seen import Seen, when

_KNOWN_AFTER = 3.0
"""Seconds in which a death must have been seen from outside, on a busy machine."""
_HELD_BACK = 5.0
"""Seconds between a job's last line and its end, on a busy machine; the stock SDK takes 7 to 15."""
_INEXACT = 0.002
"""Seconds by which clocks may differ."""
_MADE_GOOD = 4


class Bare(Struct, frozen=True):
    """What the same job does with nothing around it."""

    exit: int
    out: str
    err: str


def differences(scene: Scene, seen: list[Seen], bare: Bare | None) -> list[str]:
    """Empty if the row is green."""
    told = scene.told()
    found = list(_of_job(scene, bare, told))
    for one in seen:
        found += [f"{one.place}: {text}" for text in _of_place(scene, told, one)]
    return found


def _of_job(scene: Scene, bare: Bare | None, told: Told) -> Iterator[str]:
    row = scene.row
    if scene.exit != row.exit:
        yield f"exit status: expected {row.exit}, got {scene.exit}"
    err = scene.err
    if row.warning:
        lines = err.splitlines(keepends=True)
        ours = [line for line in lines if re.search(row.warning, line)]
        if len(ours) != 1:
            yield f"stderr: expected one line like {row.warning!r}, got {len(ours)}"
        err = "".join(line for line in lines if line not in ours)
    if bare is not None:
        if scene.out != bare.out:
            yield f"stdout: expected {bare.out!r}, got {scene.out!r}"
        if err != bare.err:
            yield f"stderr: expected {bare.err!r}, got {err!r}"
        if bare.exit != row.exit:
            yield f"exit status without us: expected {row.exit}, got {bare.exit}"
    last = told.fact("last")
    if last is not None and row.exit >= 0 and scene.ended - max(last, scene.killed) > _HELD_BACK:
        yield f"its end was held back: {scene.ended - last:.1f} s"


def _of_place(scene: Scene, told: Told, seen: Seen) -> Iterator[str]:
    row = scene.row
    yield from seen.faults
    yield from _different("runs", {_outcome(row): 1}, seen.runs)
    yield from _of_end(scene, told, seen)
    yield from _different("trace", _tree(row, seen), seen.tree)
    yield from _of_losses(row, seen)
    yield from _different("records", row.records, seen.records)
    yield from _different("operations", row.operations, seen.operations)
    said = tuple(name for name in seen.notices if name != semconv.RUN_STARTED)
    yield from _different("notices", row.notices, said)
    if seen.notices.count(semconv.RUN_STARTED) > 1:
        yield "it was said more than once that the run started"
    dropped = {reason: n for reason, n in seen.dropped.items() if reason != row.losses}
    yield from _different("dropped", {}, dropped)
    if not row.losses:
        for name, ids in told.ids().items():
            if missing := ids - seen.ids.get(name, set()):
                yield f"{name}: {len(missing)} of {len(ids)} are not there under their ids"
        yield from _of_seconds(told, seen)


def _of_seconds(told: Told, seen: Seen) -> Iterator[str]:
    for name, (least, most) in told.seconds().items():
        took = seen.seconds.get(name, least)
        if not least - _INEXACT <= took <= most + _INEXACT:
            yield f"{name}: expected {least:.3f} … {most:.3f} s, got {took:.3f} s"


def _of_end(scene: Scene, told: Told, seen: Seen) -> Iterator[str]:
    """Not before the job's last line, not long after its end was known to its parent."""
    last = scene.started if scene.row.vague_end else told.fact("last") or scene.started
    earliest = int((max(last, scene.killed if not scene.row.vague_end else 0) - 0.01) * 1e9)
    latest = int((scene.ended + _KNOWN_AFTER) * 1e9)
    for end in seen.ends:
        if not earliest <= end <= latest:
            yield f"end: expected {when(earliest)} … {when(latest)}, got {when(end)}"


def _tree(row: Row, seen: Seen) -> str:
    return row.tree.replace("{kept}", str(_kept(row, seen)))


def _kept(row: Row, seen: Seen) -> int:
    """How many of the spans that could be lost are there."""
    around = re.escape(row.tree).replace(re.escape("{kept}"), r"(\d+)")
    found = re.fullmatch(around, seen.tree)
    return int(found[1]) if found and found.groups() else 0


def _of_losses(row: Row, seen: Seen) -> Iterator[str]:
    if not row.losses:
        return
    lost, dropped = row.spans - _kept(row, seen), seen.dropped.get(row.losses, 0)
    # Counted are records: with the spans the ends of stage and run, which the recorder makes good.
    if not 0 < lost <= dropped <= lost + _MADE_GOOD:
        yield f"{lost} spans were lost, {dropped} are counted as dropped"


def _outcome(row: Row) -> str:
    return f"{row.outcome} {row.error_type}" if row.error_type else str(row.outcome)


def _different(what: str, expected: object, got: object) -> Iterator[str]:
    if expected != got:
        yield f"{what}: expected {expected or 'none'}, got {got or 'none'}"
