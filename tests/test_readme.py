"""What README.md says of settings, metrics and faults is what the code has."""

from __future__ import annotations

from tests.readme_tables import README, renewed


def test_tables_are_current() -> None:
    """``python -m tests.readme_tables`` renews them."""
    text = README.read_text()
    assert text == renewed(text)


def test_nothing_is_left_to_fill_in() -> None:
    """No placeholder, no path of a machine."""
    text = README.read_text()
    assert "@@" not in text
    assert "/work/" not in text
