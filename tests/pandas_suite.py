"""pandas' own tests, with and without us: what fails only with us is our fault.

    python tests/pandas_suite.py [-n WORKERS] [TESTS ...]

TESTS are paths below ``pandas/tests``; without any the set named in `PARTS` runs (minutes). Prints
the tests whose result differs and exits 1 if there is one. Missing data files fail both times.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PARTS = (
    "reshape/merge",
    "reshape/concat",
    "reshape/test_melt.py",
    "reshape/test_pivot.py",
    "io/test_parquet.py",
    "io/test_sql.py",
    "io/test_pickle.py",
    "io/json/test_readlines.py",
    "io/json/test_pandas.py",
    "io/parser/common",
    "io/formats/test_to_csv.py",
    "io/test_common.py",
    "io/test_stata.py",
    "frame/methods",
    "frame/test_query_eval.py",
    "apply",
    "groupby",
    "copy_view",
    "api",
)
_WITH_US = "STAGEWATCH_PANDAS_SUITE"
_RESULTS = "STAGEWATCH_PANDAS_SUITE_RESULTS"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("-n", "--workers", default="0")
    arguments.add_argument("tests", nargs="*", default=PARTS)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = ((Path(folder, "bare"), False), (Path(folder, "ours"), True))
        with ThreadPoolExecutor() as both:
            bare, ours = both.map(lambda side: run(*side, options.tests, options.workers), sides)
    changed = {
        name: (bare.get(name, "not run"), ours.get(name, "not run"))
        for name in sorted(bare.keys() | ours.keys())
        if bare.get(name) != ours.get(name)
    }
    failed = sum(outcome == "failed" for outcome in bare.values())
    print(f"{len(bare)} tests without us, {failed} of them fail; {len(ours)} with us")
    for name, (without, with_us) in changed.items():
        print(f"{name}: {without} without us, {with_us} with us")
    print(f"{len(changed)} differ")
    return 1 if changed or not bare else 0


def run(results: Path, with_us: bool, tests: list[str], workers: str) -> dict[str, str]:
    """Outcome by test id. One run with or without us, in a process of its own."""
    spec = find_spec("pandas")
    assert spec is not None and spec.origin is not None, "pandas is not installed"
    package = Path(spec.origin).parent
    results.mkdir()
    here = Path(__file__).resolve()
    environ = os.environ | {
        _WITH_US: "1" if with_us else "",
        _RESULTS: str(results),
        "PYTHONPATH": os.pathsep.join([str(here.parent), str(here.parent.parent)]),
    }
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=no", "-p", here.stem),
            *("-m", "not slow and not network and not db and not single_cpu"),
            *("-o", "cache_dir=" + str(results / "cache"), "-n", workers),
            *("-c", str(package / "pyproject.toml"), "--rootdir", str(package)),
            *(str(package / "tests" / test) for test in tests),
        ],
        env=environ,
        cwd=results,
        check=False,
        stdout=None if sys.stdout.isatty() else subprocess.DEVNULL,
    )
    outcomes: dict[str, str] = {}
    for file in results.glob("*.json"):
        outcomes.update(json.loads(file.read_text()))
    return outcomes


# --- the plugin: this file again, inside pytest -----------------------------------------------


def _watch() -> None:
    from stagewatch.instrumentation.pandas import PandasInstrumentor
    from stagewatch.model import Pipeline
    from tests.recorded import Clock, Recorded

    # A real journal: what pandas' tests do becomes records and spans, not only calls of ours.
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    Recorded(Path(folder.name), Clock(), Pipeline(name="suite"))
    PandasInstrumentor().instrument()


_outcomes: dict[str, str] = {}


def pytest_runtest_logreport(report: Any) -> None:
    if os.environ.get("PYTEST_XDIST_WORKER") is None and hasattr(report, "node"):
        return  # the controller hears from its workers, which write for themselves
    said = report.outcome != "passed" or report.when == "call"
    if said and _outcomes.get(report.nodeid) != "failed":
        _outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish(session: Any) -> None:
    # Not at the very end: workers that take their time are killed there.
    if not _outcomes or _RESULTS not in os.environ:
        return
    if os.environ.get(_WITH_US):
        _outcomes.update(_ours())
    Path(os.environ[_RESULTS], f"{os.getpid()}.json").write_text(json.dumps(_outcomes))


def _ours() -> dict[str, str]:
    """Errors of our own are failures, whatever pandas' tests say, and so is not having watched."""
    from stagewatch import recording, safety

    found = {f"{place}: error of ours": "failed" for place in safety._seen}
    if recording.active is None or not recording.active.operations:
        found["nothing was watched"] = "failed"
    return found


if os.environ.get(_WITH_US):
    assert "pandas" not in sys.modules
    _watch()

if __name__ == "__main__":
    sys.exit(main())
