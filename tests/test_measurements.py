"""Other libraries' measurements: which of them belong to the same series."""

import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from opentelemetry.sdk.resources import Resource

from stagewatch.exporters.journal import JournalWriter, new_key, page_path, read_frames
from stagewatch.exporters.journal import segment_path as segment
from stagewatch.exporters.measurements import pending
from stagewatch.exporters.metrics import LazyMeterProvider
from stagewatch.exporters.page import PageReader
from stagewatch.records import MetricsCollected, SeriesDefined, decode


def counted(directory: Path, *attributes: dict[str, Any]) -> list[tuple[str, Any]]:
    """Attributes and value of each series, after one `add` of 1 with each of *attributes*."""
    journal = JournalWriter(directory, new_key(), max_bytes=1 << 24)
    meter = LazyMeterProvider(journal, Resource.get_empty()).get_meter("library")
    counter = meter.create_counter("hits")
    for each in attributes:
        counter.add(1, each)
    page = PageReader(page_path(directory, journal.key).read_bytes())
    found = []
    for body, _ in read_frames(segment(directory, journal.key, 0).read_bytes(), 0):
        record = decode(body)
        if isinstance(record, SeriesDefined):
            cell = page.cell(record.layout, record.cell)
            metric = pending(record, cell, 0) if cell is not None else None
            assert metric is not None
            (point,) = metric.points
            found.append((repr(dict(point.attributes)), point.value))
    return found


def test_equal_values_of_other_types_are_other_series(tmp_path: Path) -> None:
    """1, True, 1.0 and "1" compare equal in part, and so do the tuples that hold them."""
    values = (1, True, 1.0, "1", (1,), (True,))
    found = counted(tmp_path, *[{"a": value} for value in values for _ in range(3)])
    assert len({attributes for attributes, _ in found}) == len(values)
    assert [value for _, value in found] == [3] * len(values)


def test_the_order_of_attributes_makes_no_series(tmp_path: Path) -> None:
    """The same attributes in another order count for the same series, at any call."""
    found = counted(tmp_path, {"a": 1, "b": "x"}, {"b": "x", "a": 1}, {"b": "x", "a": 1})
    assert [value for _, value in found] == [3]


def test_numbers_of_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count that is a numpy scalar is that count, in the page as in the journal."""
    journal = JournalWriter(tmp_path, new_key(), max_bytes=1 << 24)
    provider = LazyMeterProvider(journal, Resource.get_empty())
    meter = provider.get_meter("library")
    counter, histogram = meter.create_counter("rows"), meter.create_histogram("seconds")
    for value in (numpy.int64(2), numpy.float32(0.5), 1):
        counter.add(value)
        histogram.record(value)
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    provider.collect_if_due()
    frames = read_frames(segment(tmp_path, journal.key, 0).read_bytes(), 0)
    records = [decode(body) for body, _ in frames]
    (batch,) = [record for record in records if isinstance(record, MetricsCollected)]
    assert {metric.name: metric.points[0].value for metric in batch.metrics} == {
        "rows": 3.5,
        "seconds": 3.5,
    }
