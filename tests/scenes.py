"""Journals and status pages as jobs leave them, without a job: for the tests of the recorder."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stagewatch import measures, records, semconv
from stagewatch.exporters.page import SIZE, PageReader, PageWriter
from stagewatch.exporters.recorder.ingest import Intake
from stagewatch.exporters.recorder.watching.follow import Part
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.exporters.recorder.watching.vitals import Sighting

SECOND = 1_000_000_000
START = 1_795_262_400 * SECOND
"""2026-11-21 12:00 UTC."""
UPTIME = 100_000 * SECOND
OK, FAILED = 0, 1 << 8
"""Wait statuses of ``exit(0)`` and ``exit(1)``."""


class Job:
    """One process of a run, whose records go into an intake as fast as they are made."""

    _numbers = itertools.count(1)

    def __init__(
        self,
        intake: Intake,
        directory: Path,
        *,
        opens: bool = True,
        run: str | None = None,
        pipeline: str = "flights",
        start: int = START,
        **process: Any,
    ) -> None:
        number = next(Job._numbers)
        self.intake = intake
        self.key = f"{number}.{number * 10}.{number:08x}"
        self.run = run or f"{number:08x}" + "0" * 24
        self.trace = bytes.fromhex(self.run)
        self.span = b"\xaa" + bytes(3) + number.to_bytes(4, "big")
        self.pipeline = pipeline
        self.start = start
        self.offset = 0
        self._directory = directory
        self._ids = itertools.count(1)
        self._page: PageWriter | None = None
        self.shows: dict[str, Any] = {}
        """What else than its page is seen of it: see `Sighting`."""
        self.put(
            records.ProcessStarted(
                self.key, number, number * 10, 1, "host", "boot", 1, self.run, self.trace, opens,
                start, process.pop("resource", {"service.name": "etl", "process.pid": number}),
                pipeline, **process,
            )
        )  # fmt: skip

    def put(self, *made: records.Record) -> None:
        """Write records, and let them be taken in."""
        self.offset += 1
        self.intake.take(Part(self.key, made, 0, self.offset))

    def page(self) -> PageWriter:
        """The status page, made when it is first asked for."""
        if self._page is None:
            self._page = PageWriter(self._directory / f"{self.key}.page", 1, 1)
        return self._page

    def open(self, **changes: Any) -> records.RunStarted:
        """The run starts."""
        fields: dict[str, Any] = {
            "run_id": self.run,
            "trace_id": self.trace,
            "span_id": self.span,
            "parent_span_id": b"",
            "pipeline": self.pipeline,
            "name": self.pipeline,
            "start": self.start,
            "sampled": True,
            "attempt": 1,
            "scheduled": None,
            "deadline": None,
            "owner": "ops",
            "version": None,
            "attributes": {},
        }
        record = records.RunStarted(**{**fields, **changes})
        self.put(record, records.ScopeDefined(0, semconv.SCOPE, None, semconv.SCHEMA_URL))
        return record

    def new_id(self) -> bytes:
        """A span id of this process."""
        return self.span[-4:] + next(self._ids).to_bytes(4, "big")

    def stage(self, name: str, begin: float = 0.0, **changes: Any) -> records.StageStarted:
        """A stage starts, so many seconds into the run."""
        fields: dict[str, Any] = {
            "run_id": self.run,
            "trace_id": self.trace,
            "span_id": self.new_id(),
            "parent_span_id": self.span,
            "name": name,
            "start": self.start + round(begin * SECOND),
            "sampled": True,
            "cell": 0,
            "attributes": {semconv.STAGE_NAME: name},
        }
        record = records.StageStarted(**{**fields, **changes})
        self.put(record)
        return record

    def stage_ended(self, started: records.StageStarted, seconds: float, **changes: Any) -> None:
        """It ends, and so does its span."""
        self.put(*self.stage_end(started, seconds, **changes))

    def stage_end(
        self, started: records.StageStarted, seconds: float, **changes: Any
    ) -> tuple[records.SpanEnded, records.StageEnded]:
        """Its span and its end; not put yet."""
        end = started.start + round(seconds * SECOND)
        fields: dict[str, Any] = {
            "run_id": self.run,
            "span_id": started.span_id,
            "name": started.name,
            "start": started.start,
            "end": end,
            "outcome": "success",
            "error_type": None,
            "records_in": None,
            "records_out": None,
            "records_rejected": 0,
            "retries": 0,
            "cpu_seconds": 0.0,
            "memory_peak": 0,
            "active_seconds": seconds,
        }
        span = self.span_ended(
            started.name,
            seconds,
            span_id=started.span_id,
            start=started.start,
            end=end,
            attributes={semconv.STAGE_NAME: started.name},
        )
        return span, records.StageEnded(**{**fields, **changes})

    def span_ended(self, name: str, seconds: float = 0.01, **changes: Any) -> records.SpanEnded:
        """A span under the run's, of the scope `stagewatch`; not put yet."""
        fields: dict[str, Any] = {
            "name": name,
            "trace_id": self.trace,
            "span_id": self.new_id(),
            "parent_span_id": self.span,
            "start": self.start,
            "end": self.start + round(seconds * SECOND),
            "kind": 0,
            "status": 0,
            "status_description": None,
            "scope": 0,
            "attributes": None,
        }
        return records.SpanEnded(**{**fields, **changes})

    def detail(self, name: str, seconds: float = 0.01, **changes: Any) -> records.SpanEnded:
        """A detail; not put yet."""
        attributes = {semconv.SPAN_ROLE: semconv.ROLE_DETAIL}
        return self.span_ended(name, seconds, attributes=attributes, **changes)

    def operation_left(
        self, name: str, seconds: float, error_type: str | None = None, stage: str = ""
    ) -> records.OperationEnded:
        """A call that began with the run and is over, so many seconds into it; its figures are
        still to come. Returns what is to be counted of it."""
        span_id = self.new_id()
        nanoseconds = round(seconds * SECOND)
        attributes = {semconv.OPERATION: name, semconv.SPAN_ROLE: semconv.ROLE_DETAIL}
        ended = records.OperationEnded(
            self.run, stage, name, nanoseconds, 0, 0, error_type, span_id
        )
        outcome = "success" if error_type is None else "failure"
        self.put(
            records.SpanStarted(name, self.trace, span_id, self.span, self.start, 0, 0, attributes),
            records.SpanLeft(span_id, self.start + nanoseconds, outcome, error_type, ended),
        )
        return ended

    def stage_left(self, ended: records.StageEnded) -> None:
        """A stage is over as *ended* says, but figures of it are still to come."""
        self.put(records.SpanLeft(ended.span_id, ended.end, ended.outcome, ended.error_type, ended))

    def exits(self, seconds: float = 10.0, **changes: Any) -> None:
        """The interpreter ends, so many seconds into the run."""
        fields: dict[str, Any] = {
            "run_id": self.run,
            "end": self.start + round(seconds * SECOND),
            "error_type": None,
            "error_message": None,
            "error_place": None,
            "exit_code": None,
            "attributes": {},
            "cpu_seconds": 1.5,
            "memory_peak": 1 << 20,
        }
        self.put(records.RunExiting(**{**fields, **changes}))

    def dies(self, status: int | None = OK, at: float | None = None, **known: Any) -> None:
        """The process is dead, and its journal is closed."""
        died_at = None if at is None else self.start + round(at * SECOND)
        self.intake.close(self.key, self.read_page(), Death(status, died_at, **known))

    def read_page(self) -> PageReader | None:
        """The page as a recorder reads it."""
        if self._page is None:
            return None
        data = (self._directory / f"{self.key}.page").read_bytes()
        assert len(data) == SIZE
        return PageReader(data)


class Looks:
    """A recorder's looks at its jobs, by a clock and an uptime of the test's own."""

    def __init__(self, intake: Intake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.intake = intake
        self.seconds = 0.0
        """Since `START`."""
        self.step = 0.0
        """Seconds that somebody has set the clock forward by since."""
        monkeypatch.setattr(measures, "uptime", self.uptime)

    def uptime(self) -> int:
        """Nanoseconds; `UPTIME` at `START`."""
        return UPTIME + round(self.seconds * SECOND)

    def at(self, seconds: float, *jobs: Job) -> None:
        """All that live are looked at, so many seconds after `START`."""
        self.seconds = seconds
        found = {}
        for job in jobs:
            page = job.page() and job.read_page()
            assert page is not None
            found[job.key] = Sighting(page, **job.shows)
        self.intake.tick(found, START + round((seconds + self.step) * SECOND))


def environment(endpoint: str | None = None, **more: str) -> dict[str, str]:
    """Settings of a recorder; nothing is sent without an endpoint."""
    sent = {} if endpoint is None else {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    return {"PATH": os.environ["PATH"], **sent, **more}


def intake(state: Path, environ: dict[str, str], *, sends: bool = False) -> Iterator[Intake]:
    """Body of a fixture."""
    made = Intake(state, environ, sends=sends)
    yield made
    made.stop(5.0)
