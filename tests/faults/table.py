"""How the matrix is printed: a line while it goes, a table, the differences, the figures."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.harness import Row as Measured
from tests.faults.play import Played
from tests.faults.row import Backend, Row

_SOON = 3.0


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
    green = sum(not result.differences and not result.lacking for result in results)
    console.print(f"{green} of {len(results)} green, in {seconds:.0f} s")


def show_figures(measured: Sequence[Measured]) -> None:
    """What is to be fast or cheap, with its bar; a missed one makes nothing red."""
    if not measured:
        return
    grid = Table(title="How soon it is known, and what it costs")
    for heading in ("what", "bar", "measured", "", "beside"):
        grid.add_column(heading)
    for one in measured:
        mark = "✓" if one.passed else "✗"
        grid.add_row(one.what, one.bar, one.measured, mark, one.beside)
    Console(width=None if sys.stdout.isatty() else 160).print(grid)


def how_soon(results: Sequence[Played]) -> list[Measured]:
    """When a late run and a killed one were known at the receiver."""
    late = [one.late_after for one in results if one.late_after is not None]
    killed = [
        one.known_after for one in results if one.known_after is not None and one.row == "SIGKILL"
    ]
    found = [
        ("“late” at the receiver after the deadline, while the job holds the GIL", late),
        ("SIGKILL known at the receiver after", killed),
    ]
    return [
        Measured(what, f"≤ {_SOON:.0f} s", f"{max(times):.2f} s", max(times) <= _SOON)
        for what, times in found
        if times
    ]


def _mark(result: Played | None) -> str:
    if result is None:
        return ""
    if result.lacking:
        return "–"
    return "[red]✗[/red]" if result.differences else "[green]✓[/green]"
