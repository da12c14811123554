"""`python -m tests.faults`: every way a job can end or hang, in three set-ups, and what is known.

Exit status: 0 if every row is green in every set-up, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import msgspec

from benchmarks import watching
from tests.faults import stock, table
from tests.faults.play import OURS, Played, bare, play
from tests.faults.row import Backend, Row
from tests.faults.rows import ROWS
from tests.faults.verdict import Bare

_AT_ONCE = 4

T = TypeVar("T")


def main() -> int:
    """Plays the rows side by side and prints what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--row", action="append", metavar="NAME", help="only rows that begin so")
    parser.add_argument("--backend", choices=list(Backend), help="only this set-up")
    parser.add_argument("--stock", action="store_true", help="under the stock SDK instead of us")
    parser.add_argument("--json", action="store_true", help="the results as JSON, on stdout")
    parser.add_argument("--at-once", type=int, default=_AT_ONCE, metavar="N")
    options = parser.parse_args()
    rows = [row for row in ROWS if _is_wanted(row, options.row)]
    if not rows:
        parser.error("no such row; there are: " + ", ".join(row.name for row in ROWS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # of the rows that crash
    # A shell that started us in the background had SIGINT ignored, and so would the jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    backends = [Backend(options.backend)] if options.backend else list(Backend)
    return _stock(rows, options) if options.stock else _ours(rows, backends, options)


def _ours(rows: list[Row], backends: list[Backend], options: argparse.Namespace) -> int:
    def tell(result: Played, number: int, of: int) -> None:
        table.progress(result, number, of, red=is_red(result))

    start = time.monotonic()
    results = _play_all(play, rows, backends, options.at_once, tell)
    seconds = time.monotonic() - start
    figures = table.how_soon(results)
    if len(rows) == len(ROWS):
        print("what watching costs …", file=sys.stderr, flush=True)
        figures += watching.measure(OURS)
    if options.json:
        found = {"rows": results, "figures": [figure.plain() for figure in figures]}
        json.dump(msgspec.to_builtins(found), sys.stdout, indent=1)
    else:
        table.show(rows, results, seconds)
        table.show_figures(figures)
    return int(any(is_red(result) for result in results))


def _stock(rows: list[Row], options: argparse.Namespace) -> int:
    def tell(result: stock.Judged, number: int, of: int) -> None:
        line = f"{number:3}/{of} {result.share():7} {result.row} · {result.backend}"
        print(f"{line}: {result.phrase()}", file=sys.stderr, flush=True)

    start = time.monotonic()
    backends = [Backend.ALIVE, Backend.DOWN]
    results = _play_all(stock.play, rows, backends, options.at_once, tell)
    if options.json:
        json.dump(msgspec.to_builtins(results), sys.stdout, indent=1)
    else:
        stock.show(rows, results, time.monotonic() - start)
    return 0


def is_red(result: Played) -> bool:
    """Where everything is required (``.ci/run``), a row that cannot be played is red."""
    is_required = bool(os.environ.get("STAGEWATCH_REQUIRE_ALL"))
    return bool(result.differences) or (bool(result.lacking) and is_required)


def _play_all(
    play_one: Callable[[Row, Backend, Bare | None], T],
    rows: list[Row],
    backends: list[Backend],
    at_once: int,
    tell: Callable[[T, int, int], None],
) -> list[T]:
    """Side by side; the long ones are begun first, so that the others overlap with them."""
    order = sorted(rows, key=lambda row: not row.is_long)
    results = []
    with ThreadPoolExecutor(at_once) as pool:
        without_us = {row.name: pool.submit(bare, row) for row in order}

        def one(row: Row, backend: Backend) -> T:
            return play_one(row, backend, without_us[row.name].result())

        futures = [pool.submit(one, row, backend) for row in order for backend in backends]
        for number, future in enumerate(as_completed(futures), 1):
            results.append(future.result())
            tell(results[-1], number, len(futures))
    return results


def _is_wanted(row: Row, wanted: list[str] | None) -> bool:
    return not wanted or any(row.name.lower().startswith(name.lower()) for name in wanted)


if __name__ == "__main__":
    sys.exit(main())
