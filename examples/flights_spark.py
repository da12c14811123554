"""How punctual is each airline, and when in the year? The same flights in PySpark.

An ordinary job: it reads files, cleans, joins, calls a Python function for each flight, and writes
a partitioned table. It knows nothing of any telemetry, and has the usual faults.

    python examples/flights_spark.py --data .demo/data --out .demo/spark
"""

import argparse

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType


@F.udf(StringType())
def kind_of_delay(scheduled, dep_delay, arr_delay):
    """When a flight that was late lost its time; None if it was not."""
    if arr_delay <= 15:
        return None
    hour = scheduled // 100
    part = "night" if hour < 6 else "morning" if hour < 12 else "afternoon"
    place = "at the gate" if dep_delay >= arr_delay else "in the air"
    return f"{part}, {place}"


def extract(spark, data):
    """The raw tables, by name."""
    tables = {name: spark.read.parquet(f"{data}/{name}.parquet") for name in ("flights", "weather")}
    for name in ("planes", "airlines"):
        tables[name] = spark.read.csv(f"{data}/{name}.csv", header=True, inferSchema=True)
    return tables


def transform(flights, weather, planes, airlines):
    """One row per flight that flew, with everything known about it."""
    flights = flights.dropna(subset=["dep_time", "arr_delay", "tailnum"])
    weather = weather.select("origin", "year", "month", "day", "hour", "precip", "visib")
    weather = weather.dropDuplicates(["origin", "year", "month", "day", "hour"])
    planes = planes.select("tailnum", F.col("year").alias("built"), "manufacturer")
    airlines = airlines.withColumnRenamed("name", "airline")

    flights = flights.join(weather, ["origin", "year", "month", "day", "hour"], "left")
    flights = flights.join(planes, "tailnum", "left")
    # One partition for each airline: four of the sixteen have two thirds of the flights.
    flights = flights.repartition(16, "carrier").join(airlines, "carrier")
    delay = kind_of_delay("sched_dep_time", "dep_delay", "arr_delay")
    return flights.withColumn("delay", delay)


def load(flights, out):
    """Replace what an earlier run wrote."""
    flights.write.mode("overwrite").partitionBy("origin", "month").parquet(f"{out}/flights")
    punctuality = flights.groupBy("airline").agg(
        F.count("*").alias("flights"),
        F.mean((F.col("arr_delay") > 15).cast("int")).alias("late"),
    )
    for row in punctuality.orderBy("late").take(3):
        print(f"{row.airline}: {row.flights:,} flights, {row.late:.0%} of them late")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the raw tables")
    parser.add_argument("--out", required=True, help="folder to write into")
    options = parser.parse_args()

    spark = (
        SparkSession.builder.appName("flights")
        .config("spark.sql.autoBroadcastJoinThreshold", -1)
        .config("spark.sql.shuffle.partitions", 16)
        .getOrCreate()
    )
    load(transform(**extract(spark, options.data)), options.out)
    spark.stop()


if __name__ == "__main__":
    main()
