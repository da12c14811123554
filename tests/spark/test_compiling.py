"""The listener's classes are compiled once, and taken from nothing that another could have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stagewatch.instrumentation.pyspark import compiling


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """As a state directory is: nobody else's."""
    found = tmp_path / "state"
    found.mkdir(mode=0o700)
    return found


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per time that janino was asked."""
    calls: list[int] = []
    real = compiling._compiled

    def counted(jvm: Any, source: str) -> compiling.Classes:
        calls.append(1)
        return real(jvm, source)

    monkeypatch.setattr(compiling, "_compiled", counted)
    return calls


def test_compiled_once(spark: Any, state: Path, compiled: list[int]) -> None:
    """The second session of a machine has the same class without the compiler."""
    gateway = spark.sparkContext._gateway
    for _ in range(2):
        made = compiling.constructor(gateway, state)
        assert made.getDeclaringClass().getName() == "stagewatch.Listener"
        # Only made: py4j knows methods by the name of their class, and the session has its own.
        assert made.newInstance(_arguments(gateway)) is not None
    assert len(compiled) == 1
    (file,) = state.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def _arguments(gateway: Any) -> Any:
    found = gateway.new_array(gateway.jvm.java.lang.Object, 2)
    found[0], found[1] = "stagewatch.context", 10
    return found


@pytest.mark.parametrize("spoilt", ["cut", "other bytes", "empty", "open to others", "folder open"])
def test_not_trusted(spark: Any, state: Path, compiled: list[int], spoilt: str) -> None:
    """What is broken, or what others may write, is made anew."""
    gateway = spark.sparkContext._gateway
    compiling.constructor(gateway, state)
    (file,) = state.iterdir()
    body = file.read_bytes()
    match spoilt:
        case "cut":
            file.write_bytes(body[:-10])
        case "other bytes":
            file.write_bytes(body[:-10] + bytes(10))
        case "empty":
            file.write_bytes(b"")
        case "open to others":
            file.chmod(0o666)
        case _:
            state.chmod(0o777)
    compiling.constructor(gateway, state)
    assert len(compiled) == 2


def test_without_a_place(spark: Any, tmp_path: Path, compiled: list[int]) -> None:
    """Where nothing can be kept there is a listener all the same."""
    gateway = spark.sparkContext._gateway
    for state in (None, tmp_path / "is not there"):
        assert compiling.constructor(gateway, state) is not None
    assert len(compiled) == 2


def test_spark_that_does_not_say_what_it_is(
    spark: Any, state: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where py4j may not ask for the version, there is a listener, and nothing is kept."""

    def refuse(*_: Any) -> str:
        raise TypeError("'JavaPackage' object is not callable")

    monkeypatch.setattr(compiling, "_key", refuse)
    assert compiling.constructor(spark.sparkContext._gateway, state) is not None
    assert not list(state.iterdir())


def test_full_disk(
    spark: Any, state: Path, compiled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a listener, and no half of a file."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiling.os, "replace", full)
    assert compiling.constructor(spark.sparkContext._gateway, state) is not None
    assert not list(state.iterdir())
