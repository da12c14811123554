"""What earlier recorders have written of a run: all that is known of what this one did not see."""

from __future__ import annotations

import sqlite3
from typing import Final

from msgspec import Struct
from msgspec.msgpack import decode

from stagewatch import semconv
from stagewatch.exporters.recorder.intake.books import Journal
from stagewatch.model import Live, LiveStage

_OURS: Final = (
    semconv.RUN_LATE,
    semconv.RUN_STUCK,
    semconv.RUN_RESUMED,
    semconv.STAGE_LATE,
    semconv.STAGE_SLOW,
    semconv.PROCESS_DIED,
    semconv.TELEMETRY_GAP,
)
"""Names of the notices that only who watches a run gives; others the job notes itself."""


class Testimony(Struct, frozen=True):
    """Times are ns, on the run's own clock; 0 where nothing was written."""

    live: Live | None
    watched: int
    """Up to when it surely was watched."""
    recorded: int
    """Newest time in the records of all its processes."""

    def last_sign(self, journal: Journal) -> int:
        """When the process with *journal* was surely alive: of one that did not open the run only
        its open stages tell."""
        if journal.opened is not None:
            return max(self.watched, self.recorded)
        if self.live is not None and any(map(self.stage, journal.stages)):
            return self.live.clock
        return 0

    def stage(self, span_id: bytes) -> LiveStage | None:
        """An open one as it was seen last."""
        stages = self.live.stages if self.live is not None else ()
        return next((stage for stage in stages if stage.span_id == span_id), None)


def read(link: sqlite3.Connection, run: int, run_id: str) -> Testimony:
    """Of the run with the row id *run*."""
    row = link.execute("select state from live where run = ?", (run,)).fetchone()
    live = None if row is None else decode(row[0], type=Live)
    (said,) = link.execute(
        f"select max(at) from notice where run = ? and name in ({', '.join('?' * len(_OURS))})",
        (run, *_OURS),
    ).fetchone()
    (recorded,) = link.execute("select max(at) from journal where run_id = ?", (run_id,)).fetchone()
    return Testimony(live, max(live.clock if live else 0, said or 0), recorded or 0)
