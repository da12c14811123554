"""The example job is an ordinary script, and does what it says, without us."""

import ast
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest
import requests

from examples import flights_data
from examples.airports_api import Airports

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "flights_etl.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw tables."""
    folder = tmp_path_factory.mktemp("data")
    flights_data.write(folder)
    return folder


@pytest.fixture
def api(data: Path) -> Iterator[str]:
    """The airports API, which has not stumbled yet."""
    with Airports(data / "airports.csv") as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


def run_job(data: Path, api: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The job as a user starts it; a warning would be an error."""
    command = [sys.executable, "-W", "error", str(SCRIPT), "--data", str(data), "--api", api]
    return subprocess.run(
        [*command, "--out", str(out), *more], capture_output=True, text=True, timeout=100
    )


def test_the_script_knows_nothing_of_telemetry() -> None:
    """Nothing in the user's code changes: that is what the example shows."""
    names = set()
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names == {"argparse", "pandas", "pathlib", "requests", "sqlite3", "urllib3"}


def test_all_flights_are_there(data: Path) -> None:
    """Rows and columns of the published tables, and they are not written twice."""
    before = (data / "flights.parquet").stat().st_mtime_ns
    flights_data.write(data)
    assert (data / "flights.parquet").stat().st_mtime_ns == before
    assert pd.read_parquet(data / "flights.parquet").shape == (336_776, 19)
    assert pd.read_csv(data / "weather.csv").shape == (26_115, 15)


def test_the_api_pages_and_stumbles_once(api: str) -> None:
    """Page 3 is refused the first time, and the last page says so."""
    answers = [requests.get(f"{api}/airports?page=3", timeout=10) for _ in range(2)]
    last = requests.get(f"{api}/airports?page=15", timeout=10).json()
    assert [answer.status_code for answer in answers] == [503, 200]
    assert (len(answers[1].json()["airports"]), answers[1].json()["next"]) == (100, 4)
    assert (len(last["airports"]), last["next"]) == (58, None)


def test_the_job_loads_what_flew(data: Path, api: str, tmp_path: Path) -> None:
    """Parquet and SQLite hold every valid flight; the API's 503 did no harm."""
    done = run_job(data, api, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    flights = pd.read_parquet(tmp_path / "out" / "flights.parquet")
    database = sqlite3.connect(tmp_path / "out" / "warehouse.sqlite")
    (counted,) = database.execute("SELECT sum(flights) FROM punctuality").fetchone()
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema")}
    database.close()
    assert len(flights) == counted == 327_346
    assert flights["destination"].notna().mean() > 0.9
    assert {"punctuality", "routes", "rain", "fleet", "late_flights"} <= tables


def test_a_renamed_column_makes_it_fail(data: Path, api: str, tmp_path: Path) -> None:
    """The failure of the demo is pandas' own, in the middle of the job."""
    done = run_job(data, api, tmp_path / "out", "--fail")
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("KeyError: 'tailnum'")
    assert not (tmp_path / "out").exists()
