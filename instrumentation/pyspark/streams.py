"""Structured Streaming: the queries of a context, and whose the events of its listener are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from opentelemetry.util.types import AttributeValue

from stagewatch import clock, semconv
from stagewatch.child_runs import open_child_run
from stagewatch.instrumentation.pyspark import batches, events, progress, queries
from stagewatch.instrumentation.pyspark.batches import Batch, Inside
from stagewatch.instrumentation.pyspark.bounded import keep
from stagewatch.instrumentation.pyspark.queries import Query
from stagewatch.model import Outcome

_UNNAMED: Final = "query"
_MOST_EVENTS: Final = 1000
"""Of one batch that are remembered."""
_GRACE: Final = 2.0
"""Seconds: figures of the user's actions in a batch may be told after its progress."""

_MOST_TRIGGERS: Final = 100
"""Queries that have been started, and whose start may be told."""
_MOST_STARTS: Final = 10_000
"""Queries that may be started again."""

_starts: dict[str, int] = {}
"""How often this process has started a query, by its id."""


class Streams:
    """The queries of one Spark context."""

    def __init__(self, is_an_actions: Callable[[int], bool]) -> None:
        """*is_an_actions*: whether a job that has started is one of an action: the user's function
        may run some."""
        self._is_an_actions = is_an_actions
        self._queries: dict[str, Query] = {}
        """By id: at most one run of a query is under way."""
        self._triggers: dict[str, str] = {}
        """By id of the query's run, until its start is told."""
        self._lock = threading.RLock()

    @property
    def is_settled(self) -> bool:
        """Nothing waits for figures."""
        return not any(
            query.terminated is not None or query.has_progress for query in self._under_way()
        )

    # --- from the user's threads --------------------------------------------------------------

    def started(self, query_id: str, run: str, trigger: str) -> None:
        """A query has been started; *trigger* as Spark prints it."""
        with self._lock:
            query = self._queries.get(query_id)
            if query is not None and query.run == run:
                queries.set_trigger(query, trigger)
            else:
                keep(self._triggers, run, trigger, _MOST_TRIGGERS)

    def stopping(self, query_id: str) -> None:
        """The user stops a query."""
        query = self._queries.get(query_id)
        if query is not None:
            query.is_stopped = True

    def is_open(self, query_id: str) -> bool:
        """Whether its start has been told."""
        return query_id in self._queries

    def open(self, query_id: str, run: str, name: str | None) -> None:
        """A query runs; again is harmless."""
        with self._lock:
            known = self._queries.get(query_id)
            if known is not None:
                if known.run == run:
                    return
                # Its end may have been told, but is not settled; or nobody tells it.
                self._finish(known, at_once=True)
                self._end(known)
            attempt = _starts.get(query_id, 0) + 1
            keep(_starts, query_id, attempt, _MOST_STARTS)
            trigger = self._triggers.pop(run, None)
            about: dict[str, AttributeValue] = {
                semconv.SPARK_QUERY_ID: query_id,
                semconv.SPARK_QUERY_RUN_ID: run,
            }
            if name:
                about[semconv.SPARK_QUERY_NAME] = name
            child = open_child_run(name or _UNNAMED, about, attempt)
            if child is None:
                return
            query = self._queries[query_id] = Query(child, query_id, run, clock.now())
            if trigger is not None:
                queries.set_trigger(query, trigger)

    def enter(self, query_id: str, number: int) -> Inside | None:
        """The user's function is called with a batch, in this thread."""
        with self._lock:
            query = self._queries.get(query_id)
            if query is None:
                return None
            batch = queries.batch_of(query, number)
            return batches.enter(batch) if batch is not None else None

    def leave(self, inside: Inside, error: BaseException | None) -> None:
        """It has returned."""
        batches.leave(inside, error)

    # --- from the thread that drains ----------------------------------------------------------

    def take(self, event: events.Event) -> None:
        """One event of the listener."""
        match event:
            case events.JobStarted() if event.query is not None and event.batch is not None:
                self._job_started(event, event.query, event.batch)
            case events.JobEnded():
                for batch in self._batches():
                    if event.job in batch.jobs:
                        batch.ended[event.job] = event
            case events.StageCompleted():
                self._stage_completed(event)
            case events.QueryStarted():
                self.open(event.id, event.run, event.name)
            case events.QueryProgress():
                self._progressed(event.progress)
            case events.QueryTerminated():
                query = self._queries.get(event.id)
                if query is not None and query.run == event.run:
                    query.terminated = event
            case _:
                pass

    def settle(self, is_idle: bool = False, *, at_once: bool = False) -> None:
        """Finish the batches, and then the queries, that have all their figures; *is_idle*: all
        that was posted has been told; *at_once*: nothing more is told."""
        for query in self._under_way():
            self._finish(query, at_once=at_once)
            if query.terminated is not None and not query.has_progress:
                self._end(query)

    def close(self, outcome: Outcome | None = None, error_type: str | None = None) -> None:
        """Nothing more will be told of the queries: this is what is known of them; None: they go on
        for now."""
        self.settle(at_once=True)
        if outcome is None:
            return
        for query in self._under_way():
            if self._forget(query):
                queries.close(query, outcome, error_type)

    # --- whose they are -----------------------------------------------------------------------

    def _under_way(self) -> list[Query]:
        return list(self._queries.values())

    def _batches(self) -> Iterator[Batch]:
        for query in self._under_way():
            yield from list(query.batches.values())

    def _job_started(self, event: events.JobStarted, query_id: str, number: int) -> None:
        batch = self._batch(query_id, number)
        if batch is None or len(batch.jobs) >= _MOST_EVENTS or self._is_an_actions(event.job):
            return
        batch.jobs[event.job] = event

    def _stage_completed(self, event: events.StageCompleted) -> None:
        for batch in self._batches():
            if any(event.stage in job.stages for job in batch.jobs.values()):
                if len(batch.stages) < _MOST_EVENTS:
                    batch.stages.append(event)
                return

    def _progressed(self, told: dict[str, Any]) -> None:
        query = self._queries.get(str(told.get("id")))
        if query is None or query.run != told.get("runId"):
            return
        queries.progressed(query, told)
        if not progress.has_batch(told):
            return
        batch = self._batch(query.id, int(told["batchId"]))
        if batch is not None:
            batch.progress, batch.told = told, time.monotonic()

    def _batch(self, query_id: str, number: int) -> Batch | None:
        with self._lock:
            query = self._queries.get(query_id)
            return queries.batch_of(query, number) if query is not None else None

    # --- the end: of this thread, or of one in which a query is started again -----------------

    def _finish(self, query: Query, *, at_once: bool) -> None:
        now = time.monotonic()
        for batch in list(query.batches.values()):
            if batch.progress is None:
                continue
            if not batch.is_awaited or at_once or now - batch.told > _GRACE:
                with self._lock:
                    is_mine = query.batches.pop(batch.number, None) is not None
                if is_mine:
                    queries.finish(query, batch, batch.progress)

    def _end(self, query: Query) -> None:
        if self._forget(query):
            queries.end(query)

    def _forget(self, query: Query) -> bool:
        """Whether it was still known."""
        with self._lock:
            is_known = self._queries.get(query.id) is query
            if is_known:
                del self._queries[query.id]
            return is_known
