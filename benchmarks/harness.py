"""How the benchmarks measure: processes, CPU clocks, interleaved batches, and what is compared.

Rules that make the figures worth something on a noisy machine: ratios of two things are taken
from the same minute, batch by batch and in turn; the median speaks and the quartiles stand beside
it; an A/A control (the same thing twice) shows what the machine does by itself.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from tests.otlp_decode import read_requests, spans_of

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
"""Jobs run here: in `ROOT` even the rival would find us, by the editable install's metadata."""
JOBS = ROOT / "benchmarks" / "jobs"
DEV = ROOT / ".venv" / "bin"
OURS = ROOT / ".venv-bench" / "bin"
"""stagewatch installed as a wheel with little else, like its rival in `STOCK`."""
STOCK = ROOT / ".venv-stock" / "bin"
"""opentelemetry-distro: batch span processor and OTLP exporter, as they come."""
SPARK = ROOT / ".venv-spark" / "bin"
BROKEN = ("Failed to auto initialize", "stagewatch failed")
"""What a job says on stderr when it went on without telemetry: its figures would flatter us."""
PATIENCE = 180.0
"""Seconds after which a process is taken to hang."""


# --- what a benchmark says ----------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, the bar, and the figures."""

    what: str
    bar: str
    measured: str
    passed: bool | None
    """None where there is no bar to pass."""
    beside: str = ""
    """What gives the figure its meaning: the rival, the control, the spread."""
    figures: dict[str, Any] = field(default_factory=dict)
    """For the JSON file; seconds and bytes, ratios as they are."""

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a list of figures."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f}, n={self.count})"


def spread(figures: Sequence[float]) -> Spread:
    """Quartiles by linear interpolation between the sorted figures; needs at least two."""
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return Spread(middle, low, high, len(figures))


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of the ratios, each of two figures taken one after the other."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def machine() -> dict[str, str]:
    """The machine's shape and the versions, as they stand under the table."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{len(os.sched_getaffinity(0))} × {model}, {memory:.0f} GB",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(
            f"{name} {version(name)}" for name in ("opentelemetry-sdk", "pandas", "stagewatch")
        ),
        "load": f"{os.getloadavg()[0]:.1f} at the start",
    }


# --- interleaving -------------------------------------------------------------------------------


def interleave(
    variants: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 2
) -> dict[str, list[float]]:
    """Run every variant once per round, in an order that turns round by round."""
    figures: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(warm_up + rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            figure = variants[name]()
            if number >= warm_up:
                figures[name].append(figure)
    return figures


# --- environments -------------------------------------------------------------------------------


def plain_environment(**more: str) -> dict[str, str]:
    """The caller's without anything that steers Python, OpenTelemetry or us."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OTEL_", "STAGEWATCH_", "PYTHON"))
        and name not in ("TRACEPARENT", "TRACESTATE", "VIRTUAL_ENV")
    }
    return {**kept, **more}


def ours_environment(state: Path, endpoint: str | None = None, **more: str) -> dict[str, str]:
    """stagewatch under `opentelemetry-instrument`, whatever else is installed beside it."""
    return plain_environment(
        OTEL_PYTHON_DISTRO="stagewatch",
        OTEL_PYTHON_CONFIGURATOR="stagewatch",
        STAGEWATCH_STATE_DIR=str(state),
        **_exporter(endpoint),
        **more,
    )


def stock_environment(endpoint: str | None = None, **more: str) -> dict[str, str]:
    """opentelemetry-distro at its defaults, but OTLP over HTTP."""
    return plain_environment(
        OTEL_PYTHON_DISTRO="distro",
        OTEL_PYTHON_CONFIGURATOR="configurator",
        OTEL_SERVICE_NAME="stock",
        **_exporter(endpoint),
        **more,
    )


def _exporter(endpoint: str | None) -> dict[str, str]:
    if endpoint is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }


def instrumented(bin_directory: Path, *command: str | Path) -> list[str]:
    """`opentelemetry-instrument python COMMAND` of one virtual environment."""
    launcher = [str(bin_directory / "opentelemetry-instrument"), str(bin_directory / "python")]
    return [*launcher, *map(str, command)]


def fresh_directory(name: str) -> Path:
    """An empty folder under ``.bench``."""
    path = BENCH / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


# --- processes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one process took, in seconds, with the children it waited for."""

    cpu: float
    wall: float
    ended: float
    """Seconds since the epoch when its parent knew."""


def run(command: Sequence[str], environment: Mapping[str, str], expected: int = 0) -> Cost:
    """Run it to its end; its output goes to ``.bench/output.txt``.

    Raises RuntimeError when its exit status is not `expected`.
    """
    BENCH.mkdir(exist_ok=True)
    with (BENCH / "output.txt").open("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=BENCH,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall, ended = time.perf_counter() - start, time.time()
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read()
        if process.returncode != expected or any(words in said for words in BROKEN):
            raise RuntimeError(f"{command}: exit {process.returncode}\n{said[-3000:]}")
    return Cost(usage.ru_utime + usage.ru_stime, wall, ended)


class Worker:
    """A process that works in batches: a number in, the CPU seconds the batch took out."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        BENCH.mkdir(exist_ok=True)
        self._said = BENCH / f"worker-{time.time_ns()}.txt"
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=BENCH,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                bufsize=1,
            )

    def batch(self, size: int) -> float:
        """CPU seconds of the whole process for `size` units of work, flushed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{size}\n")
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args!r} ended: {self._process.wait(10)}")
        return float(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Raises RuntimeError if it worked without the telemetry that was to be measured."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()
        text = self._said.read_text()
        self._said.unlink()
        if kind is None and any(words in text for words in BROKEN):
            raise RuntimeError(f"{self._process.args!r}\n{text[-3000:]}")


# --- the receiver -------------------------------------------------------------------------------


class Receiver:
    """A receiver in a process of its own, and what it has written down so far."""

    def __init__(self, endpoint: str, out: Path) -> None:
        self.endpoint = endpoint
        self._out = out

    def span_ids(self, name: str) -> list[str]:
        """Ids of the spans called `name`, one for each time it arrived."""
        return [
            span.trace_id + span.span_id
            for request in read_requests(self._out)
            if request.signal == "traces"
            for span in spans_of(request.body)
            if span.name == name
        ]

    def wait_until_quiet(self, seconds: float = 3.0, patience: float = PATIENCE) -> None:
        """Until nothing has come in for some seconds."""
        size, since, deadline = -1, time.monotonic(), time.monotonic() + patience
        while time.monotonic() < deadline and time.monotonic() - since < seconds:
            now = self._out.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            time.sleep(0.1)

    def wait_for_spans(self, name: str, count: int, patience: float = PATIENCE) -> int:
        """How many different spans called `name` are there, at `count` or when it got quiet."""
        deadline = time.monotonic() + patience
        while True:
            self.wait_until_quiet(1.0)
            got = len(set(self.span_ids(name)))
            if got >= count or time.monotonic() > deadline:
                return got


@contextmanager
def receiver(protocol: str = "http") -> Iterator[Receiver]:
    """A live OTLP receiver; its process ends with the block."""
    BENCH.mkdir(exist_ok=True)
    out = BENCH / f"received-{time.time_ns()}.jsonl"
    command = [sys.executable, "-m", "tests.otlp_receiver", "--protocol", protocol]
    with subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=ROOT,
        env=plain_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Receiver(process.stdout.readline().strip(), out)
        finally:
            process.terminate()
            process.wait(PATIENCE)
            out.unlink(missing_ok=True)
