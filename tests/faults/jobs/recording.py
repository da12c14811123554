"""Records before and after the harness has done its deed."""

import sys

from opentelemetry import trace
from story import last, note, own, stage, wait

after = int(sys.argv[1])
tracer = trace.get_tracer("mine")
with stage("extract") as counts:
    for _ in range(200):
        with own("page"):
            pass
    counts.records(out=5)
with stage("load") as counts:
    counts.records(out=3)
    with own("batch"):
        pass
    last()
    wait()
    for _ in range(after):
        with tracer.start_as_current_span("row"):
            pass
    counts.records(out=4)
note(burst="row", count=after)
last()
