"""The examples in PySpark's own documentation, with and without us: what fails only with us is our
fault. (Its distributions ship no other tests.)

    .venv-spark/bin/python -m tests.pyspark_doctests [MODULE ...]

MODULE is one of PySpark's that has such examples; without any those in `MODULES` run, minutes each.
Prints a line for each module, and the examples that fail with us alone; exits 1 if there is one.
Those with a time limit (``meanApprox``) fail now and then by themselves.
"""

from __future__ import annotations

import argparse
import doctest
import inspect
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.jobs import BIN

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "pyspark.sql.classic.dataframe",  # of 4.x; 3.5 has the next one alone
    "pyspark.sql.dataframe",
    "pyspark.sql.readwriter",
    "pyspark.sql.functions.builtin",
    "pyspark.core.rdd",
    "pyspark.rdd",
    "pyspark.sql.streaming.query",
    "pyspark.sql.streaming.readwriter",
)
_HERE = "tests.pyspark_doctests"
_WITH_US = "STAGEWATCH_PYSPARK_DOCTESTS"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("modules", nargs="*", default=[*filter(_has_examples, MODULES)])
    faults = 0
    for module in arguments.parse_args().modules:
        bare, ours = outcomes(module, with_us=False), outcomes(module, with_us=True)
        said = Counter(bare.values())
        worse = [
            name
            for name in sorted(bare | ours)
            if bare.get(name, "passed") == "passed" != ours.get(name)
        ]
        print(f"{module}: {said['passed']} pass and {said['failed']} fail", end=" ")
        print(f"without us; {len(worse)} more fail with us", flush=True)
        for name in worse:
            print(f"  {name}: {ours.get(name, 'not run')}")
        faults += len(worse) + (not bare)
    return 1 if faults else 0


def _has_examples(module: str) -> bool:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:
        return False
    return spec is not None and "\ndef _test(" in Path(str(spec.origin)).read_text()


def outcomes(module: str, *, with_us: bool) -> dict[str, str]:
    """``passed`` or ``failed`` by the name of what has the example; in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        home = _spark_home(Path(folder, "spark"))
        answer = Path(folder, "outcomes.json")
        command = [str(BIN / "python"), "-m", _HERE, "--inside", module, str(answer)]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": str(BIN / "python"),
            "PYSPARK_SUBMIT_ARGS": f"--conf spark.ui.enabled=false --driver-memory 1g "
            f"--conf spark.sql.warehouse.dir={folder}/warehouse pyspark-shell",
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "OTEL_PYTHON_DISTRO": "stagewatch",
            "OTEL_PYTHON_CONFIGURATOR": "stagewatch",
            "STAGEWATCH_STATE_DIR": f"{folder}/state",
            "STAGEWATCH_RECORDER_IDLE": "0.5",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            _WITH_US: "1" if with_us else "",
        }
        if with_us:
            command.insert(0, str(BIN / "opentelemetry-instrument"))
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if not answer.exists():
            raise RuntimeError(f"{module}: no outcomes\n{done.stderr[-3000:]}")
        found: dict[str, str] = json.loads(answer.read_text())
        return found


def _spark_home(folder: Path) -> Path:
    """PySpark's files again, for the examples work where they are and write there."""
    folder.mkdir()
    spec = find_spec("pyspark")
    assert spec is not None and spec.origin is not None, "pyspark is not installed"
    for entry in Path(spec.origin).parent.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


# --- inside the process that runs the examples --------------------------------------------------


class _Finder(doctest.DocTestFinder):
    """A function that is wrapped is still its module's."""

    def _from_module(self, module: Any, object: Any) -> bool:
        return bool(super()._from_module(module, inspect.unwrap(object)))  # type: ignore[misc]


def _inside(name: str, answer: Path) -> None:
    """The module's own `_test`, which knows what its examples need, but with our `testmod`."""
    module = import_module(name)
    found: dict[str, str] = {}

    def testmod(
        m: ModuleType | None = None, globs: Any = None, optionflags: int = 0, **_: Any
    ) -> tuple[int, int]:
        runner = doctest.DocTestRunner(optionflags=optionflags)
        within = m or module
        for test in _Finder().find(within, within.__name__, globs=globs):
            if test.examples:
                failed = runner.run(test, out=lambda _: None).failed
                found[test.name] = "failed" if failed else "passed"
        if os.environ[_WITH_US]:
            found.update(_ours())
        answer.write_text(json.dumps(found))
        return 0, len(found)

    doctest.testmod = testmod  # type: ignore[assignment]
    module._test()


def _ours() -> dict[str, str]:
    """Errors of our own are failures, and so is not having watched."""
    from stagewatch import recording, safety
    from stagewatch.instrumentation.pyspark import attaching

    found = {f"{place}: error of ours": "failed" for place in safety._seen}
    if recording.active is None or attaching.current is None:
        found["nothing was watched"] = "failed"
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        _inside(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main())
