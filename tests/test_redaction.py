"""What may not leave the process does not."""

from __future__ import annotations

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewatch import redaction


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("could not convert string to float: 'Smith'", "could not convert string to float: ?"),
        ("'password'", "?"),
        ("row 42 has 3.5, expected -7", "row ? has ?, expected ?"),
        ("Can't parse 'O''Brien' here", "Can't parse ? here"),
        ("broken 'quote that never ends", "broken ?"),
        ('value "a\\"b" is bad', "value ? is bad"),
        ("column a1 not in utf8", "column a1 not in utf8"),
        (
            "Max retries exceeded with url: /down?token=a (x)",
            "Max retries exceeded with url: /down? (x)",
        ),
        ("cannot reach ftp://me:pw@host/a", "cannot reach ftp://host/a"),
        ("", ""),
    ],
)
def test_message(text: str, expected: str) -> None:
    """Quoted text and numbers are replaced, words stay."""
    assert redaction.message(text) == expected


@given(st.text(st.characters(exclude_characters="'\\", exclude_categories=["Cs"]), min_size=1))
def test_quoted_value_is_gone(value: str) -> None:
    """Whatever a cell holds, between quotes it is not seen."""
    assert redaction.message(f"bad value: '{value}'") == "bad value: ?"


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT * FROM t WHERE a = 'x' AND b > 5", "SELECT * FROM t WHERE a = ? AND b > ?"),
        ("INSERT INTO t VALUES (1, 'it''s', $$raw$$)", "INSERT INTO t VALUES (?, ?, ?)"),
        ("SELECT 1 -- token=abc", "SELECT ? "),
        ("SELECT /* secret */ a FROM t1", "SELECT  a FROM t1"),
        ("SELECT 'open", "SELECT ?"),
    ],
)
def test_sql(statement: str, expected: str) -> None:
    """Literals and comments go, the shape of the statement stays."""
    assert redaction.sql(statement) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@example.org:8443/a/b?token=x#y", "https://example.org:8443/a/b"),
        ("s3://bucket/key?versionId=1", "s3://bucket/key"),
        ("/plain/path?token=x", "/plain/path"),
        ("postgresql://u:p@h/db", "postgresql://h/db"),
        ("https://a@b@example.org/", "https://example.org/"),
    ],
)
def test_url(url: str, expected: str) -> None:
    """No credentials, query string or fragment."""
    assert redaction.url(url) == expected


def test_stacktrace_keeps_frames_and_types() -> None:
    """Frames and exception types stay, also of causes; messages of any number of lines go."""
    value = "Sm" + "ith"
    try:
        try:
            float(value)
        except ValueError as cause:
            raise KeyError(f"{value}\nsecond line {value}\n    indented {value}") from cause
    except KeyError as error:
        text = "".join(traceback.format_exception(error))
    cleaned = redaction.stacktrace(text)
    assert value not in cleaned
    lines = cleaned.splitlines()
    assert "ValueError" in lines
    assert lines[-1] == "KeyError"
    assert sum("test_redaction.py" in line for line in lines) == 2
    assert "float(value)" in cleaned


def test_attributes() -> None:
    """Standard attributes that may carry a secret are cleaned, others untouched."""
    assert redaction.attributes(
        {"url.full": "http://u:p@h/x?k=v", "url.query": "k=v", "db.query.text": "a = 'b'", "n": 1}
    ) == {"url.full": "http://h/x", "url.query": "?", "db.query.text": "a = ?", "n": 1}
