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
        ('value "a\\"b" is bad', "value ?"),
        ("bad value 'O'Brien Smith'", "bad value ?"),
        ("not in 'O'Brien' nor 'D'Arcy Smith'", "not in ?"),
        ("of 'Smith's house' a part", "of ? a part"),
        ("'a\\' 'Smith' 'b\\'", "?"),
        ("it's 'a' or 'b' here", "it's ? or ? here"),
        ("column a1 not in utf8", "column a1 not in utf8"),
        (
            "Max retries exceeded with url: /down?token=a (x)",
            "Max retries exceeded with url: /down? (x)",
        ),
        ("cannot reach ftp://me:pw@host/a", "cannot reach ftp://host/a"),
        ("no postgresql://me:hun/ter?#@x@host/a here", "no postgresql://host/a here"),
        ("no postgresql://me:hun'ter@host/a here", "no postgresql://?"),
        ("for url: https://h/a?mail=me@b.org&token=secret", "for url: https://h/a"),
        ("for url: https://h/a?x=(b)&token=secret", "for url: https://h/a"),
        ("[USER_RAISED_EXCEPTION] Smith\nJones SQLSTATE: P0001", "[USER_RAISED_EXCEPTION] ?"),
        ("a.B: [STREAM_FAILED] x: [DUPLICATED_MAP_KEY] Key Smith", "a.B: [STREAM_FAILED] ?"),
        (
            "failed: java.lang.RuntimeException: Smith\n\tat x",
            "failed: java.lang.RuntimeException: ?",
        ),
        ("[ERROR] no such file", "[ERROR] no such file"),
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
        ("/* the users' data */ SELECT a WHERE b = 'Smith'", " SELECT a WHERE b = ?"),
        ("SELECT a -- don't\nWHERE b = 'Smith'", "SELECT a \nWHERE b = ?"),
        ("SELECT '--', 'Smith' /* open", "SELECT ?, ? ?"),
        ("SELECT 1 /* a /* b */ Smith */", "SELECT ? ?"),
        ("SELECT N'Smith', E's', U&'d', x't Smith'", "SELECT ?, ?, ?, ?"),
        ("a = 'C:\\' AND b = 'Smith'", "a = ?"),
        ("a = 'C:\\\\' AND b = 'Smith'", "a = ? AND b = ?"),
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
        ("postgresql://etl:hun/ter2@db/sales", "postgresql://db/sales"),
        ("postgresql://etl:hunter#2@db/sales", "postgresql://db/sales"),
        ("postgresql://etl:hun?te;r@2@db:5432/sales?a=b", "postgresql://db:5432/sales"),
        ("postgresql://etl:p@ss/word@db/sales", "postgresql://db/sales"),
        ("postgresql://etl:12?34@db/sales", "postgresql://"),
        ("postgresql://db:5432/sales?password=hun@ter2", "postgresql://"),
        ("postgresql://etl@db/sales?password=hun@ter2", "postgresql://db/sales"),
        ("https://h/p?mail=a@b.org&token=secret", "https://h/p"),
        ("s3://bucket/me@example.org/a.csv", "s3://bucket/me@example.org/a.csv"),
        ("mongodb://a:27017,[::1]:27017/db", "mongodb://a:27017,[::1]:27017/db"),
        ("jdbc:sqlserver://h:1433;user=sa;password=p@ss", "jdbc:sqlserver://"),
        ("sqlserver://h;user=sa;password=secret", "sqlserver://h"),
        ("https://h:80password=secret", "https://"),
        ("https://h/a;jsessionid=secret?b", "https://h/a"),
        ("me:secret@localhost:4317", "localhost:4317"),
        ("//me:secret@h/a", "//h/a"),
    ],
)
def test_url(url: str, expected: str) -> None:
    """No credentials, parameters, query string or fragment; cleaning again changes nothing."""
    assert redaction.url(url) == expected
    assert redaction.url(expected) == expected


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


def test_stacktrace_keeps_nothing_of_long_messages() -> None:
    """Lines of a message that look like a type, a frame or a header, and notes, go."""

    class Local(Exception):
        pass

    error = Local('x\nSmith\nJones: 5\n\n  File "Smith.csv" is bad\n  | Smith\nSmith\n')
    error.add_note("Smith: noted")
    with pytest.raises(Local) as caught:
        raise error
    cleaned = redaction.stacktrace("".join(traceback.format_exception(caught.value)))
    assert "Smith" not in cleaned and "Jones" not in cleaned
    assert cleaned.splitlines()[-1].endswith("<locals>.Local")
    assert redaction.stacktrace(cleaned) == cleaned
    assert redaction.stacktrace("KeyError: 'x'\nSmith") == "KeyError"


def test_stacktrace_of_a_group() -> None:
    """Of a group each exception's frames and type stay, with the margin."""
    try:
        float("Smith")
    except ValueError as error:
        first = error
    group = ExceptionGroup("Smith\nJones", [first, KeyError("Smith\nJones")])
    text = "".join(traceback.format_exception(group))
    assert redaction.stacktrace(text).splitlines() == [
        "  | ExceptionGroup",
        "  +-+---------------- 1 ----------------",
        "    | Traceback (most recent call last):",
        f'    |   File "{__file__}", line {first.__traceback__.tb_lineno}, '  # type: ignore[union-attr]
        "in test_stacktrace_of_a_group",
        "    |     float(?)",
        "    | ValueError",
        "    +---------------- 2 ----------------",
        "    | KeyError",
        "    +------------------------------------",
    ]


def test_stacktrace_keeps_one_source_line() -> None:
    """What follows, from Python 3.13 on, may be the inside of a literal."""
    text = 'Traceback (most recent call last):\n  File "a.py", line 1, in f\n'
    source = '    run("""select\n    Smith\n    """)\n'
    assert redaction.stacktrace(text + source + "KeyError: 1") == text + "    run(?\nKeyError"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host=db user=etl password=secret", "?"),
        ("Server=db:1433;Password=secret", "?"),
        ("postgresql://etl:secret@db/sales", "postgresql://db/sales"),
    ],
)
def test_connection_strings(text: str, expected: str) -> None:
    """Only a URL is known well enough to show a part."""
    cleaned = redaction.attributes({"db.connection_string": text}, messages=False)
    assert cleaned == {"db.connection_string": expected}


def test_attributes() -> None:
    """Standard attributes that may carry a secret are cleaned, others untouched."""
    assert redaction.attributes(
        {"url.full": "http://u:p@h/x?k=v", "url.query": "k=v", "db.query.text": "a = 'b'", "n": 1},
        messages=False,
    ) == {"url.full": "http://h/x", "url.query": "?", "db.query.text": "a = ?", "n": 1}
