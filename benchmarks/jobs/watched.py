"""A job that goes on until its stdin is closed; ``idle``: without a sign of life.

Else it is in a stage, counts records ten times a second and ends a span every second.
"""

import select
import sys


def work() -> None:
    from opentelemetry import trace

    import stagewatch

    tracer = trace.get_tracer("mine")
    number = 0
    with stagewatch.stage("load") as counts:
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            counts.records(out=100)
            number += 1
            if number % 10 == 0:
                with tracer.start_as_current_span("batch"):
                    pass


print("up", flush=True)
if sys.argv[1] == "idle":
    sys.stdin.read()
else:
    work()
