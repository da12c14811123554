"""`python -m benchmarks [NAME …]`: measure, print one table, write ``.bench/results.json``.

Exit status: 0 if everything could be measured (whether or not it passes its bar), else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness import BENCH, Row, machine

NAMES = (
    "spans",
    "folding",
    "startup",
    "burst",
    "outage",
    "flights",
    "functions",
    "recorder",
    "watching",
    "reporting",
)
SPARK = ("spark", "spark_executors")
"""Where PySpark is installed: `make bench-spark`."""
KNOWN = NAMES + SPARK
MARKS = {True: "✓", False: "✗", None: ""}


def main() -> int:
    """Run the benchmarks one after the other; one that breaks does not stop the rest."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KNOWN)}")
    parser.add_argument("--markdown", action="store_true", help="a table for the README")
    options = parser.parse_args()
    unknown = set(options.names) - set(KNOWN)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(KNOWN)}")
    about, broken = machine(), []
    results: dict[str, Any] = {}
    for name in options.names or NAMES:
        print(f"{name} …", file=sys.stderr, flush=True)
        start = time.monotonic()
        try:
            rows = import_module(f"benchmarks.{name}").measure()
        except Exception:
            traceback.print_exc()
            rows = [Row(name, "", "not measured", None)]
            broken.append(name)
        results[name] = {"seconds": time.monotonic() - start, "rows": rows}
        _save(about, results)
    rows = [row for result in results.values() for row in result["rows"]]
    if options.markdown:
        _print_markdown(rows)
    else:
        _print_table(rows)
    print("\n".join(f"{name}: {value}" for name, value in about.items()))
    return 1 if broken else 0


def _save(about: dict[str, str], results: dict[str, Any]) -> None:
    """After each benchmark, so that an interrupted run leaves what it had."""
    BENCH.mkdir(exist_ok=True)
    plain = {
        name: {**result, "rows": [row.plain() for row in result["rows"]]}
        for name, result in results.items()
    }
    content = {"when": datetime.now(UTC).isoformat(), "about": about, "benchmarks": plain}
    (BENCH / "results.json").write_text(json.dumps(content, indent=1))


def _print_table(rows: list[Row]) -> None:
    table = Table(title="stagewatch, measured", show_lines=True)
    for heading in ("what", "bar", "measured", "", "beside"):
        table.add_column(heading)
    for row in rows:
        table.add_row(row.what, row.bar, row.measured, MARKS[row.passed], row.beside)
    Console().print(table)


def _print_markdown(rows: list[Row]) -> None:
    print("| what | bar | measured | | beside |\n|---|---|---|---|---|")
    for row in rows:
        cells = (row.what, row.bar, row.measured, MARKS[row.passed], row.beside)
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
