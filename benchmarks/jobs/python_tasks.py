"""Batches of Python tasks, as a worker of Spark does them: ``python_tasks.py ROOM with|without``.

A worker unpickles its function, runs it and reports its times; here the function does nothing, and
there is no JVM beside it. A number a line on stdin, CPU seconds a line on stdout.
"""

import io
import os
import pickle
import secrets
import sys
import time
from pathlib import Path
from types import FunctionType

from pyspark import worker
from pyspark.serializers import CloudPickleSerializer
from pyspark.taskcontext import TaskContext

from stagewatch import clock
from stagewatch.exporters.journal import start_ticks
from stagewatch.instrumentation.pyspark import executors
from stagewatch.program import ParentRun

room, variant = Path(sys.argv[1]), sys.argv[2]
room.mkdir(parents=True, exist_ok=True)
trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
run = ParentRun(
    secrets.token_hex(16),
    os.getpid(),
    start_ticks(),
    trace_id,
    span_id,
    True,
    "bench",
    clock.offset,
)
begin = executors._Begin((run.to_environment(), str(room), {"service.name": "bench"}, False))


def function(x):
    return x


command = CloudPickleSerializer().dumps(
    (executors._Shipped(function, begin) if variant == "with" else function, None)
)


def _task(number):
    context = TaskContext._getOrCreate()
    context._stageId, context._partitionId, context._attemptNumber = 1, number, 0
    context._taskAttemptId = number
    context._localProperties = {"stagewatch.traceparent": f"00-{trace_id}-{span_id}-01"}
    called, _ = pickle.loads(command)
    called(number)
    report_times(out, 0.0, 0.0, 0.0, *more)  # noqa: F821  # as the worker calls it


worker.__dict__.update(
    pickle=pickle,
    command=command,
    trace_id=trace_id,
    span_id=span_id,
    out=io.BytesIO(),
    more=(0,) * (worker.report_times.__code__.co_argcount - 4),
)
task = FunctionType(_task.__code__, worker.__dict__)
done = 0
for line in sys.stdin:
    size = int(line)
    start = time.thread_time()
    for number in range(done, done + size):
        task(number)
    print(time.thread_time() - start, flush=True)
    done += size
