"""How the matrix is printed: a line while it goes, a table, the differences, the figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.faults.play import Played
from tests.faults.row import Backend, Row


def progress(result: Played, number: int, of: int, *, red: bool) -> None:
    """One line on stderr for a row in one set-up."""
    word = "RED" if red else "skipped" if result.lacking else "green"
    print(
        f"{number:3}/{of} {word:7} {result.row} · {result.backend} ({result.seconds:.1f} s)",
        file=sys.stderr,
        flush=True,
    )
    for text in result.differences:
        print(f"            {text}", file=sys.stderr, flush=True)


def show(rows: Sequence[Row], results: Sequence[Played], seconds: float) -> None:
    """The table, then what is wrong, then how soon things were known."""
    by_key = {(result.row, result.backend): result for result in results}
    console = Console(width=None if sys.stdout.isatty() else 160)
    grid = Table(title="What became of a job, and what is known of it")
    for heading in ("row", *Backend, "what you see"):
        grid.add_column(str(heading))
    for row in rows:
        marks = [_mark(by_key.get((row.name, backend))) for backend in Backend]
        grid.add_row(row.name, *marks, row.sees)
    console.print(grid)
    for result in results:
        for text in result.differences:
            console.print(f"{result.row} · {result.backend}: {text}", markup=False, soft_wrap=True)
        if result.lacking:
            console.print(
                f"{result.row} · {result.backend}: skipped, {result.lacking}", markup=False
            )
    for text in figures(results):
        console.print(text, markup=False)
    green = sum(not result.differences and not result.lacking for result in results)
    console.print(f"{green} of {len(results)} green, in {seconds:.0f} s")


def figures(results: Sequence[Played]) -> list[str]:
    """How soon a late run and a killed one were known at the receiver."""
    late = [one.late_after for one in results if one.late_after is not None]
    known = [
        one.known_after for one in results if one.known_after is not None and one.row == "SIGKILL"
    ]
    return [
        *(f"late at the receiver {each:.2f} s after the deadline (bar 3 s)" for each in late),
        *(f"SIGKILL known at the receiver after {each:.2f} s (bar 3 s)" for each in known),
    ]


def _mark(result: Played | None) -> str:
    if result is None:
        return ""
    if result.lacking:
        return "–"
    return "[red]✗[/red]" if result.differences else "[green]✓[/green]"
