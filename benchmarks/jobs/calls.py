"""Batches of one kind of call: ``calls.py fill|read FILE|get URL|stage``.

A number a line on stdin, CPU seconds a line on stdout.
"""

import sys
import time

what, argument = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else "")
if what == "fill":
    import pandas as pd

    frame = pd.DataFrame({"a": range(10)})  # the cheapest there is: 9 to 14 µs

    def work(size):
        for _ in range(size):
            frame.fillna(0.0)

elif what == "read":
    import pandas as pd

    def work(size):
        for _ in range(size):
            pd.read_csv(argument)

elif what == "get":
    import requests

    session = requests.Session()

    def work(size):
        for _ in range(size):
            session.get(argument).raise_for_status()

else:
    import stagewatch

    def work(size):
        for _ in range(size):
            with stagewatch.stage("work"):
                pass


for line in sys.stdin:
    size = int(line)
    start = time.thread_time()
    work(size)
    print(time.thread_time() - start, flush=True)
