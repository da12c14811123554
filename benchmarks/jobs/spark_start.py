"""Start a Spark session.

    python spark_start.py ANSWER

Writes JSON to the file ANSWER: ``wall``, the seconds that it took, ``own``, those of them that its
thread spent in our code, and ``beside``, CPU seconds of the JVM's thread that makes the listener
meanwhile (both 0 where PySpark is not watched).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from stagewatch.instrumentation.pyspark import attaching, compiling

own = beside = 0.0
make = compiling.constructor
attach = attaching.attach


def timed_attach(context: Any) -> None:
    """The one call of ours that may wait."""
    global own
    start = time.perf_counter()
    attach(context)
    own += time.perf_counter() - start


def timed_make(gateway: Any, state: Path | None) -> Any:
    """Of the thread beside it."""
    global beside
    threads = gateway.jvm.java.lang.management.ManagementFactory.getThreadMXBean()
    before = threads.getCurrentThreadCpuTime()
    made = make(gateway, state)
    beside = (threads.getCurrentThreadCpuTime() - before) / 1e9
    return made


attaching.attach = timed_attach
compiling.constructor = timed_make

start = time.perf_counter()
builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = builder.config("spark.driver.memory", "1g").getOrCreate()
wall = time.perf_counter() - start
while attaching._making is not None and not attaching._making.is_over:
    time.sleep(0.01)
Path(sys.argv[1]).write_text(json.dumps({"wall": wall, "own": own, "beside": beside}))
spark.stop()
