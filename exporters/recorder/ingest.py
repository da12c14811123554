"""From a journal's records to the history: every step one transaction with the journal's position.

So a recorder may be killed at any moment: what it had taken in is not taken in again, and what it
had not comes again, with the same ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import structs

from stagewatch import config, measures, semconv
from stagewatch.database import WAITING, connect, is_current, transaction
from stagewatch.exporters.page import PageReader
from stagewatch.exporters.recorder.intake import details, increments, rows
from stagewatch.exporters.recorder.intake.books import (
    Batch,
    Books,
    Journal,
    load_journal,
    open_journals,
    save_journal,
)
from stagewatch.exporters.recorder.intake.taking import take
from stagewatch.exporters.recorder.intake.totals import Totals, is_delta
from stagewatch.exporters.recorder.judging import notices
from stagewatch.exporters.recorder.judging.ending import Witness, end_process
from stagewatch.exporters.recorder.judging.live import Member, UnderWay
from stagewatch.exporters.recorder.judging.notices import Due
from stagewatch.exporters.recorder.judging.showing import gauges, note_records, picture
from stagewatch.exporters.recorder.sending.sender import Sender
from stagewatch.exporters.recorder.watching.follow import Part
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.exporters.recorder.watching.vitals import Sighting
from stagewatch.exporters.state import destination
from stagewatch.history import History
from stagewatch.measures import SECOND
from stagewatch.records import Noted

CLOSED: Final = (-1, -1)
"""What `Intake.resume` answers for a journal that has nothing left to give."""

_NOTE_SECONDS: Final = 5.0


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
        self._under_way: dict[int, UnderWay] = {}
        """By the row id of the run."""
        self._noted = 0
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

    def take(self, *parts: Part) -> None:
        """Take in parts of different journals, all or none; again is harmless."""
        fresh = []
        for part in parts:
            journal = self._journal(part.key)
            if part[2:] > (journal.segment, journal.offset):
                fresh.append((part, journal))
        if not fresh:
            return
        made = []
        with self._changing(*(part.key for part, _ in fresh)):
            for part, journal in fresh:
                batch = Batch()
                for record in part.records:
                    take(self._books, journal, record, batch)
                journal.segment, journal.offset = part.segment, part.offset
                made.append((journal, batch))
            self._books.write_all(made)
            for journal, batch in made:
                for noted in batch.noted:
                    self._say_noted(journal, noted)
            for part, journal in fresh:
                save_journal(self._books, part.key, journal)
        if self._sender is not None:
            found = (one for _, batch in made for one in batch.found)
            self._sender.wake(totals=any(one.metric is semconv.RUN_ACTIVE for one in found))

    def close(self, key: str, page: PageReader | None, death: Death) -> None:
        """End what the dead process with the journal *key* has left open.

        Nothing happens the second time.
        """
        if self.resume(key) == CLOSED:
            return
        journal = self._journal(key)
        with self._changing(key):
            if journal.process is not None:
                seen = self._seen(journal)
                end_process(self._books, key, journal, journal.process, page, death, seen)
            save_journal(self._books, key, journal, closed=True)
        del self._journals[key]
        if journal.opened is not None:
            self._under_way.pop(journal.run, None)
        elif run := self._under_way.get(journal.run):
            run.forget(key)
        if self._sender is not None:
            self._sender.wake(totals=True)

    def over(self) -> list[str]:
        """Keys of the journals whose run has said its last word, though its process goes on."""
        return [
            key
            for key, journal in self._journals.items()
            if journal.exiting is not None and journal.exiting.outcome is not None
        ]

    def close_lost(self, rooms: Path) -> None:
        """End the processes whose journals are gone from all *rooms*, with the room perhaps.

        Nobody would ever close them, and their runs would be active for ever.
        """
        open_keys = open_journals(self._link, self._books.destination)
        found = {".".join(path.name.split(".", 3)[:3]) for path in rooms.glob("*/*.*.*.*")}
        for key in open_keys:
            if key not in found:
                self.close(key, None, Death())

    def tick(self, sightings: Mapping[str, Sighting], now: int) -> None:
        """Look at the runs under way; say at once what is due, and write the rest down every few
        seconds."""
        self._look(sightings, now)
        if abs(now - self._noted) >= _NOTE_SECONDS * SECOND:
            self.note(now)
        else:
            self._note([run for run in self._under_way.values() if _is_urgent(run)], now)

    def note(self, now: int) -> None:
        """Write down what the last `tick` has seen of all runs under way."""
        self._noted = now
        self._note(self._under_way.values(), now)

    def unwatched(self, key: str, seconds: float, now: int) -> None:
        """For so long nobody watched the run that the process with the journal *key* opened."""
        journal = self._journals.get(key)
        if journal is None or journal.process is None or journal.opened is None:
            return
        with self._changing(key):
            notices.say_gap(self._books, journal, journal.opened, seconds, now)
        self.wake()

    def prune(self, now: int) -> None:
        """Forget what the settings say is too old or too much."""
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

    def is_outdated(self) -> bool:
        """Whether a newer version has taken over the history: this one can write to it no more."""
        return not is_current(self._link)

    def wake(self) -> None:
        """Send what another intake of this destination has written."""
        if self._sender is not None:
            self._sender.wake(totals=True)

    def headers(self, environ: dict[str, str]) -> None:
        """Use newer header values (``OTEL_EXPORTER_OTLP_*HEADERS``) from now on."""
        if self._sender is not None:
            self._sender.use(environ)

    def stop(self, timeout: float) -> None:
        """Send what can be sent within *timeout* seconds, keep the rest, let go of the history."""
        if self._sender is not None:
            self._sender.stop(timeout)
        self._link.close()

    def _look(self, sightings: Mapping[str, Sighting], now: int) -> None:
        uptime = measures.uptime()
        before = self._cpu_before_runs()
        by_run: dict[int, list[Member]] = {}
        for key, sighting in sightings.items():
            journal = self._journals.get(key)
            if journal is not None and journal.process is not None:
                own = _of_run(sighting, before[_process(key), journal.run])
                by_run.setdefault(journal.run, []).append(Member(key, journal, own))
        for number, members in by_run.items():
            run = self._under_way.get(number)
            if run is None:
                opened = next((m.journal.opened for m in members if m.journal.opened), None)
                if opened is None:  # another recorder's, which sees who opened it
                    continue
                durations = History(self._link).durations(opened.pipeline)
                said = notices.said(self._link, number)
                run = UnderWay(number, opened, now, uptime, durations, said)
                self._under_way[number] = run
            run.look(members, now, uptime)
        for number in self._under_way.keys() - by_run.keys():
            self._under_way[number].members = ()  # dead, and about to be closed

    def _note(self, runs: Collection[UnderWay], now: int) -> None:
        runs = [run for run in runs if run.members]
        if not runs:
            return
        shown = self._newest()
        said: list[tuple[UnderWay, list[Due]]] = []
        with self._changing():
            for run in runs:
                note_records(self._link, run)
                seen = picture(run)
                rows.set_live(self._link, run.number, seen)
                opener = run.opener()
                if opener is None:
                    continue
                if run in shown:
                    found = gauges(run, seen)
                    resource = opener.metric_resource
                    self._books.totals.add(found, run.opened.pipeline, resource, now)
                    if seen.estimated_end is None:  # it has outlasted all before it
                        self._books.totals.withdraw(
                            semconv.ESTIMATED_END, run.opened.pipeline, resource
                        )
                said.append((run, self._say(run, opener)))
        has_news = False
        for run, due in said:
            has_news |= bool(due) or not run.is_announced
            run.is_announced = True
            run.noted_memory = run.memory_peak
            run.said.update({(one.name, one.key): run.clock for one in due})
        if has_news and self._sender is not None:
            self._sender.wake(totals=True)

    def _say(self, run: UnderWay, opener: Journal) -> list[Due]:
        if not run.is_announced:
            notices.announce(self._books, opener, run.opened)
        due = notices.due(run)
        if due:
            common = notices.circumstances(run)
            for one in due:
                notices.say(self._books, opener, run.opened, one, common, run.clock)
        return due

    def _say_noted(self, journal: Journal, noted: Noted) -> None:
        opener = self._opener(journal)
        due = Due(noted.name, noted.key, noted.text, noted.attributes, notices.INFO)
        if opener is not None and opener.opened is not None:
            notices.say(self._books, opener, opener.opened, due, {}, noted.at)
        else:  # another recorder's run, or one that is over
            notices.write_down(self._link, journal.run, due, noted.at)

    def _newest(self) -> Collection[UnderWay]:
        """Whose gauges are shown: of several runs of one pipeline the one that began last."""
        found: dict[tuple[int, str], UnderWay] = {}
        for run in sorted(self._under_way.values(), key=lambda run: run.opened.start):
            if opener := run.opener():
                found[opener.metric_resource, run.opened.pipeline] = run
        return found.values()

    def _seen(self, journal: Journal) -> Witness:
        pause = 2 * (_NOTE_SECONDS + self._settings.watch_interval)
        return Witness(self._opener(journal), self._under_way.get(journal.run), pause)

    def _opener(self, journal: Journal) -> Journal | None:
        """Of the process that opened the run of *journal*, if that is watched here and lives."""
        openers = (one for one in self._journals.values() if one.run == journal.run and one.opened)
        return next(openers, None)

    def _cpu_before_runs(self) -> dict[tuple[str, int], float]:
        """Seconds that each process had used when it began with a run, in the first of its
        programs."""
        found: dict[tuple[str, int], float] = {}
        for key, journal in self._journals.items():
            if journal.process is not None:
                began, seconds = (_process(key), journal.run), journal.process.cpu_seconds
                found[began] = min(found.get(began, seconds), seconds)
        return found

    def _journal(self, key: str) -> Journal:
        journal = self._journals.get(key)
        if journal is None:
            journal = self._journals[key] = load_journal(self._link, key)
        return journal

    @contextmanager
    def _changing(self, *keys: str) -> Iterator[None]:
        try:
            with transaction(self._link):
                yield
        except BaseException:
            # What is in memory went ahead of the database.
            for key in keys:
                self._journals.pop(key, None)
            self._books.interned.forget()
            self._books.totals.forget()
            raise


def open_intake(state: Path, room: Path, environ: Mapping[str, str]) -> Intake:
    """The intake of the recorder of *room*, with its sender.

    Raises sqlite3.Error or OSError where the history cannot be opened.
    """
    intake = Intake(state, environ)
    try:
        intake.close_lost(room.parent)
    except BaseException:
        intake.stop(0.0)
        raise
    return intake


def _process(key: str) -> str:
    return key.rsplit(".", 1)[0]


def _of_run(sighting: Sighting, cpu_before: float) -> Sighting:
    if sighting.vitals is None:
        return sighting
    return structs.replace(sighting, vitals=sighting.vitals.since(cpu_before))


def _is_urgent(run: UnderWay) -> bool:
    return not run.is_announced or run.has_grown or bool(notices.due(run))
