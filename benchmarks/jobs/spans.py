"""Batches of spans with five attributes; a number a line on stdin, CPU seconds a line on stdout.

With ``--bare``: a TracerProvider without any processor, set up here.
"""

import sys
import time

from opentelemetry import trace


def batch(tracer, size):
    for number in range(size):
        with tracer.start_as_current_span("work") as span:
            span.set_attribute("batch.number", number)
            span.set_attribute("batch.name", "flights")
            span.set_attribute("batch.ratio", 0.25)
            span.set_attribute("batch.is_last", False)
            span.set_attribute("batch.source", "warehouse")


def main():
    if "--bare" in sys.argv:
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
    tracer = trace.get_tracer("bench")
    provider = trace.get_tracer_provider()
    for line in sys.stdin:
        start = time.process_time()
        batch(tracer, int(line))
        provider.force_flush()
        print(time.process_time() - start, flush=True)


main()
