"""Opens the runs of this process beside its own, each with a journal of its own."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping

from opentelemetry import trace
from opentelemetry.util.types import AttributeValue

from stagewatch import clock, recording
from stagewatch.child_runs import ChildRun
from stagewatch.config import Config
from stagewatch.exporters.recorder import start as recorder_start
from stagewatch.exporters.spans import SpanWriter, plain
from stagewatch.measures import uptime
from stagewatch.model import Pipeline
from stagewatch.opened import Opened, new_journal, process_started
from stagewatch.recording import Recording, Run
from stagewatch.records import RunStarted


class ChildRuns:
    """Those of this process, whose own run is *opened*."""

    def __init__(self, opened: Opened, config: Config) -> None:
        self._opened = opened
        self._config = config
        self._under_way: dict[str, tuple[Opened, Recording]] = {}
        """By run id."""

    def __iter__(self) -> Iterator[Opened]:
        """Those under way."""
        return iter([opened for opened, _ in tuple(self._under_way.values())])

    def open(
        self, name: str, attributes: Mapping[str, AttributeValue], attempt: int
    ) -> ChildRun | None:
        """See `child_runs.open_child_run`. Raises OSError where its journal cannot be made."""
        own, active = self._opened, recording.active
        if active is None or own.spans is None:
            return None
        pipeline = self._config.pipelines.get(name) or Pipeline(
            name=f"{own.run.pipeline.name}.{name}", owner=own.run.pipeline.owner
        )
        span = active.tracer.start_span(pipeline.name, own.run.context, attributes=attributes)
        context = trace.set_span_in_context(span, own.run.context)
        run = Run(secrets.token_hex(16), pipeline, context, span.get_span_context())
        writer = SpanWriter(messages=own.settings.exception_messages)
        opened = Opened(
            run=run,
            settings=own.settings,
            journal=new_journal(own.room, own.settings),
            spans=writer,
            state_directory=own.state_directory,
            room=own.room,
            resource=own.resource,
            span=span,
            owner=os.getpid(),
            ships_itself=own.ships_itself,
            elsewhere=own.elsewhere,
        )
        journal = opened.journal
        journal.append(process_started(opened))
        journal.append(self._run_started(run, plain(dict(attributes)), attempt))
        writer.attach(journal)
        recorded = Recording(journal, run, active.tracer, own.settings, active.begin)
        self._under_way[run.run_id] = opened, recorded
        if not own.ships_itself:
            recorder_start.introduce(own.room, journal.key, os.environ)

        def release() -> None:
            self._under_way.pop(run.run_id, None)
            journal.close()

        return ChildRun(
            recording=recorded,
            span=span,
            writer=writer,
            of_traces=own.spans.of_traces,
            release=release,
            pid=os.getpid(),
        )

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        recording.thread.elsewhere = None
        for opened, recorded in self._under_way.values():
            opened.journal.forget()
            recorded.is_over = True
        self._under_way.clear()
        if self._opened.spans is not None:
            self._opened.spans.of_traces.clear()

    def _run_started(self, run: Run, attributes: dict[str, object], attempt: int) -> RunStarted:
        own, span = self._opened.run, run.span
        return RunStarted(
            run_id=run.run_id,
            trace_id=span.trace_id.to_bytes(16, "big"),
            span_id=span.span_id.to_bytes(8, "big"),
            parent_span_id=own.span.span_id.to_bytes(8, "big"),
            pipeline=run.pipeline.name,
            name=run.pipeline.name,
            start=clock.now(),
            sampled=span.trace_flags.sampled,
            attempt=attempt,
            scheduled=None,
            deadline=None,
            owner=run.pipeline.owner,
            version=run.pipeline.version,
            attributes=attributes,
            parent_run_id=own.run_id,
            trace_state=span.trace_state.to_header(),
            declared=run.pipeline if run.pipeline.name in self._config.pipelines else None,
            uptime=uptime(),
        )
