"""How punctual is each airline, on which planes, in which weather, to where?

An ordinary job: it reads files and an API, cleans, joins, sums up, and writes a warehouse. It
knows nothing of any telemetry.

    python examples/flights_etl.py --data .demo/data --api http://127.0.0.1:8000 --out .demo/out
"""

import argparse
import sqlite3
from pathlib import Path

import pandas as pd
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry


def fetch_airports(api):
    """All pages of the airports API; a server error is tried again."""
    session = requests.Session()
    retry = Retry(total=3, backoff_factor=0.1, status_forcelist=[502, 503, 504])
    session.mount("http://", HTTPAdapter(max_retries=retry))
    rows, page = [], 1
    while page is not None:
        response = session.get(f"{api}/airports", params={"page": page}, timeout=10)
        response.raise_for_status()
        content = response.json()
        rows += content["airports"]
        page = content["next"]
    airports = pd.DataFrame(rows)
    return airports.astype({"lat": float, "lon": float, "alt": int})


def extract(data, api, planes_file):
    """The raw tables, by name."""
    return {
        "flights": pd.read_parquet(data / "flights.parquet"),
        "weather": pd.read_csv(data / "weather.csv", parse_dates=["time_hour"]),
        "planes": pd.read_csv(data / planes_file),
        "airlines": pd.read_csv(data / "airlines.csv"),
        "airports": fetch_airports(api),
    }


def validate(flights):
    """Only flights that flew, with a plane we know by its tail number, and plausible delays."""
    flights = flights.dropna(subset=["dep_time", "arr_time", "arr_delay", "tailnum"])
    flights = flights.drop_duplicates(["time_hour", "carrier", "flight", "origin"])
    return flights.query("-120 <= dep_delay <= 1440 and air_time > 0")


def transform(flights, weather, planes, airlines, airports):
    """One row per flight with everything known about it."""
    weather = weather.drop_duplicates(["origin", "time_hour"])
    weather = weather[["origin", "time_hour", "temp", "wind_speed", "precip", "visib"]]
    planes = planes.rename(columns={"year": "built"})
    airlines = airlines.rename(columns={"name": "airline"})
    airports = airports.rename(columns={"faa": "dest", "name": "destination"})

    flights = flights.merge(airlines, on="carrier", how="left")
    flights = flights.merge(weather, on=["origin", "time_hour"], how="left")
    flights = flights.merge(planes, on="tailnum", how="left")
    flights = flights.merge(airports[["dest", "destination", "lat", "lon"]], on="dest", how="left")

    flights["precip"] = flights["precip"].fillna(0.0)
    flights["plane_age"] = flights["year"] - flights["built"]
    flights["speed_kmh"] = flights["distance"] * 1.609 / (flights["air_time"] / 60)
    flights["is_late"] = flights["arr_delay"] > 15
    return flights.sort_values(["time_hour", "carrier", "flight"])


def summaries(flights):
    """The tables people look at, by name."""
    punctuality = flights.groupby(["airline", "month"]).agg(
        flights=("flight", "size"),
        late=("is_late", "mean"),
        median_delay=("arr_delay", "median"),
    )
    routes = flights.groupby(["origin", "destination"]).agg(
        flights=("flight", "size"),
        delay=("arr_delay", "mean"),
        speed_kmh=("speed_kmh", "mean"),
    )
    wet = flights.assign(wet=flights["precip"] > 0).groupby(["origin", "wet"])["dep_delay"].mean()
    fleet = flights.groupby("manufacturer", dropna=False).apply(
        lambda planes: pd.Series(
            {"planes": planes["tailnum"].nunique(), "age": planes["plane_age"].mean()}
        )
    )
    return {
        "punctuality": punctuality.reset_index(),
        "routes": routes.reset_index(),
        "rain": wet.reset_index(),
        "fleet": fleet.reset_index(),
    }


class Loader:
    """Writes into one folder: a Parquet file for the details, SQLite for the rest."""

    def __init__(self, target):
        self.target = target
        target.mkdir(parents=True, exist_ok=True)

    def load(self, flights):
        """Replace what an earlier run wrote."""
        flights.to_parquet(self.target / "flights.parquet", index=False)
        late = flights.loc[flights["is_late"], ["time_hour", "airline", "dest", "arr_delay"]]
        database = sqlite3.connect(self.target / "warehouse.sqlite")
        with database:
            for name, table in summaries(flights).items():
                table.to_sql(name, database, if_exists="replace", index=False)
            late.to_sql("late_flights", database, if_exists="replace", index=False)
        database.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw tables")
    parser.add_argument("--api", required=True, help="address of the airports API")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--fail", action="store_true", help="read a planes file with a renamed column"
    )
    options = parser.parse_args()

    planes_file = "planes_broken.csv" if options.fail else "planes.csv"
    raw = extract(options.data, options.api, planes_file)
    flights = validate(raw.pop("flights"))
    flights = transform(flights, **raw)
    Loader(options.out).load(flights)
    print(f"{len(flights):,} flights in {options.out}")


if __name__ == "__main__":
    main()
