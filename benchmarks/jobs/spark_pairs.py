"""One Spark session that does the same work watched and not, in turn.

    python -m benchmarks.jobs.spark_pairs counts|etl|tasks|dropped ROUNDS ANSWER

Under `opentelemetry-instrument`. Writes JSON to the file ANSWER: the `Figures` of every batch by
variant (``on``, ``off`` and, as a control, ``again``, which is ``off`` once more), ``own``, CPU
seconds that our code used in a batch that was on, by place, and ``waited``, seconds of an action
that its thread spent in our code; or ``dropped``, a number of events.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from benchmarks.harness import interleave
from stagewatch.instrumentation.pyspark import PysparkInstrumentor, actions, attaching, draining

COUNTS = 10
ROWS = 5_000_000
TASKS = 2_000
MANY_TASKS = 20_000
UNITS = 2_000
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Figures:
    """One batch, in seconds."""

    wall: float
    calls: list[float]
    """Wall clock of each action."""
    python: float
    """CPU of this process."""
    jvm: float
    """CPU of the driver's JVM."""


class Bench:
    """The session, and what switches us on and off in it."""

    def __init__(self) -> None:
        self.spark = (
            SparkSession.builder.master("local[2]")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.driver.memory", "1g")
            .config("spark.sql.shuffle.partitions", "4")
            .getOrCreate()
        )
        self.context: Any = self.spark.sparkContext
        jvm = self.context._jvm
        self.jvm_pid = int(jvm.java.lang.ProcessHandle.current().pid())
        self.threads = jvm.java.lang.management.ManagementFactory.getThreadMXBean()
        self.own = dict.fromkeys(("calls", "drain", "listener", "drain in the JVM"), 0.0)
        self.calls = 0
        self.waited = 0.0
        action: Any = actions._UnderWay
        action.begin = self._timed(action.begin)
        action.end = self._timed(action.end, counts=True)

    def _timed(self, function: Callable[..., Any], counts: bool = False) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            start, wall = time.thread_time(), time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self.own["calls"] += time.thread_time() - start
                self.waited += time.perf_counter() - wall
                self.calls += counts

        return timed

    def on(self) -> None:
        PysparkInstrumentor().instrument()
        while attaching.current is None:
            time.sleep(0.01)
        attached: Any = attaching.current
        drain = attached.drain
        self.drain_thread = drain._thread
        drain._listener = _Peer(drain._listener, self.context._jvm)
        while drain._listener.thread_id is None:
            time.sleep(0.01)
        self.peer = drain._listener.thread_id
        self.clock = time.pthread_getcpuclockid(self.drain_thread.ident)
        names = self.context._jvm.java.lang.Thread.getAllStackTraces().keySet()
        (self.listener_thread,) = (
            thread.getId()
            for thread in names.toArray()
            if thread.getName() == f"spark-listener-group-{attaching._QUEUE}"
        )
        self.before = self._own_threads()

    def settle(self) -> None:
        """Until all is told that happened: that is a part of the price."""
        self.context._jsc.sc().listenerBus().waitUntilEmpty()
        time.sleep(2 * draining._PAUSE)
        for name, value in self._own_threads().items():
            self.own[name] += value - self.before[name]

    def off(self) -> None:
        PysparkInstrumentor().uninstrument()
        self.drain_thread.join()

    def _own_threads(self) -> dict[str, float]:
        return {
            "drain": time.clock_gettime(self.clock),
            "listener": self.threads.getThreadCpuTime(self.listener_thread) / 1e9,
            "drain in the JVM": self.threads.getThreadCpuTime(self.peer) / 1e9,
        }

    def jvm_cpu(self) -> float:
        fields = Path(f"/proc/{self.jvm_pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    def marks(self) -> float:
        """CPU seconds in the JVM of what an action calls there, beside what it does itself."""
        self.on()
        listener: Any = attaching.current.listener  # type: ignore[union-attr]
        mine = self.context._jvm.java.lang.Thread.currentThread().getId()
        before = self.threads.getThreadCpuTime(mine)
        for _ in range(UNITS):
            listener.leave(listener.enter("00-0-0-01"), "00-0-0-01")
        used = self.threads.getThreadCpuTime(mine) - before
        self.off()
        return float(used) / 1e9 / UNITS


class _Peer:
    """The listener, seen by the thread that drains it: which thread of the JVM serves it."""

    def __init__(self, listener: Any, jvm: Any) -> None:
        self._listener, self._jvm = listener, jvm
        self.thread_id: int | None = None

    def drain(self, most: int, wait: int) -> Any:
        if self.thread_id is None:
            self.thread_id = int(self._jvm.java.lang.Thread.currentThread().getId())
        return self._listener.drain(most, wait)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)


def counts(bench: Bench) -> Callable[[], object]:
    """An action on a table that is no work."""
    table = bench.spark.range(1000)
    return lambda: table.count()  # looked up each time: it comes and goes


def etl(bench: Bench) -> Callable[[], object]:
    """Group, join and write 5 million rows."""
    out = str(Path(sys.argv[3]).with_suffix(".parquet"))
    rows = bench.spark.range(ROWS).withColumn("key", F.col("id") % 1000)
    names = bench.spark.range(1000).select(F.col("id").alias("key"), F.hex("id").alias("name"))
    sums = rows.groupBy("key").agg(F.sum("id").alias("sum"), F.count("*").alias("rows"))
    joined = rows.join(names, "key").join(sums, "key")
    return lambda: joined.write.mode("overwrite").parquet(out)


def tasks(bench: Bench) -> Callable[[], object]:
    """One job of many tiny tasks."""
    return lambda: bench.spark.range(0, TASKS, 1, TASKS).count()


WORK = {"counts": (counts, COUNTS), "etl": (etl, 1), "tasks": (tasks, 1)}


def pairs(bench: Bench, name: str, rounds: int) -> dict[str, Any]:
    """The variants in turn."""
    make, size = WORK[name]
    act = make(bench)
    found: dict[str, list[Figures]] = {"on": [], "off": [], "again": []}

    def batch(variant: str) -> float:
        if variant == "on":
            bench.on()
        python, jvm, start = time.process_time(), bench.jvm_cpu(), time.perf_counter()
        calls = []
        for _ in range(size):
            before = time.perf_counter()
            act()
            calls.append(time.perf_counter() - before)
        wall = time.perf_counter() - start
        if variant == "on":
            bench.settle()
        cpu = time.process_time() - python, bench.jvm_cpu() - jvm
        found[variant].append(Figures(wall, calls, *cpu))
        if variant == "on":
            bench.off()
        return wall

    variants = {variant: partial(batch, variant) for variant in found}
    interleave(variants, 0, warm_up=2)
    for batches in found.values():
        batches.clear()
    bench.own = dict.fromkeys(bench.own, 0.0)
    bench.calls, bench.waited = 0, 0.0
    interleave(variants, rounds, warm_up=0)
    own = {place: seconds / rounds for place, seconds in bench.own.items()}
    waited = bench.waited / bench.calls
    own["marks in the JVM"] = bench.calls / rounds * bench.marks()
    plain = {variant: [asdict(one) for one in batches] for variant, batches in found.items()}
    return {**plain, "own": own, "waited": waited}


def dropped(bench: Bench) -> dict[str, Any]:
    """Events that did not arrive, of a job of 20,000 tasks."""
    bench.on()
    listener: Any = attaching.current.listener  # type: ignore[union-attr]
    bench.spark.range(0, MANY_TASKS, 1, MANY_TASKS).count()
    bench.context._jsc.sc().listenerBus().waitUntilEmpty()
    lost = int(listener.dropped())
    bench.off()
    return {"dropped": lost}


def main() -> None:
    name, rounds, answer = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    PysparkInstrumentor().uninstrument()
    bench = Bench()
    assert attaching.current is None and not [
        thread for thread in threading.enumerate() if thread.name.startswith("stagewatch-spark")
    ]
    found = dropped(bench) if name == "dropped" else pairs(bench, name, rounds)
    answer.write_text(json.dumps(found))
    bench.spark.stop()


if __name__ == "__main__":
    main()
