"""What Spark's own status store knows of jobs and stages, for a driver whose JVM takes no listener.

It does not say whose a job is: that is told by the time at which it was submitted, where one action
alone was under way then. It knows neither datasets nor plans nor skew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import msgspec
from msgspec import Struct

from stagewatch.instrumentation.pyspark import events

_MOST: Final = 200
"""Jobs and stages looked at, the newest, when an action has returned."""
_PATIENCE: Final = 2000
"""Milliseconds for what Spark has posted to arrive in the store, and for jobs to end after the
action that they failed."""


class _Job(Struct, rename="camel"):
    job_id: int
    status: str
    stage_ids: list[int]
    submission_time: int | None = None
    """Milliseconds since the epoch."""
    completion_time: int | None = None


class _Stage(Struct, rename="camel"):
    stage_id: int
    attempt_id: int
    name: str
    num_tasks: int
    num_complete_tasks: int
    num_failed_tasks: int
    num_killed_tasks: int
    input_bytes: int
    input_records: int
    output_bytes: int
    output_records: int
    rdd_ids: list[int]
    shuffle_read_bytes: int
    shuffle_read_records: int
    shuffle_fetch_wait_time: int
    shuffle_write_bytes: int
    shuffle_write_records: int
    memory_bytes_spilled: int
    disk_bytes_spilled: int
    executor_run_time: int
    executor_cpu_time: int
    jvm_gc_time: int
    submission_time: int | None = None
    """None: it was skipped."""
    completion_time: int | None = None
    failure_reason: str | None = None


class _Persisted(Struct):
    id: int


class _Executor(Struct, rename="camel"):
    id: str
    total_cores: int


class _Window(Struct, eq=False):
    """The time of one action; milliseconds since the epoch."""

    context: str
    start: int
    end: int | None = None


class _Found(Struct, array_like=True):
    jobs: list[_Job]
    stages: list[_Stage]
    persisted: list[_Persisted]
    """RDDs that are in Spark's cache."""


_decode = msgspec.json.Decoder(_Found).decode
_decode_executors = msgspec.json.Decoder(list[_Executor]).decode


class StatusStore:
    """A `draining.Teller`. Raises Py4JError where it is restricted too."""

    def __init__(self, context: Any) -> None:
        jvm = context._jvm
        spark = context._jsc.sc()
        self._bus = spark.listenerBus()
        self._store = spark.statusStore()
        self._new_list = jvm.java.util.ArrayList
        self._no_quantiles = context._gateway.new_array(jvm.double, 0)
        self._mapper = jvm.com.fasterxml.jackson.databind.ObjectMapper()
        scala = getattr(jvm.com.fasterxml.jackson.module.scala, "DefaultScalaModule$")
        self._mapper.registerModule(getattr(scala, "MODULE$"))
        self._changed = threading.Condition()
        self._windows: list[_Window] = []
        self._is_woken = False
        self._told = {job.job_id for job in self._read().jobs}
        executors = _decode_executors(
            self._mapper.writeValueAsString(self._store.executorList(True))
        )
        self._news: list[events.Event] = [
            events.ExecutorAdded(executor.id, _now(), executor.total_cores)
            for executor in executors
        ]

    def enter(self, context: str) -> None:
        """Jobs submitted from now on may belong to this action."""
        with self._changed:
            self._windows.append(_Window(context, _now()))

    def leave(self, before: str | None, context: str) -> None:
        """The action is over."""
        self.left(context)

    def left(self, context: str) -> None:
        """The action is over."""
        with self._changed:
            for window in self._windows:
                if window.context == context:
                    window.end = _now()
            self._changed.notify()

    def drain(self, most: int, wait: int) -> str:
        """What became of the jobs of actions that have returned."""
        with self._changed:
            self._changed.wait_for(self._has_news, wait / 1e3)
            self._is_woken = False
            windows = list(self._windows)
        found, self._news = self._news, []
        if any(window.end is not None for window in windows):
            with suppress(Exception):  # a busy bus is never empty
                self._bus.waitUntilEmpty(_PATIENCE)
            found.extend(self._look(windows))
        return msgspec.json.encode(found).decode()

    def wake(self) -> None:
        """A drain that waits returns, or the next one does not wait."""
        with self._changed:
            self._is_woken = True
            self._changed.notify()

    def detach(self) -> None:
        """Nothing to undo: the store is Spark's own."""

    def dropped(self) -> int:
        """Nobody counts what the store has forgotten."""
        return 0

    def _has_news(self) -> bool:
        return self._is_woken or any(window.end is not None for window in self._windows)

    def _look(self, windows: list[_Window]) -> Iterator[events.Event]:
        found = self._read()
        stages: dict[int, list[events.Event]] = {}
        persisted = {rdd.id for rdd in found.persisted}
        for stage in sorted(found.stages, key=lambda stage: (stage.stage_id, stage.attempt_id)):
            if stage.submission_time is not None:
                told = stages.setdefault(stage.stage_id, [])
                told += _of_stage(stage, stage.submission_time, persisted)
        pending: set[str] = set()
        for job in sorted(found.jobs, key=lambda job: job.job_id):
            if job.job_id in self._told or job.submission_time is None:
                continue
            owners = [it for it in windows if _contains(it, job.submission_time)]
            if job.completion_time is None:
                pending.update(it.context for it in owners)
                continue
            self._told.add(job.job_id)
            context = owners[0].context if len(owners) == 1 else None
            yield events.JobStarted(job.job_id, job.submission_time, job.stage_ids, context)
            for number in sorted(job.stage_ids):
                yield from stages.pop(number, ())
            error = "job_failed" if job.status == "FAILED" else None
            yield events.JobEnded(job.job_id, job.completion_time, error)
        self._told &= {job.job_id for job in found.jobs}
        for window in windows:
            if window.end is None:
                continue
            if window.context not in pending or _now() - window.end > _PATIENCE:
                with self._changed:
                    self._windows.remove(window)
                yield events.Marked(window.context)

    def _read(self) -> _Found:
        found = self._new_list()
        found.add(self._store.jobsList(None).take(_MOST))
        stages = self._store.stageList(None, False, False, self._no_quantiles, None)
        found.add(stages.take(_MOST))
        found.add(self._store.rddList(True))
        return _decode(self._mapper.writeValueAsString(found))


def _of_stage(stage: _Stage, start: int, persisted: set[int]) -> Iterator[events.Event]:
    yield events.StageSubmitted(
        stage.stage_id, stage.attempt_id, start, stage.name, stage.num_tasks
    )
    yield events.StageCompleted(
        stage.stage_id,
        stage.attempt_id,
        stage.name,
        stage.num_tasks,
        start,
        stage.completion_time,
        stage.failure_reason,
        cached=not persisted.isdisjoint(stage.rdd_ids),
        succeeded=stage.num_complete_tasks,
        input_bytes=stage.input_bytes,
        input_records=stage.input_records,
        output_bytes=stage.output_bytes,
        output_records=stage.output_records,
        shuffle_read_bytes=stage.shuffle_read_bytes,
        shuffle_read_records=stage.shuffle_read_records,
        shuffle_fetch_wait=stage.shuffle_fetch_wait_time,
        shuffle_write_bytes=stage.shuffle_write_bytes,
        shuffle_write_records=stage.shuffle_write_records,
        spill_memory=stage.memory_bytes_spilled,
        spill_disk=stage.disk_bytes_spilled,
        run_time=stage.executor_run_time,
        cpu_time=stage.executor_cpu_time,
        gc_time=stage.jvm_gc_time,
        failed=stage.num_failed_tasks,
        killed=stage.num_killed_tasks,
    )


def _contains(window: _Window, at: int) -> bool:
    return window.start <= at and (window.end is None or at <= window.end)


def _now() -> int:
    return time.time_ns() // 1_000_000
