"""How a run under way is put: what it is doing, where, how far it is, and what was said of it.

Pure functions over `stagewatch.model.Live` and `Notice`. Times are nanoseconds since the epoch,
durations seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.text import Text

from stagewatch import semconv
from stagewatch.figures import ACTIVE, SECOND, clock, count, duration, iso, plain
from stagewatch.model import Doing, Live, LiveStage, Notice, Run

DOING_STYLES: Final[Mapping[str, str]] = {
    ACTIVE: "cyan",
    Doing.RUNNING: "cyan",
    Doing.WAITING: "yellow",
    Doing.STUCK: "bold red",
    Doing.DEAD: "bold red",
}
_WAITS: Final[Mapping[str, str]] = {"socket": "a socket", "child": "a child process"}
_STALE_SECONDS: Final = 15.0
_GRAVE: Final = frozenset({semconv.RUN_STUCK, semconv.PROCESS_DIED, semconv.TELEMETRY_GAP})
_TROUBLES: Final = {semconv.STAGE_LATE: "late", semconv.STAGE_SLOW: "slow"}
_LATE: Final = frozenset({semconv.RUN_LATE, semconv.STAGE_LATE, semconv.STAGE_SLOW})

# --- a run --------------------------------------------------------------------------------------


def doing_word(live: Live | None) -> str:
    """``running``, ``waiting``, ``stuck`` or ``dead``; ``active`` where nobody has seen it yet."""
    return live.doing.value if live else ACTIVE


def doing_text(live: Live | None, now: int) -> Text:
    """Such as ``waiting for pandas.read_sql since 02:41:10 (9m55s)``."""
    text = _doing(live)
    if live and live.doing is not Doing.RUNNING and live.since:
        text.append(f" since {clock(live.since, now)} ({duration((now - live.since) / SECOND)})")
    return text


def _doing(live: Live | None) -> Text:
    word = doing_word(live)
    text = Text(word, DOING_STYLES[word])
    if live and live.doing is Doing.DEAD:
        text.append(", not taken in yet")
    if live and live.doing is Doing.WAITING and (awaited := _awaited(live)):
        text.append(f" for {awaited}")
    return text


def _awaited(live: Live) -> str:
    return _WAITS.get(live.waits_for or "") or where(live)[1]


def troubled(live: Live, notices: Sequence[Notice]) -> dict[str, str]:
    """Open stages of which it was said that they are ``late`` or ``slow``, by name."""
    begun: dict[str, int] = {}
    for stage in live.stages:
        begun[stage.name] = min(stage.start, begun.get(stage.name, stage.start))
    return {
        name: _TROUBLES[notice.name]
        for notice in notices
        if notice.name in _TROUBLES
        and (name := str(notice.attributes.get(semconv.STAGE_NAME))) in begun
        and begun[name] <= notice.at
    }


def where(live: Live, troubles: Mapping[str, str] | None = None) -> tuple[str, str]:
    """The innermost open stages (``load``, ``chunk ×8``) and an operation open in one of them.

    *troubles*: see `troubled`; such a stage is marked (``load !slow``).
    """
    outer = {stage.parent_span_id for stage in live.stages}
    inner = [stage for stage in live.stages if stage.span_id not in outer]
    marks = {name: f" !{word}" for name, word in (troubles or {}).items()}
    names = Counter(stage.name for stage in inner)
    stages = ", ".join(
        plain(name) + (f" ×{n}" if n > 1 else "") + marks.get(name, "") for name, n in names.items()
    )
    operation = next((stage.operation for stage in inner if stage.operation), live.operation)
    return stages, plain(operation or "")


def place(stage: str | None, operation: str | None) -> str:
    """``in load, in pandas.to_sql``, with what is known of the two."""
    return ", ".join(f"in {plain(name)}" for name in (stage, operation) if name)


def whole_percent(progress: float) -> str:
    """``52 %``; 100 % only of what is complete."""
    return f"{min(int(max(progress, 0.0) * 100), 100)} %"


def remaining(live: Live, now: int) -> float | None:
    """Seconds it will still take by its estimated end; None without one that lies ahead."""
    if live.estimated_end is None or live.estimated_end <= now:
        return None
    return (live.estimated_end - now) / SECOND


def is_stale(live: Live, now: int) -> bool:
    """Whether no recorder has looked at it for a while."""
    return now - live.at > _STALE_SECONDS * SECOND


def in_one_line(run: Run, live: Live, now: int) -> Text:
    """One line on what it is doing and how far it is; lateness so far has a place elsewhere."""
    line = Text()
    line.append(f"{run.run_id[:8]} ")
    line.append(plain(run.pipeline), "bold")
    line.append(": ")
    line.append_text(_doing(live))
    stages, operation = where(live)
    if words := place(stages, operation if live.doing is not Doing.WAITING else None):
        line.append(f" {words}")
    if live.doing is not Doing.RUNNING and live.since:
        line.append(f" for {duration((now - live.since) / SECOND)}")
    if live.progress is not None:
        line.append(f" · {whole_percent(live.progress)}")
    if (seconds := remaining(live, now)) is not None:
        line.append(f" · about {duration(seconds)} to go")
    return line


# --- what was said of it ------------------------------------------------------------------------


def notice_text(notice: Notice) -> Text:
    """What was said, and the particulars: ``run late by 3m05s, warning``."""
    style = "red" if notice.name in _GRAVE else "yellow" if notice.name in _LATE else ""
    said = notice.attributes
    # What stands on it of the run's own lateness is beside the point of what is said of a stage.
    measure = semconv.RUN_LATENESS if notice.name == semconv.RUN_LATE else semconv.STAGE_LATENESS
    late = said.get(measure)
    text = Text()
    text.append(plain(notice.name), style)
    if late:
        text.append(f" by {duration(late)}", style)
    if particulars := _particulars(said):
        text.append(", " + ", ".join(particulars))
    return text


def _particulars(said: Mapping[str, Any]) -> list[str]:
    speed = said.get(semconv.STAGE_THROUGHPUT)
    who = (said.get(semconv.PROCESS_PID), said.get(semconv.ERROR_TYPE))
    stage = said.get(semconv.STAGE_NAME) or said.get(semconv.RUN_STAGE)
    words = [
        plain(str(said.get(semconv.ESCALATION) or "")),
        "" if speed is None else f"{count(speed)} records/s",
        plain(" ".join(str(part) for part in who if part is not None)),
        place(stage, said.get(semconv.RUN_OPERATION)),
    ]
    return [word for word in words if word]


# --- JSON ---------------------------------------------------------------------------------------


def live_json(live: Live, now: int) -> dict[str, Any]:
    """What was seen at the time ``at``; units and form as in `stagewatch.report.run_json`.

    ``doing`` is running, waiting, stuck or dead (not taken in yet), ``since`` when it last moved;
    ``stages`` are the open ones, each with its ``duration`` so far; ``cpu_share`` is in cores;
    ``throughput`` is over the last 60 s. What is not known is null.
    """
    return {
        "at": iso(live.at),
        "doing": live.doing.value,
        "since": iso(live.since) if live.since else None,
        "waits_for": live.waits_for,
        "operation": live.operation,
        "operation_start": iso(live.operation_start),
        "progress": live.progress,
        "estimated_end": iso(live.estimated_end),
        "throughput": live.throughput,
        "cpu_seconds": live.cpu_seconds,
        "cpu_share": live.cpu_share,
        "memory": live.memory,
        "memory_peak": live.memory_peak,
        "processes": live.processes,
        "threads": live.threads,
        "read_bytes": live.read_bytes,
        "written_bytes": live.written_bytes,
        "stages": [_stage_json(stage, now) for stage in live.stages],
    }


def _stage_json(stage: LiveStage, now: int) -> dict[str, Any]:
    return {
        "name": stage.name,
        "span_id": stage.span_id.hex(),
        "parent_span_id": stage.parent_span_id.hex() or None,
        "pid": stage.pid,
        "start": iso(stage.start),
        "duration": max(0, now - stage.start) / SECOND,
        "operation": stage.operation,
        "operation_start": iso(stage.operation_start),
        "records_in": stage.records_in,
        "records_out": stage.records_out,
        "records_rejected": stage.records_rejected,
        "throughput": stage.throughput,
        "cpu_seconds": stage.cpu_seconds,
        "memory_peak": stage.memory_peak,
        "expected_records": stage.expected_records,
    }


def notices_json(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    """``at``, ``name`` and ``attributes`` of each, in the order in which they were said."""
    return [
        {"at": iso(notice.at), "name": notice.name, "attributes": dict(notice.attributes)}
        for notice in notices
    ]
