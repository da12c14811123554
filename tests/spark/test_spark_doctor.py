"""`stagewatch doctor` where PySpark is installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from opentelemetry.instrumentation import auto_instrumentation

from stagewatch.checks import Level
from stagewatch.spark_checks import spark

pytestmark = pytest.mark.once
SITE = auto_instrumentation.__path__[0]


def said(**environ: str) -> list[tuple[Level, str]]:
    """Levels and sentences."""
    return [(check.level, check.text) for check in spark({"PATH": os.environ["PATH"], **environ})]


def fake_java(folder: Path, version: str) -> str:
    """A JAVA_HOME whose ``java`` says that it is of a version."""
    java = folder / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    return str(folder)


def test_turned_on_by_the_environment() -> None:
    """As `opentelemetry-instrument` leaves it for what it starts."""
    found = said(PYTHONPATH=SITE, PYSPARK_PYTHON=sys.executable)
    text = "PYTHONPATH turns it on for what spark-submit and pyspark start"
    assert found[1:] == [(Level.OK, text)]


def test_how_to_turn_it_on() -> None:
    """Otherwise the line says what to set."""
    assert f"PYTHONPATH={SITE}" in said()[1][1]


def test_no_java(tmp_path: Path) -> None:
    """A missing Java is a warning that says where it was looked for and what to install."""
    level, text = said(JAVA_HOME=str(tmp_path))[0]
    assert level is Level.WARNING
    assert text.startswith(f"no Java in {tmp_path}/bin, where JAVA_HOME points: sessions cannot")


@pytest.mark.spark4
@pytest.mark.parametrize(("version", "level"), [("1.8.0_402", "warning"), ("21.0.1", "ok")])
def test_java_version(tmp_path: Path, version: str, level: str) -> None:
    """Spark 4 needs Java 17, and versions up to 8 begin with 1."""
    found, text = said(JAVA_HOME=fake_java(tmp_path, version))[0]
    assert found == level
    assert ("is Java 8; pyspark 4" in text) is (level == "warning")


def test_another_python() -> None:
    """A driver's Python that is not this one may have no stagewatch."""
    level, text = said(PYSPARK_PYTHON=sys.executable, PYSPARK_DRIVER_PYTHON="sh")[2]
    assert (level, text.startswith("PYSPARK_DRIVER_PYTHON=sh is another Python")) == (
        Level.WARNING, True,
    )  # fmt: skip
