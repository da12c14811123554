"""Real Spark: one session per process, whose JVM takes seconds to start, and jobs of their own,
most of which share a second JVM."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from time import time_ns
from typing import Any

import pytest

from stagewatch.instrumentation.pyspark import PysparkInstrumentor
from stagewatch.model import Pipeline
from tests.jobs import Jobs, end_recorders
from tests.recorded import Recorded
from tests.spark.told import SharedJvm

# .venv has no pyspark: `make test-spark` makes the environments that have.
collect_ignore_glob = [] if find_spec("pyspark") else ["test_*.py"]

DEFAULTS = {
    "spark.master": "local[2]",
    "spark.driver.memory": "1g",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
}
QUICKLY = "-XX:TieredStopAtLevel=1"
"""A JVM that lives for a minute is over before it has optimised itself."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A session takes long to start, and PySpark leaves sockets to the collector of garbage; what
    3.5 does not have or does as 4.x does, and what 4.x does not do with pandas 3, is not run there.
    """
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.timeout(300))
        for ignored in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
            item.add_marker(pytest.mark.filterwarnings(f"ignore::{ignored}"))
    if not ours:
        return
    lacking = {"spark4", "once"} if version("pyspark").startswith("3.") else {"pandas2"}
    others = [item for item in ours if any(it.name in lacking for it in item.iter_markers())]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


@pytest.fixture(scope="session")
def spark_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a Spark of these tests has in its environment, whoever starts it: `DEFAULTS`, this
    Python, nothing but loopback; its files go to a temporary directory."""
    home = os.environ.get("JAVA_HOME")
    if not shutil.which("java", path=f"{home}/bin" if home else None):
        end = pytest.exit if os.environ.get("STAGEWATCH_REQUIRE_ALL") else pytest.skip
        end("no Java: install 17 or later (apt-get install openjdk-17-jre-headless), set JAVA_HOME")
    folder = tmp_path_factory.mktemp("spark")
    settings = {
        **DEFAULTS,
        "spark.sql.warehouse.dir": str(folder / "warehouse"),
        "spark.driver.extraJavaOptions": f"{QUICKLY} -Dderby.system.home={folder}",
        "spark.executor.extraJavaOptions": QUICKLY,
    }
    lines = (f"{name} {value}\n" for name, value in settings.items())
    (folder / "spark-defaults.conf").write_text("".join(lines))
    return {
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_CONF_DIR": str(folder),
        "SPARK_LOCAL_DIRS": str(folder / "local"),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


@pytest.fixture(scope="session")
def spark(spark_environment: dict[str, str]) -> Iterator[Any]:
    """The process's session, instrumented before it started; what it does is written where a test
    has `recorded`."""
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as environment:
        for name in tuple(os.environ):
            if name.startswith(("STAGEWATCH_", "OTEL_")) and name != "STAGEWATCH_REQUIRE_ALL":
                environment.delenv(name)
        for name, value in spark_environment.items():
            environment.setenv(name, value)
        PysparkInstrumentor().instrument()
        session = SparkSession.builder.appName("tests").getOrCreate()
        yield session
        session.stop()
        PysparkInstrumentor().uninstrument()


@pytest.fixture
def recorded(tmp_path: Path) -> Iterator[Recorded]:
    """As everywhere, but Spark tells its own times: the clock is the real one."""
    found = Recorded(tmp_path, time_ns, Pipeline(name="test"))
    yield found
    found.close()


@pytest.fixture
def spark_jobs(tmp_path: Path, spark_environment: dict[str, str]) -> Iterator[Jobs]:
    """Real jobs, each with a Spark of its own."""
    found = Jobs(tmp_path, patience=240)
    found.environment |= spark_environment
    yield found
    end_recorders(found)


@pytest.fixture(scope="session")
def shared_jvm(spark_environment: dict[str, str]) -> Iterator[SharedJvm]:
    """Gives what a job has in its environment to find its driver's JVM there already, as
    `spark-submit` has it: for one after the other, and nothing is left of the one before. Its
    working directory is not the job's."""
    from pyspark.java_gateway import launch_gateway

    with pytest.MonkeyPatch.context() as environment:
        for name, value in spark_environment.items():
            environment.setenv(name, value)
        gateway = launch_gateway()
    parameters = gateway.gateway_parameters
    known = {
        "PYSPARK_GATEWAY_PORT": str(parameters.port),
        "PYSPARK_GATEWAY_SECRET": str(parameters.auth_token),
    }
    contexts = getattr(getattr(gateway.jvm, "org.apache.spark.SparkContext$"), "MODULE$")

    def alone() -> dict[str, str]:
        left = contexts.getActive()
        if left.isDefined():
            left.get().stop()
        return known

    yield alone
    gateway.shutdown()
    gateway.proc.stdin.close()  # it ends with whoever holds this
    gateway.proc.wait(60)
