"""The same jobs under the stock SDK: opentelemetry-distro with OTLP over HTTP, as it comes.

It keeps no history and knows no runs, so only what any tracing must do is asked of it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct, structs
from rich.console import Console
from rich.table import Table

from stagewatch.model import Outcome
from tests.faults import deeds
from tests.faults.play import ROOT, fresh
from tests.faults.row import Backend, Row
from tests.faults.scene import Scene, exporter
from tests.faults.verdict import Bare
from tests.faults.worlds import Lacking
from tests.otlp_receiver import OtlpReceiver

STOCK = ROOT / ".venv-stock" / "bin"
_QUIET_SECONDS = 2.0
_HELD_BACK = 3.0
_ERROR = 2
_SERVICE = "stock"


_DEEDS = {
    deeds.kill_all: deeds.send(signal.SIGKILL),
    deeds.kill_recorder: None,
    deeds.fill_disk: None,
}
"""What is left of a deed where there is no recorder and no state."""


class Property(Struct, frozen=True):
    """One thing asked of it."""

    holds: bool
    phrase: str
    """What is to say if it does not."""


class Judged(Struct, frozen=True):
    """What came of a row in one set-up."""

    row: str
    backend: str
    properties: list[Property]
    lacking: str = ""

    def share(self) -> str:
        if self.lacking:
            return "–"
        return f"{sum(each.holds for each in self.properties)} of {len(self.properties)}"

    def phrase(self) -> str:
        missing = [each.phrase for each in self.properties if not each.holds]
        return self.lacking or "; ".join(missing)


def play(row: Row, backend: Backend, without: Bare | None) -> Judged:
    """One row with the backend alive, or down and back once the job is over."""
    directory = fresh(row, f"stock {backend}")
    deed = _DEEDS.get(row.deed, row.deed) if row.deed else None
    if deed is None:
        (directory / "go").touch()
    launcher = ("opentelemetry-instrument", row.launcher[-1])
    row = structs.replace(row, before=None, after=None, deed=deed, launcher=launcher)
    try:
        with OtlpReceiver() as receiver, row.world(directory) as world:
            if backend is not Backend.ALIVE:
                receiver.refuse()
            environment = {
                "OTEL_PYTHON_DISTRO": "distro",
                "OTEL_PYTHON_CONFIGURATOR": "configurator",
                "OTEL_SERVICE_NAME": _SERVICE,
                **exporter(receiver),
            }
            scene = Scene(row, backend, directory, world, STOCK, receiver, environment)
            scene.play()
            receiver.serve()
            _wait_until_quiet(receiver)
            return Judged(row.name, backend, _properties(scene, receiver, without))
    except Lacking as lacking:
        return Judged(row.name, backend, [], str(lacking))


def show(rows: list[Row], results: list[Judged], seconds: float) -> None:
    """The table, dated."""
    grid = Table(title=f"The stock SDK, {datetime.now(UTC):%Y-%m-%d}")
    backends = (Backend.ALIVE, Backend.DOWN)
    for heading in ("row", *backends, "what is missing with the backend alive", "and down"):
        grid.add_column(str(heading))
    by_key = {(one.row, one.backend): one for one in results}
    for row in rows:
        found = [by_key[row.name, backend] for backend in backends if (row.name, backend) in by_key]
        grid.add_row(row.name, *(one.share() for one in found), *(one.phrase() for one in found))
    Console(width=200).print(grid)
    held = sum(prop.holds for one in results for prop in one.properties)
    asked = sum(len(one.properties) for one in results)
    print(f"{held} of {asked} hold, in {seconds:.0f} s")


def _properties(scene: Scene, receiver: OtlpReceiver, without: Bare | None) -> list[Property]:
    told, row = scene.told(), scene.row
    spans = [span for span in receiver.spans if span.resource.get("service.name") == _SERVICE]
    ids = {span.span_id for span in spans}
    begun, ended = told.spans("begun"), told.spans("ended")
    orphans = sum(bool(span.parent_span_id) and span.parent_span_id not in ids for span in spans)
    traces = len({span.trace_id for span in spans})
    last = told.fact("last")
    backwards = sum(span.span.end_time_unix_nano < span.span.start_time_unix_nano for span in spans)
    held = scene.ended - max(last, scene.killed) if last is not None else 0.0
    exit_is_same = scene.exit == row.exit and (without is None or scene.out == without.out)
    found = [
        Property(len(ids) >= ended, f"{ended - len(ids):,} of {ended:,} spans lost"),
        Property(traces == 1, f"{traces} traces" if traces else "no trace"),
        Property(not orphans, f"{orphans:,} orphans"),
        Property(len(spans) == len(ids), f"{len(spans) - len(ids):,} spans twice"),
        Property(not backwards, "a span ends before it starts"),
        Property(exit_is_same, f"exit status {scene.exit}"),
        Property(held <= _HELD_BACK, f"held back {held:.1f} s"),
    ]
    if begun > ended:
        found.append(Property(len(ids) >= begun, "the open span lost"))
    if row.outcome is not Outcome.SUCCESS:
        says_so = any(span.span.status.code == _ERROR for span in spans)
        found.append(Property(says_so, "not a word of how it ended"))
    return found


def _wait_until_quiet(receiver: OtlpReceiver) -> None:
    """The job is over, so nothing comes any more but from children that outlive it."""
    known, since = -1, time.monotonic()
    while time.monotonic() - since < _QUIET_SECONDS:
        if len(receiver.spans) != known:
            known, since = len(receiver.spans), time.monotonic()
        time.sleep(0.05)


def is_installed() -> bool:
    """Whether ``make`` has made its environment."""
    return (
        Path(STOCK / "opentelemetry-instrument").exists()
        and not subprocess.run(
            [STOCK / "python", "-c", "import opentelemetry.distro"], capture_output=True
        ).returncode
    )
