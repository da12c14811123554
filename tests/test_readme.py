"""What README.md says of settings and metrics is what the code has."""

from __future__ import annotations

from tests.readme_tables import README, renewed


def test_tables_are_current() -> None:
    """``python tests/readme_tables.py`` renews them."""
    text = README.read_text()
    assert text == renewed(text)
