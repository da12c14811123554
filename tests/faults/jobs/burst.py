"""Spans as fast as they come, and the end at once."""

import sys

from opentelemetry import trace
from story import last, note, stage

number = int(sys.argv[1])
tracer = trace.get_tracer("mine")
with stage("load") as counts:
    for _ in range(number):
        with tracer.start_as_current_span("work"):
            pass
    counts.records(out=number)
note(burst="work", count=number)
last()
