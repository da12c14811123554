"""From a journal's records to the history: every step one transaction with the journal's position.

So a recorder may be killed at any moment: what it had taken in is not taken in again, and what it
had not comes again, with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stagewatch import config, semconv
from stagewatch.database import WAITING, connect, transaction
from stagewatch.exporters.page import PageReader
from stagewatch.exporters.recorder import details, increments, rows
from stagewatch.exporters.recorder.books import (
    Batch,
    Books,
    Journal,
    load_journal,
    open_journals,
    save_journal,
)
from stagewatch.exporters.recorder.ending import end_process
from stagewatch.exporters.recorder.live import Live, note_records
from stagewatch.exporters.recorder.outcome import Death
from stagewatch.exporters.recorder.sender import Sender
from stagewatch.exporters.recorder.taking import take
from stagewatch.exporters.recorder.totals import Totals, is_delta
from stagewatch.exporters.recorder.vitals import Sighting
from stagewatch.exporters.state import destination
from stagewatch.history import History
from stagewatch.measures import SECOND
from stagewatch.records import Taken

CLOSED: Final = (-1, -1)
"""What `Intake.resume` answers for a journal that has nothing left to give."""

_TICK_SECONDS: Final = 5.0
_PRUNE_SECONDS: Final = 3600.0


class Intake:
    """One per recorder; owns a connection to the history, and the sender beside it.

    Methods raise sqlite3.Error where the history cannot be written; nothing is changed then, and
    the same call may be made again.
    """

    def __init__(self, state: Path, environ: Mapping[str, str], *, sends: bool = True) -> None:
        goal = destination(environ)
        settings = config.load_or_default(environ, Path("/"))[0].settings
        self._settings = settings
        self._link = connect(state)
        with transaction(self._link):
            number = rows.destination_row(self._link, goal)
            self._books = Books(
                self._link,
                number,
                frozenset(goal.protocols),
                rows.Interned(self._link),
                Totals(self._link, number, delta=is_delta(goal)),
                details.Settings(settings.detail_ratio, settings.detail_cap),
            )
        self._journals: dict[str, Journal] = {}
        self._live = Live()
        self._ticked = 0
        self._pruned = 0
        self._sender = Sender(state, environ) if sends and goal.protocols else None
        if self._sender is not None:
            self._sender.start()

    def resume(self, key: str) -> tuple[int, int] | None:
        """Segment and offset to go on from; None: a new journal; `CLOSED`: delete its files."""
        row = self._link.execute("select closed from journal where key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[0]:
            return CLOSED
        journal = self._journal(key)
        return journal.segment, journal.offset

    def take(self, key: str, records: Sequence[Taken], segment: int, offset: int) -> None:
        """Take in *records*, which end at *offset* of *segment*; again is harmless."""
        journal = self._journal(key)
        if (segment, offset) <= (journal.segment, journal.offset):
            return
        batch = Batch()
        with self._changing(key):
            for record in records:
                take(self._books, journal, record, batch)
            journal.segment, journal.offset = segment, offset
            self._books.write(journal, batch)
            save_journal(self._books, key, journal)
        if self._sender is not None:
            has_begun = any(one.metric is semconv.RUN_ACTIVE for one in batch.found)
            self._sender.wake(totals=has_begun)

    def close(self, key: str, page: PageReader | None, death: Death) -> None:
        """End what the dead process with the journal *key* has left open.

        Nothing happens the second time.
        """
        if self.resume(key) == CLOSED:
            return
        journal = self._journal(key)
        with self._changing(key):
            if journal.process is not None:
                end_process(self._books, key, journal, journal.process, page, death)
            save_journal(self._books, key, journal, closed=True)
        del self._journals[key]
        self._live.forget(journal)
        if self._sender is not None:
            self._sender.wake(totals=True)

    def close_lost(self, rooms: Path) -> None:
        """End the processes whose journals are gone from all *rooms*, with the room perhaps.

        Nobody would ever close them, and their runs would be active for ever.
        """
        for key in open_journals(self._link, self._books.destination):
            if not any(rooms.glob(f"*/{key}.*")):
                self.close(key, None, Death())

    def tick(self, sightings: Mapping[str, Sighting], now: int) -> None:
        """Refresh what is known of active runs, every few seconds at most; prune, every hour."""
        if now - self._pruned > _PRUNE_SECONDS * SECOND:
            self._pruned = now
            self._prune(now)
        if now - self._ticked < _TICK_SECONDS * SECOND:
            return
        self._ticked = now
        alive = [
            (self._journals[key], sighting.page)
            for key, sighting in sightings.items()
            if key in self._journals
        ]
        if not alive:
            return
        by_run: dict[int, list[tuple[Journal, PageReader]]] = {}
        with transaction(self._link):
            for journal, page in alive:
                if journal.process is None:
                    continue
                found = self._live.gauges(journal, page, now)
                pipeline = journal.process.pipeline
                self._books.totals.add(found, pipeline, journal.metric_resource, now)
                by_run.setdefault(journal.run, []).append((journal, page))
            for run, members in by_run.items():
                note_records(self._link, run, members)

    def is_busy(self) -> bool:
        """Whether anything waits that this recorder is the one to send."""
        if self._sender is None or self._sender.is_elsewhere:
            return False
        return any(
            self._link.execute(
                f"select exists(select 1 from {table})", (self._books.destination,)
            ).fetchone()[0]
            for signal in self._books.signals
            for table in WAITING[signal]
        )

    def headers(self, environ: dict[str, str]) -> None:
        """Use newer header values (``OTEL_EXPORTER_OTLP_*HEADERS``) from now on."""
        if self._sender is not None:
            self._sender.use(environ)

    def stop(self, timeout: float) -> None:
        """Send what can be sent within *timeout* seconds, keep the rest, let go of the history."""
        if self._sender is not None:
            self._sender.stop(timeout)
        self._link.close()

    def _prune(self, now: int) -> None:
        gone = History(self._link).prune(
            now,
            details=self._settings.retention_details,
            runs=self._settings.retention_runs,
            max_bytes=self._settings.retention_bytes,
        )
        with transaction(self._link):
            self._books.totals.prune(now)
            if gone.pending:
                lost = [increments.dropped("traces", "retention", gone.pending)]
                resource = self._books.interned.own_resource()
                self._books.totals.add(lost, None, resource, now)

    def _journal(self, key: str) -> Journal:
        journal = self._journals.get(key)
        if journal is None:
            journal = self._journals[key] = load_journal(self._link, key)
        return journal

    @contextmanager
    def _changing(self, key: str) -> Iterator[None]:
        try:
            with transaction(self._link):
                yield
        except BaseException:
            # What is in memory went ahead of the database.
            self._journals.pop(key, None)
            self._books.interned.forget()
            self._books.totals.forget()
            raise


def open_intake(state: Path, room: Path, environ: Mapping[str, str]) -> Intake:
    """The intake of the recorder of *room*, with its sender.

    Raises sqlite3.Error or OSError where the history cannot be opened.
    """
    intake = Intake(state, environ)
    intake.close_lost(room.parent)
    return intake
