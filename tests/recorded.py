"""One process's recording with counted ids and a clock that moves when told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator

from stagewatch import operations, recording, tracing
from stagewatch.config import Settings
from stagewatch.exporters.journal import (
    JournalWriter,
    is_rolled,
    new_key,
    page_path,
    read_frames,
    segment_path,
)
from stagewatch.exporters.page import PageReader
from stagewatch.exporters.spans import SpanWriter
from stagewatch.model import Pipeline
from stagewatch.processors import errors, throughput
from stagewatch.processors.span_processor import PipelineProcessor
from stagewatch.records import Record, SpanEnded, decode

START = 1_700_000_000_000_000_000
TRACE = 0x11111111111111111111111111111111


class CountedIds(IdGenerator):
    """1, 2, 3, …"""

    def __init__(self) -> None:
        self._last = 0

    def generate_span_id(self) -> int:
        self._last += 1
        return self._last

    def generate_trace_id(self) -> int:
        return TRACE


class Clock:
    """Moves only when told to."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


class Recorded:
    """One process's recording, and what it has written so far."""

    def __init__(self, directory: Path, clock: Clock, pipeline: Pipeline, **provider: Any) -> None:
        self.clock = clock
        self.directory = directory
        self.journal = JournalWriter(directory, new_key(), max_bytes=1 << 28)
        self.writer = SpanWriter(messages=False)
        self.writer.attach(self.journal)
        self.writer._since = START  # by the same clock as its spans
        self.provider = TracerProvider(
            resource=Resource({"service.name": "test"}),
            id_generator=CountedIds(),
            shutdown_on_exit=False,
            **provider,
        )
        self.provider.add_span_processor(PipelineProcessor(self.writer.write))
        tracer = self.provider.get_tracer("stagewatch")
        span = tracer.start_span("run", start_time=START)
        context = trace.set_span_in_context(span, otel_context.Context())
        self.run = recording.Run("r" * 32, pipeline, context, span.get_span_context())
        recording.start(self.journal, self.run, tracer, Settings(), self.writer.begin)
        tracing.before_stage_ends[:] = [throughput.attributes, errors.attributes]
        self.token = otel_context.attach(context)

    def records(self) -> list[Record]:
        """Everything in the journal, in order."""
        found: list[Record] = []
        number = 0
        while (path := segment_path(self.directory, self.journal.key, number)).exists():
            data = path.read_bytes()
            end = 0
            for body, end in read_frames(data, 0):  # noqa: B007
                found.append(decode(body))
            if not is_rolled(data, end):
                break
            number += 1
        return found

    def of(self, kind: type[Any]) -> list[Any]:
        """The records of one type."""
        return [record for record in self.records() if isinstance(record, kind)]

    def spans(self) -> list[SpanEnded]:
        """The spans that ended."""
        return self.of(SpanEnded)

    def page(self) -> PageReader:
        """The status page as it is now."""
        return PageReader(page_path(self.directory, self.journal.key).read_bytes())

    def tree(self) -> Any:
        """Spans as nested ``{name: children}``; the run's own span is the root."""
        children: dict[int, list[SpanEnded]] = {}
        for span in self.spans():
            children.setdefault(int.from_bytes(span.parent_span_id, "big"), []).append(span)

        def below(span_id: int) -> list[Any]:
            found = sorted(children.get(span_id, ()), key=lambda span: (span.start, span.span_id))
            return [{span.name: below(int.from_bytes(span.span_id, "big"))} for span in found]

        return below(self.run.span.span_id)

    def close(self) -> None:
        tracing.detach(self.token)
        recording.stop()
        tracing.before_stage_ends.clear()
        tracing.after_stage_ended.clear()
        operations.open_calls.clear()
