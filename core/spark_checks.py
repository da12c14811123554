"""What `stagewatch doctor` looks at where PySpark is installed: Java, and what a driver that
``spark-submit`` starts has in its environment."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from stagewatch.checks import Check, Level

_JAVA: Final = ((4, 17), (0, 8))
"""From this major version of Spark on at least this Java."""
_PATIENCE: Final = 5.0
_SITE: Final = "opentelemetry.instrumentation.auto_instrumentation"


def spark(environ: Mapping[str, str]) -> Iterator[Check]:
    """Nothing where PySpark is not installed; its version stands under libraries."""
    try:
        version = metadata.version("pyspark")
    except metadata.PackageNotFoundError:
        return
    yield _java(environ, version)
    yield from _driver(environ)


def _java(environ: Mapping[str, str], version: str) -> Check:
    home = environ.get("JAVA_HOME")
    folder = f"{home}/bin" if home else environ.get("PATH", os.defpath)
    java = shutil.which("java", path=folder)
    major = int(version.partition(".")[0])
    wanted = next(java for spark, java in _JAVA if major >= spark)
    if java is None:
        where = f"{home}/bin, where JAVA_HOME points" if home else "PATH"
        text = f"no Java in {where}: sessions cannot start here, but for clients of Spark Connect; "
        text += f"install {wanted} or later (openjdk-17-jre-headless), or set JAVA_HOME"
        return Check(Level.WARNING, "spark", text)
    found = _java_version(java)
    if found is None:
        return Check(Level.WARNING, "spark", f"{java} does not say its version")
    if found < wanted:
        text = f"{java} is Java {found}; pyspark {version} needs {wanted} or later"
        return Check(Level.WARNING, "spark", text)
    return Check(Level.OK, "spark", f"Java {found} ({java})")


def _java_version(java: str) -> int | None:
    """17 of ``17.0.15``, 8 of ``1.8.0_402``."""
    try:
        done = subprocess.run([java, "-version"], capture_output=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(rb'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found[1]) if found else None


def _driver(environ: Mapping[str, str]) -> Iterator[Check]:
    spec = find_spec(_SITE)
    site = str(Path(spec.origin).parent) if spec is not None and spec.origin else ""
    if site in environ.get("PYTHONPATH", "").split(os.pathsep):
        text = "PYTHONPATH turns it on for what spark-submit and pyspark start"
    else:
        text = "spark-submit and pyspark: put `opentelemetry-instrument --` in front, "
        text += f"or PYTHONPATH={site}"
    yield Check(Level.OK, "spark", text)
    for name in ("PYSPARK_DRIVER_PYTHON", "PYSPARK_PYTHON"):
        python = environ.get(name)
        if not python:
            continue
        path = shutil.which(python, path=environ.get("PATH", os.defpath))
        if path is None:
            text = f"{name}={python} is not there"
            yield Check(Level.WARNING, "spark", text)
        elif os.path.dirname(os.path.abspath(path)) != os.path.dirname(sys.executable):
            text = f"{name}={python} is another Python than this one: a driver that spark-submit "
            text += "starts with it is seen if stagewatch is installed there, too"
            yield Check(Level.WARNING, "spark", text)
        break
