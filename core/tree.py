"""The span tree of a run as lines, each with its bar on one time axis.

Pure functions over rows of the history. Times are nanoseconds since the epoch, durations seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult

from stagewatch import spark_spans
from stagewatch.figures import SECOND, Cell, aligned, bar, duration, plain, seconds_of
from stagewatch.in_flight import doing_word
from stagewatch.model import Live, LiveStage, Operation, Outcome, Role, Run, Stage
from stagewatch.semconv import DATASET_URI, ERROR_TYPE, STAGE_NAME

MOST_SPANS: Final = 60
"""So many spans are shown unless all are asked for: the failed, the stages, then the longest."""
_MOST_SIBLINGS: Final = 12
_URL: Final = "url.full"  # of the HTTP conventions; our instrumentors take its query away
_LONGEST_PREFIX: Final = 40
_NARROWEST_AXIS: Final = 12
_WIDEST_AXIS: Final = 48
_NARROWEST_LABEL: Final = 10
_WIDEST_NOTE: Final = 20
OPEN: Final = " …"
"""Behind the name of what has not ended."""
_STYLES: Final[Mapping[Role, str]] = {
    Role.RUN: "bold",
    Role.STAGE: "cyan",
    Role.USER: "",
    Role.DETAIL: "dim",
}


class Span(Protocol):
    """What the tree needs of a span of the history."""

    @property
    def span_id(self) -> bytes: ...
    @property
    def parent_span_id(self) -> bytes: ...
    @property
    def name(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def failed(self) -> bool: ...
    @property
    def attributes(self) -> Mapping[str, Any]: ...


class Line(Struct, frozen=True, kw_only=True):
    """One line of the tree."""

    prefix: str
    """Branches of the tree in front of the name."""
    label: str
    role: Role
    start: int | None = None
    """None without a place on the time axis: a count, or what was cut."""
    seconds: float | None = None
    note: str = ""
    failed: bool = False


class _OpenStage(Struct, frozen=True):
    """A stage under way, as if it ended now."""

    name: str
    span_id: bytes
    parent_span_id: bytes
    start: int
    end: int
    attributes: Mapping[str, Any]
    role: Role = Role.STAGE
    failed: bool = False


class _Node(Struct):
    label: str
    role: Role
    start: int | None = None
    seconds: float | None = None
    note: str = ""
    failed: bool = False
    children: list[_Node] = []
    hidden: int = 0


def tree(
    run: Run,
    spans: Sequence[Span],
    stages: Sequence[Stage],
    operations: Sequence[Operation],
    *,
    now: int,
    live: Live | None = None,
    most: int | None = MOST_SPANS,
) -> list[Line]:
    """The run's spans, parents first, children by start; folded calls are one line each.

    Stages that `live` says are open reach until `now`, with their open operation beneath. A span
    whose parent is not in the history hangs under the one stage it names, else under the run.
    With more than `most` spans the least telling ones are replaced by their number.
    """
    root = _Node(
        plain(run.pipeline),
        Role.RUN,
        run.start,
        seconds_of(run, now),
        note=doing_word(live) if run.end is None else plain(run.error_type or ""),
        failed=run.outcome in (Outcome.FAILURE, Outcome.ERROR),
    )
    known = {span.span_id: span for span in spans if span.span_id != run.span_id}
    # One that has ended since its recorder looked is no longer open.
    opened = [stage for stage in live.stages if stage.span_id not in known] if live else []
    known |= {stage.span_id: _until(stage, now) for stage in opened}
    by_name: dict[str, list[Span]] = {}
    for span in known.values():
        if span.role is Role.STAGE:
            by_name.setdefault(_stage_name(span), []).append(span)

    def parent_of(span: Span) -> Span | None:
        if found := known.get(span.parent_span_id):
            return found
        if span.parent_span_id == run.span_id or span.role is Role.STAGE:
            return None
        named = by_name.get(str(span.attributes.get(STAGE_NAME)), [])
        # Its time is looked at, too: a stage that runs inside the span cannot hold it.
        holds = len(named) == 1 and named[0].start <= span.start and span.end <= named[0].end
        return named[0] if holds else None

    shown = known if most is None else _most_telling(known, parent_of, most)
    nodes: dict[bytes, _Node] = {}
    for span in sorted(shown.values(), key=lambda span: span.start):
        # What was called off (SIGTERM, Ctrl-C) did not fail, but it did not end well, either.
        cause = span.attributes.get(ERROR_TYPE, "failed" if span.failed else "")
        note = plain(str(cause)) or spark_spans.note(span.name, span.attributes)
        label = _label(span)
        if isinstance(span, _OpenStage):
            label, note = label + OPEN, "open"
        nodes[span.span_id] = _Node(label, span.role, span.start, took(span), note, span.failed)
    for key, node in nodes.items():
        parent = parent_of(known[key])
        (nodes[parent.span_id] if parent else root).children.append(node)
    for key, span in known.items():
        if key not in shown:
            above = _nearest(span, parent_of, nodes)
            (nodes[above] if above else root).hidden += 1
    for stage in opened:
        if stage.span_id in nodes:
            _add_open_operation(nodes[stage.span_id], stage, now)
    if live:
        _add_open_operation(root, live, now)
    _add_folded(root, nodes, known, stages, operations)
    return _lines(root)


def _until(stage: LiveStage, now: int) -> Span:
    return _OpenStage(
        stage.name,
        stage.span_id,
        stage.parent_span_id,
        stage.start,
        max(now, stage.start),
        {STAGE_NAME: stage.name},
    )


def _add_open_operation(above: _Node, seen: LiveStage | Live, now: int) -> None:
    if seen.operation is not None:
        start = seen.operation_start
        seconds = None if start is None else max(now - start, 0) / SECOND
        label = plain(seen.operation) + OPEN
        above.children.append(_Node(label, Role.DETAIL, start, seconds, "open"))


def took(span: Span) -> float:
    """Duration in seconds."""
    return (span.end - span.start) / SECOND


def _stage_name(span: Span) -> str:
    return str(span.attributes.get(STAGE_NAME, span.name))


def _label(span: Span) -> str:
    """The name, with the end of what was read, written or asked for."""
    if (spark := spark_spans.label(span.name, span.attributes)) is not None:
        return plain(spark)
    target = str(span.attributes.get(DATASET_URI) or span.attributes.get(_URL) or "")
    tail = target.rstrip("/").rpartition("/")[2] if span.role is Role.DETAIL else ""
    return plain(f"{span.name} {tail}".rstrip())


def _most_telling(
    known: Mapping[bytes, Span], parent_of: Callable[[Span], Span | None], most: int
) -> dict[bytes, Span]:
    """At most about `most` spans, each with all its ancestors."""
    ranked = sorted(
        known.values(),
        key=lambda span: (
            isinstance(span, _OpenStage),
            span.failed,
            span.role is Role.STAGE,
            took(span),
            -span.start,
        ),
    )
    kept: dict[bytes, Span] = {}
    siblings: dict[bytes, int] = {}
    while ranked and len(kept) < most:
        span: Span | None = ranked.pop()
        assert span is not None
        alike = not span.failed and span.role is not Role.STAGE
        if alike and siblings.get(span.parent_span_id, 0) >= _MOST_SIBLINGS:
            continue
        while span is not None and span.span_id not in kept:
            kept[span.span_id] = span
            siblings[span.parent_span_id] = siblings.get(span.parent_span_id, 0) + 1
            span = parent_of(span)
    return kept


def _nearest(
    span: Span, parent_of: Callable[[Span], Span | None], nodes: Mapping[bytes, _Node]
) -> bytes | None:
    seen: set[bytes] = set()
    above = parent_of(span)
    while above is not None and above.span_id not in seen:
        if above.span_id in nodes:
            return above.span_id
        seen.add(above.span_id)
        above = parent_of(above)
    return None


def _add_folded(
    root: _Node,
    nodes: Mapping[bytes, _Node],
    known: Mapping[bytes, Span],
    stages: Sequence[Stage],
    operations: Sequence[Operation],
) -> None:
    """Calls without a span: of a stage beside its other calls, of an operation under its stage."""
    places: dict[str, _Node] = {"": root}
    for key, node in nodes.items():
        if known[key].role is Role.STAGE:
            places.setdefault(_stage_name(known[key]), node)
    with_span: dict[str, list[Span]] = {}
    for span in known.values():
        if span.role is Role.STAGE and not isinstance(span, _OpenStage):
            with_span.setdefault(_stage_name(span), []).append(span)
    for stage in stages:
        seen = with_span.get(stage.name, [])
        if (folded := stage.calls - len(seen)) > 0:
            rest = max(0.0, stage.seconds - sum(map(took, seen)))
            label = f"{plain(stage.name)} ×{folded:,}"
            node = _Node(label, Role.STAGE, None, rest, "(folded)")
            root.children.append(node)
            places.setdefault(stage.name, node)
    for operation in operations:
        if operation.folded > 0:
            all_folded = operation.folded == operation.calls
            others = f"; all {operation.calls:,} calls took {duration(operation.seconds)}"
            places.get(operation.stage, root).children.append(
                _Node(
                    f"{plain(operation.name)} ×{operation.folded:,}",
                    Role.DETAIL,
                    None,
                    operation.seconds if all_folded else None,
                    "(folded)" if all_folded else f"(folded{others})",
                )
            )


def _lines(root: _Node) -> list[Line]:
    lines = []
    stack = [(root, "", "")]
    while stack:  # not recursive: a trace may be deeper than Python's stack
        node, prefix, below = stack.pop()
        lines.append(
            Line(
                prefix=_shortened(prefix),
                label=node.label,
                role=node.role,
                start=node.start,
                seconds=node.seconds,
                note=node.note,
                failed=node.failed,
            )
        )
        children = list(node.children)
        if node.hidden:
            children.append(_Node(f"… {node.hidden:,} more", Role.DETAIL))
        for i, child in reversed(list(enumerate(children))):
            last = i == len(children) - 1
            stack.append(
                (child, below + ("└ " if last else "├ "), below + ("  " if last else "│ "))
            )
    return lines


def _shortened(prefix: str) -> str:
    if len(prefix) <= _LONGEST_PREFIX:
        return prefix
    return "…" + prefix[1 - _LONGEST_PREFIX :]


class TreeView(Struct, frozen=True):
    """Lines with their bars on one time axis, fitted to the console's width."""

    lines: tuple[Line, ...]
    start: int
    end: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        spent = [duration(line.seconds) if line.seconds is not None else "" for line in self.lines]
        span = max(self.end - self.start, 1) / SECOND
        labels = max(cell_len(line.prefix + line.label) for line in self.lines)
        # What has no place on the axis leaves room there for its note.
        notes = max(cell_len(line.note) if line.start is not None else 0 for line in self.lines)
        notes = min(notes, _WIDEST_NOTE)
        width = max(map(len, spent))
        room = options.max_width - width - notes - (3 if notes else 2)
        axis = min(_WIDEST_AXIS, max(_NARROWEST_AXIS, room - labels))
        labels = min(labels, max(_NARROWEST_LABEL, room - axis))
        dim, red = console.get_style("dim"), console.get_style("red")
        styles = {role: console.get_style(style) for role, style in _STYLES.items()}
        yield from aligned([Cell("", labels), Cell(_scale(span, axis), axis, dim)])
        for line, seconds in zip(self.lines, spent, strict=True):
            style = red if line.failed else styles[line.role]
            cells = [Cell(line.prefix + line.label, labels, style)]
            if line.start is not None:
                cells.append(Cell(self._bar(line, axis), axis, style))
            else:
                cells.append(Cell(line.note, axis, dim))
            cells.append(Cell(seconds, width, None, True))
            if notes and line.start is not None:
                cells.append(Cell(line.note, notes, red if line.failed else dim))
            yield from aligned(cells)

    def _bar(self, line: Line, width: int) -> str:
        if line.start is None or line.seconds is None:
            return ""
        span = max(self.end - self.start, 1)
        begin = max(0.0, (line.start - self.start) / span) * width
        column = min(int(begin), width - 1)
        length = begin + line.seconds * SECOND / span * width - column
        # Never quite nothing: a span too short for the axis still happened at its place.
        return " " * column + bar(max(length, 0.125) / (width - column), width - column)


def _scale(seconds: float, width: int) -> str:
    end = duration(seconds)
    return "0 " + "─" * max(0, width - len(end) - 3) + " " + end
