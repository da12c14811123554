"""Tables that fit a console: where it is narrow they lose columns, and never part of a figure.

First the columns go that say nothing in any row, then the least important ones. Words are cut,
with a mark; a figure stands there whole or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from rich.text import Text

from stagewatch.figures import NOTHING, Cell, aligned

_SAYS_NOTHING: Final = frozenset({"", NOTHING, "0", "0 %"})
_BETWEEN_PARTS: Final = re.compile(r", | · ")


class Column(Struct, frozen=True, kw_only=True):
    """One column: what stands in it, and how it gives way."""

    head: str
    text: Callable[[Any], str]
    """Of a row."""
    importance: int
    """The one with the highest number goes first, where the console is narrow."""
    narrowest: int | None = None
    """Down to which its words are cut; None: figures, which never are."""
    widest: int | None = None
    width: int | None = None
    """The same in every look, so that nothing jumps; None: as wide as its longest text."""
    is_right: bool = False
    cut: Callable[[Any, int], str] | None = None
    """What stands for the text of a row where it is too long for a width; else its end is cut."""


def fitting(columns: Sequence[Column], rows: Sequence[Any], room: int) -> list[tuple[Column, int]]:
    """The columns there is room for, in their order, each with its width.

    A column without a single text is left out anyway.
    """
    wanted: dict[str, int] = {}
    least: dict[str, int] = {}
    silent = set()
    for column in columns:
        texts = [column.text(row) for row in rows]
        if not any(texts):
            continue
        longest = column.width or max(map(cell_len, [column.head, *texts]))
        wanted[column.head] = min(longest, column.widest or longest)
        least[column.head] = min(wanted[column.head], column.narrowest or longest)
        if _SAYS_NOTHING.issuperset(texts):
            silent.add(column.head)
    kept = sorted(
        (column for column in columns if column.head in wanted),
        key=lambda column: (column.head in silent, column.importance),
    )

    def spare() -> int:
        return room - sum(least[column.head] + 1 for column in kept) + 1

    while len(kept) > 1 and spare() < 0:
        kept.pop()
    left = max(spare(), 0)
    widths = {}
    for column in kept:
        given = min(left, wanted[column.head] - least[column.head])
        widths[column.head] = min(least[column.head] + given, room)
        left -= given
    return [(column, widths[column.head]) for column in columns if column.head in widths]


def cells(
    columns: Sequence[tuple[Column, int]],
    row: Any,
    styles: Mapping[str, Style],
    other: Style | None = None,
) -> list[Cell]:
    """The line of one row; *styles* by head, *other* for the columns that have none there."""
    found = []
    for column, width in columns:
        text = column.text(row)
        if column.cut is not None and cell_len(text) > width:
            text = column.cut(row, width)
        found.append(Cell(text, width, styles.get(column.head, other), column.is_right))
    return found


class Rows(Struct, frozen=True):
    """A table with a line of heads, each row in one style."""

    columns: tuple[Column, ...]
    rows: tuple[Any, ...]
    style: Callable[[Any], str] = lambda row: ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = fitting(self.columns, self.rows, options.max_width)
        bold = console.get_style("bold")
        yield from aligned([Cell(c.head, width, bold, c.is_right) for c, width in columns])
        for row in self.rows:
            yield from aligned(cells(columns, row, {}, console.get_style(self.style(row))))


class Parts(Struct, frozen=True):
    """Facts in a row, such as ``3m05s CPU, 412 MB memory``: lines are broken between them only.

    What is too long by itself is broken between its words.
    """

    text: Text
    lead: Text = Text()
    """Stands before the first line; the others are indented by its width."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        indent = self.lead.cell_len
        room = max(options.max_width - indent, 1)
        ends = [found.end() for found in _BETWEEN_PARTS.finditer(self.text.plain)]
        lines = [Text()]
        for part in self.text.divide(ends):
            if lines[-1] and cell_len((lines[-1].plain + part.plain).rstrip()) > room:
                lines.append(Text())
            lines[-1].append_text(part)
        folded = [one for line in lines for one in line.wrap(console, room, overflow="fold")]
        for i, line in enumerate(folded):
            line.rstrip()
            lead = self.lead if i == 0 else Text(" " * indent)
            yield Text.assemble(lead, line, no_wrap=True, overflow="ignore")


def in_the_middle(uri: str, width: int) -> str:
    """A URI of at most so many columns, with its beginning and its end: ``s3://bucket/…/a.csv``."""
    if cell_len(uri) <= width:
        return uri
    scheme, slashes, rest = uri.rpartition("://")
    authority, *path = rest.split("/")
    head = f"{scheme}{slashes}{authority}/…"
    tail = ""
    for part in reversed(path):
        if cell_len(f"{head}/{part}{tail}") > width:
            break
        tail = f"/{part}{tail}"
    if tail:
        return head + tail
    kept = uri[-max(width - 1, 0) :] if width > 1 else ""
    while cell_len(kept) > width - 1 and kept:
        kept = kept[1:]
    return f"…{kept}"
