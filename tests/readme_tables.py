"""Tables of README.md that follow from the code: `python -m tests.readme_tables` renews them."""

from __future__ import annotations

import re
from pathlib import Path

from stagewatch import semconv
from stagewatch.config import parameters
from tests.faults.rows import ROWS, STOCK_MEASURED

README = Path(__file__).parent.parent / "README.md"


def settings() -> str:
    """One row per setting."""
    rows = [
        f"| `{row.variable}` | {f'`{row.default}`' if row.default else ''} "
        f"| {row.description}{'' if row.in_file else ' Environment only.'} |"
        for row in parameters()
    ]
    return "\n".join(["| variable | default | what it does |", "|---|---|---|", *rows])


def metrics() -> str:
    """One row per metric."""
    rows = [
        f"| `{metric.name}` | {metric.kind} | `{metric.unit}` "
        f"| {', '.join(f'`{name}`' for name in metric.attributes)} | {metric.description} |"
        for metric in semconv.METRICS
    ]
    return "\n".join(
        ["| metric | kind | unit | point attributes | |", "|---|---|---|---|---|", *rows]
    )


def faults() -> str:
    """One row per row of the fault matrix."""
    rows = [f"| {row.name} | {row.sees} | {row.stock} |" for row in ROWS]
    heads = ("when", "what you see", f"stock SDK, {STOCK_MEASURED}")
    return "\n".join([f"| {' | '.join(heads)} |", "|---|---|---|", *rows])


TABLES = {"settings": settings, "metrics": metrics, "faults": faults}


def renewed(text: str) -> str:
    """README.md with current tables."""
    for name, table in TABLES.items():
        text, found = re.subn(
            rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)",
            lambda match, table=table: f"{match[1]}{table()}\n{match[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        assert found == 1, name
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text()))
