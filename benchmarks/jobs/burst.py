"""Spans as fast as they come, then the end: ``burst.py N [FILE]``.

FILE gets the time (seconds since the epoch) of the last line.
"""

import sys
import time

from opentelemetry import trace

tracer = trace.get_tracer("bench")
for number in range(int(sys.argv[1])):
    with tracer.start_as_current_span("work") as span:
        span.set_attribute("batch.number", number)
if len(sys.argv) > 2:
    with open(sys.argv[2], "w") as file:
        file.write(str(time.time()))
