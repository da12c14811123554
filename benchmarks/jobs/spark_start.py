"""Start a Spark session.

    python spark_start.py ANSWER

Writes JSON to the file ANSWER: ``wall``, the seconds that it took, and ``own``, those of them that
its thread spent in our code (0 where PySpark is not watched).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from stagewatch.instrumentation.pyspark import attaching

own = 0.0
attach = attaching.attach


def timed_attach(context: Any) -> None:
    """The one call of ours that may wait."""
    global own
    start = time.perf_counter()
    attach(context)
    own += time.perf_counter() - start


attaching.attach = timed_attach

start = time.perf_counter()
builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
spark = builder.config("spark.driver.memory", "1g").getOrCreate()
wall = time.perf_counter() - start
Path(sys.argv[1]).write_text(json.dumps({"wall": wall, "own": own}))
spark.stop()
