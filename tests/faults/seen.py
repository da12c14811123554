"""What can be known of a run, in one form, whether the receiver or the history is asked."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from stagewatch import semconv
from stagewatch.history import open_history
from tests.otlp_receiver import OtlpReceiver

NOTICES = frozenset(
    {
        semconv.RUN_STARTED,
        semconv.RUN_LATE,
        semconv.RUN_STUCK,
        semconv.RUN_RESUMED,
        semconv.STAGE_LATE,
        semconv.STAGE_SLOW,
        semconv.PROCESS_DIED,
        semconv.TELEMETRY_GAP,
    }
)
"""Short spans of the recorder's own, which are told apart from the job's."""


class Span(Struct, frozen=True):
    """As much of a span as the matrix looks at. Times in ns."""

    name: str
    trace_id: str
    span_id: str
    parent: str
    start: int
    end: int
    attributes: dict[str, Any]
    content: bytes = b""
    """To tell apart the same span twice from two spans under one id."""


class Seen(Struct, frozen=True, kw_only=True):
    """Everything about one run at one place."""

    place: str
    runs: dict[str, int]
    """``outcome error.type`` to the number of runs that ended so."""
    ends: tuple[int, ...]
    """Of the run's span or row, ns; more than one is wrong."""
    tree: str
    ids: dict[str, set[str]]
    records: dict[str, int]
    operations: dict[str, int]
    notices: tuple[str, ...]
    dropped: dict[str, int]
    faults: tuple[str, ...]
    """What is wrong in itself: an orphan, two traces, a span twice."""
    seconds: dict[str, float] = {}
    """Of stages, added up."""


def at_receiver(receiver: OtlpReceiver, pipeline: str, *, may_repeat: bool) -> Seen:
    """From spans and totals that arrived."""
    spans = [
        Span(
            got.name,
            got.trace_id,
            got.span_id,
            got.parent_span_id,
            got.span.start_time_unix_nano,
            got.span.end_time_unix_nano,
            got.attributes,
            got.span.SerializeToString(deterministic=True),
        )
        for got in receiver.spans
        if got.resource.get(semconv.SERVICE_NAME) == pipeline
    ]
    runs, faults = _runs(spans)
    totals = _totals(receiver, faults)
    of_ours = {
        name: {
            key: value
            for key, value in series.items()
            if dict(key).get(semconv.PIPELINE_NAME, pipeline) == pipeline
        }
        for name, series in totals.items()
    }
    faults += _repeated(spans, may_repeat=may_repeat)
    return Seen(
        place="receiver",
        runs=_by(of_ours, semconv.RUNS.name, semconv.RUN_OUTCOME, semconv.ERROR_TYPE),
        ends=tuple(run.end for run in runs),
        records=_by(of_ours, semconv.RECORDS.name, semconv.STAGE_NAME, semconv.DIRECTION),
        operations=_by(of_ours, semconv.OPERATIONS.name, semconv.STAGE_NAME, semconv.OPERATION),
        dropped=_by(of_ours, semconv.TELEMETRY_DROPPED.name, semconv.REASON),
        **_of_spans(spans, runs, faults),
    )


def in_history(state: Path, pipeline: str) -> Seen:
    """From the local history."""
    with open_history(state, readonly=True) as history:
        runs = history.runs(pipeline, limit=100)
        faults = [f"{len(runs)} runs"] if len(runs) != 1 else []
        if not runs:
            return Seen(
                place="history", runs={}, ends=(), tree="", ids={}, records={}, operations={},
                notices=(), dropped={}, faults=("no run",),
            )  # fmt: skip
        run = runs[0]
        spans = [
            Span(
                row.name,
                row.trace_id.hex(),
                row.span_id.hex(),
                row.parent_span_id.hex(),
                row.start,
                row.end,
                row.attributes,
            )
            for row in history.spans(run.run_id)
        ]
        roots, more = _runs(spans)
        notices = tuple(sorted(notice.name for notice in history.notices(run.run_id)))
        records = {
            f"{stage.name} {side}": count
            for stage in history.stages(run.run_id)
            for side in ("in", "out", "rejected")
            if (count := getattr(stage, f"records_{side}"))
        }
        sums = {
            side: sum(n for key, n in records.items() if key.endswith(side))
            for side in ("in", "out", "rejected")
        }
        own = {side: getattr(run, f"records_{side}") or 0 for side in sums}
        if own != sums:
            faults.append(f"records of the run are {own}, of its stages {sums}")
        return Seen(
            place="history",
            runs=dict(Counter(_words(run.outcome, run.error_type) for run in runs)),
            ends=tuple(run.end or 0 for run in runs),
            records=records,
            operations={
                f"{one.stage} {one.name}".strip(): one.calls
                for one in history.operations(run.run_id)
            },
            dropped={
                dict(key)[semconv.REASON]: int(value)
                for key, value in history.counters(semconv.TELEMETRY_DROPPED.name).items()
                if value
            },
            seconds={stage.name: stage.seconds for stage in history.stages(run.run_id)},
            **(_of_spans(spans, roots, faults + more) | {"notices": notices}),
        )


def arrival(receiver: OtlpReceiver, name: str) -> float | None:
    """When the first span called *name* came in; seconds since the epoch."""
    times = [span.time for span in receiver.spans if span.name == name]
    return min(times, default=None)


def tree(spans: Iterable[Span], root: str) -> str:
    """See `tests.faults.row.Row`."""
    children: dict[str, list[Span]] = {}
    for span in spans:
        children.setdefault(span.parent, []).append(span)

    def below(span_id: str) -> str:
        counted = Counter(shown(span) for span in children.get(span_id, ()))
        return " ".join(
            f"{text}×{count}" if count > 1 else text for text, count in sorted(counted.items())
        )

    def shown(span: Span) -> str:
        cause = span.attributes.get(semconv.ERROR_TYPE)
        inner = below(span.span_id)
        return span.name + (f"({cause})" if cause else "") + (f"[{inner}]" if inner else "")

    return below(root)


def _of_spans(spans: list[Span], runs: list[Span], faults: list[str]) -> dict[str, Any]:
    """The fields of `Seen` that follow from spans."""
    unique = list({span.span_id: span for span in spans}.values())
    known = {span.span_id for span in unique}
    orphans = Counter(span.name for span in unique if span.parent not in known and span not in runs)
    faults += [f"{count} orphans called {name}" for name, count in orphans.items()]
    if len({span.trace_id for span in unique}) > 1:
        faults.append(f"{len({span.trace_id for span in unique})} traces")
    faults += [f"{span.name} ends before it starts" for span in unique if span.end < span.start]
    ids: dict[str, set[str]] = {}
    for span in unique:
        ids.setdefault(span.name, set()).add(span.span_id)
    ours = [span for span in unique if span.name not in NOTICES]
    notices = sorted(span.name for span in unique if span.name in NOTICES)
    return {
        "tree": tree(ours, runs[0].span_id) if runs else "",
        "ids": ids,
        "notices": tuple(notices),
        "faults": tuple(faults),
    }


def _runs(spans: list[Span]) -> tuple[list[Span], list[str]]:
    """The run's span, and what is wrong with it."""
    found = [span for span in spans if semconv.RUN_OUTCOME in span.attributes and not span.parent]
    runs = list({span.span_id: span for span in found}.values())
    return runs, [] if len(runs) == 1 else [f"{len(runs)} spans of the run"]


def _repeated(spans: list[Span], *, may_repeat: bool) -> list[str]:
    contents: dict[str, set[bytes]] = {}
    for span in spans:
        contents.setdefault(span.span_id, set()).add(span.content)
    different = sum(len(each) > 1 for each in contents.values())
    again = len(spans) - len(contents)
    return [
        *([f"{different} ids with different spans"] if different else []),
        *([f"{again} spans came twice"] if again and not may_repeat else []),
    ]


_Series = dict[str, dict[Any, float]]


def _totals(receiver: OtlpReceiver, faults: list[str]) -> _Series:
    """Newest value of each counter's series; each must have begun at 0 and never have fallen."""
    found: _Series = {}
    counters = {metric.name for metric in semconv.METRICS if metric.kind == "counter"}
    for point in receiver.metric_points:
        if point.name not in counters:
            continue
        service = (semconv.SERVICE_NAME, point.resource.get(semconv.SERVICE_NAME))
        key = (service, *sorted(point.attributes.items()))
        series = found.setdefault(point.name, {})
        if point.value < series.get(key, 0.0):
            faults.append(f"{point.name} fell")
        series[key] = point.value
    return found


def _by(totals: Mapping[str, Mapping[Any, float]], name: str, *attributes: str) -> dict[str, int]:
    """Values of a counter by the words of some of its attributes."""
    found: dict[str, int] = {}
    for key, value in totals.get(name, {}).items():
        labels = dict(key)
        words = _words(*(labels.get(attribute) for attribute in attributes))
        if value:
            found[words] = found.get(words, 0) + int(value)
    return found


def _words(*words: str | None) -> str:
    return " ".join(word for word in words if word)


def when(nanoseconds: int) -> str:
    """A time as it is shown: to the millisecond."""
    whole = time.strftime("%H:%M:%S", time.localtime(nanoseconds / 1e9))
    return f"{whole}.{nanoseconds // 10**6 % 1000:03d}"
