"""`make demo`: run the example job under stagewatch, look at the run, then watch it fail.

Nothing is sent anywhere: no endpoint is set, so everything is in the history under ``.demo/state``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples import flights_data

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(".demo")
SCRIPT = Path("examples/flights_etl.py")
BIN = Path(sys.executable).parent
PATIENCE = 300.0
"""Seconds after which a command of the demo is taken to hang."""


def main() -> int:
    """Run it all; 0 if every command ended as it should."""
    os.chdir(ROOT)
    print("The data: nycflights13, every flight out of New York in 2013 …", flush=True)
    flights_data.write(DEMO / "data")
    environment = demo_environment()
    wrong = []
    with airports_api() as api:
        job = ["opentelemetry-instrument", "python", str(SCRIPT)]
        job += ["--data", f"{DEMO}/data", "--api", api, "--out", f"{DEMO}/out"]
        for expected, command in [
            (0, job),
            (0, ["stagewatch", "show", "last"]),
            (0, ["stagewatch", "report", "flights"]),
            (1, [*job, "--fail"]),  # the traceback is the script's own
            (0, ["stagewatch", "show", "last"]),
            (0, ["stagewatch", "report", "flights"]),
        ]:
            status = run(command, environment)
            if status != expected:
                wrong.append(f"{shlex.join(command)}: exit status {status}, expected {expected}")
    print(
        "\nTo look again (the second run fails on purpose):\n"
        f"  export STAGEWATCH_STATE_DIR={DEMO}/state\n"
        "  .venv/bin/stagewatch report\n"
        "  .venv/bin/stagewatch show last --all"
    )
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def demo_environment() -> dict[str, str]:
    """The caller's, but with the demo's state and configuration, and nowhere to send to."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_EXPORTER_", "STAGEWATCH_"))
    }
    return {
        **kept,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "STAGEWATCH_STATE_DIR": str(ROOT / DEMO / "state"),
        "STAGEWATCH_CONFIG": str(ROOT / "examples/stagewatch.yaml"),
    }


@contextmanager
def airports_api() -> Iterator[str]:
    """The address of an API that serves the airports; its process ends with the block."""
    command = [sys.executable, "examples/airports_api.py", f"{DEMO}/data/airports.csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            address = server.stdout.readline().strip()
            if not address:
                raise SystemExit("examples/airports_api.py did not start")
            yield address
        finally:
            server.terminate()


def run(command: list[str], environment: dict[str, str]) -> int:
    """Show the command as a user would type it, run it from this environment, wait for it."""
    print(f"\n$ {shlex.join(command)}", flush=True)
    return subprocess.run(command, env=environment, timeout=PATIENCE).returncode


if __name__ == "__main__":
    sys.exit(main())
