"""What README.md says of settings, metrics and faults is what the code has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from stagewatch import declaration
from stagewatch.config import File, schema
from tests.readme_tables import README, renewed

BLOCKS = re.findall(r"```yaml\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_tables_are_current() -> None:
    """``python -m tests.readme_tables`` renews them."""
    text = README.read_text()
    assert text == renewed(text)


def test_nothing_is_left_to_fill_in() -> None:
    """No placeholder, no path of a machine."""
    text = README.read_text()
    assert "@@" not in text
    assert "/work/" not in text


@pytest.mark.parametrize("block", BLOCKS)
def test_examples_of_stagewatch_yaml_parse(block: str) -> None:
    """What is shown is what may be written."""
    found, faults = declaration.read(block.encode(), "README.md", File)
    assert faults == []
    assert found is not None


def keys(described: dict[str, Any]) -> Iterator[str]:
    """All keys that a pipeline may have."""
    for name, inside in described.get("properties", {}).items():
        yield name
        yield from keys(inside)
    for inside in (described.get("additionalProperties"), described.get("items")):
        if isinstance(inside, dict):
            yield from keys(inside)


def test_the_reference_names_every_key() -> None:
    """The longest example is the reference of what a pipeline may declare."""
    reference = max(BLOCKS, key=len)
    named = set(re.findall(r"([a-z_]+):", reference))
    pipelines = schema()["properties"]["pipelines"]
    assert set(keys(pipelines)) <= named
