"""What may not leave the user's process: cell values, literals, credentials, query strings.

Pure functions over text; they err on the side of taking out too much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

HIDDEN: Final = "?"

# A contraction is no quote: "can't parse 'x'" would otherwise come out with its quotes swapped.
_CONTRACTION: Final = re.compile(r"(?<=\w\w)'(?=(?:t|s|re|ve|ll|d|m)\b(?!'))")
_APOSTROPHE: Final = "\ue000"
# Where it cannot be told which quote ends what: 'O'Brien Smith', 'a\' b'.
_STRAY_QUOTE: Final = re.compile(r"""\w['"`]\w|\\['"`]""")
_QUOTE: Final = re.compile(rf"""['"`{_APOSTROPHE}]""")
_TOLD: Final = re.compile(
    r"""(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)"""
    r"""|(?P<url>[A-Za-z][\w.+-]*://[^\s'"`]*)"""
    r"""|(?P<query>\?[^\s'"`]+)""",
    re.DOTALL,
)
# One pass: a quote in a comment is none, and neither is `--` in a literal. After a backslash
# dialects differ about where a literal ends, so that there is nothing to see behind it.
_SQL: Final = re.compile(
    r"""(?P<comment>--[^\n]*|/\*(?:(?!/\*|\*/).)*+\*/)
    | (?:\b(?:[A-Z]|U&|_\w+))?'(?:[^'\\]|''|\\\\|\\[^'\\])*+'
    | "(?:[^"\\]|""|\\\\|\\[^"\\])*+"
    | `[^`]*+`
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | (?:['"`]|/\*).*""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
# Spark's conditions, and what `raise_error` of 3.5 throws, say cell values without quotes.
_BEFORE_VALUES: Final = re.compile(
    r"(\[[A-Z][A-Z0-9]*_[A-Z0-9_]*(?:\.[A-Z0-9_]+)*\] |java\.lang\.RuntimeException: ).*", re.DOTALL
)
_NUMBER: Final = re.compile(r"(?<![A-Za-z_])[-+]?\d[\w.:+-]*")
_LONGEST: Final = 1000

_BEFORE_HOST: Final = re.compile(r"(?:[^/?#]*//)?")
_AUTHORITY: Final = re.compile(r"[^/?#;]*")
_HOST: Final = r"(?:\[[^\]@]*\]|[^:;=&@,\[\]]*)(?::\d*)?"
_HOSTS: Final = re.compile(rf"{_HOST}(?:,{_HOST})*")
_PARAMETERS: Final = re.compile(r"[?#;]")

_MARGIN: Final = re.compile(r" *[|+](?: |$)")
_FRAME: Final = re.compile(r'\s+File "[^"]*", line \d+(?:, in [\w.<>]+)?$')
_CARETS: Final = re.compile(r"\s+[~^][~^ ]*$")
_HEADER: Final = re.compile(
    r"(?:Exception Group )?Traceback \(most recent call last\):$"
    r"|During handling of the above exception, another exception occurred:$"
    r"|The above exception was the direct cause of the following exception:$"
    r"|\s*\+(?:-\+)?-{16,}(?: (?:\d+|\.\.\.) -{16,})?$"  # between the exceptions of a group
)
_ERROR_LINE: Final = re.compile(r"([A-Za-z_][\w.<>]*)(?::.*)?$")


def message(text: str) -> str:
    """*text* with what stands in quotes, and numbers, replaced: pandas puts cell values there.

    Nothing after the first quote is kept where the quotes do not pair up, and nothing after one of
    Spark's conditions.

    >>> message("could not convert string to float: 'Smith'")
    'could not convert string to float: ?'
    """
    text = _BEFORE_VALUES.sub(r"\1" + HIDDEN, text[: 4 * _LONGEST])
    return _NUMBER.sub(HIDDEN, _without_quoted(text))[:_LONGEST]


def _without_quoted(text: str) -> str:
    text = _CONTRACTION.sub(_APOSTROPHE, text)
    if _STRAY_QUOTE.search(text) or any(text.count(quote) % 2 for quote in "'\"`"):
        text = _QUOTE.split(text, maxsplit=1)[0] + "''"
    return _TOLD.sub(_cleaned, text).replace(_APOSTROPHE, "'")


def _cleaned(found: re.Match[str]) -> str:
    return HIDDEN if found["url"] is None else url(found["url"])


def sql(statement: str) -> str:
    """*statement* without literals and comments.

    >>> sql("SELECT * FROM t WHERE name = 'Smith' AND age > 42")
    'SELECT * FROM t WHERE name = ? AND age > ?'
    """
    statement = _SQL.sub(
        lambda found: HIDDEN if found["comment"] is None else "", statement[: 16 * _LONGEST]
    )
    return _NUMBER.sub(HIDDEN, statement)[: 4 * _LONGEST]


def url(text: str) -> str:
    """*text* without user name, password, parameters, query string and fragment.

    Where a password cannot be told from host or query, the scheme alone is left.

    >>> url("https://me:secret@example.org/a?token=x#y")
    'https://example.org/a'
    """
    before = _BEFORE_HOST.match(text)[0]  # type: ignore[index]
    return before + _PARAMETERS.split(_without_credentials(text[len(before) :]), maxsplit=1)[0]


def _without_credentials(rest: str) -> str:
    authority = _AUTHORITY.match(rest)[0]  # type: ignore[index]
    host = authority.rpartition("@")[2]
    if ":" not in authority:
        found = rest[len(authority) - len(host) :]
    else:
        # A password may hold anything, so that it ends at the last `@`; but that one may stand in
        # a query, whose secrets would be behind it.
        password, _, found = rest.rpartition("@")
        if _HOSTS.fullmatch(host) and _PARAMETERS.search(password):
            return ""
    host = _AUTHORITY.match(found)[0]  # type: ignore[index]
    return found if _HOSTS.fullmatch(host) else ""


def stacktrace(text: str) -> str:
    """A formatted traceback with its frames, of each exception the type alone, and source lines
    without what stands in quotes."""
    kept: list[str] = []
    part = "error"  # what may come next, beside a header or a frame
    for line in text.splitlines():
        margin = found[0] if (found := _MARGIN.match(line)) else ""
        body = line[len(margin) :]
        if _HEADER.match(body):
            part = "error"
            kept.append(line)
        elif _FRAME.match(body):
            part = "source"
            kept.append(line)
        elif part == "source" and body.startswith("    "):
            part = "carets"
            kept.append(margin + _without_quoted(body))  # a statement's literal, a password
        elif part == "carets" and _CARETS.match(body):
            kept.append(line)
        elif part != "message" and body and not body[0].isspace():
            part = "message"
            if error := _ERROR_LINE.match(body):
                kept.append(margin + error[1])
    return "\n".join(kept)


def _hidden(_text: str) -> str:
    return HIDDEN


def _connection_string(text: str) -> str:
    return url(text) if "://" in text else HIDDEN


_CLEANERS: Final[Mapping[str, Callable[[str], str]]] = {
    "url.full": url,
    "http.url": url,
    "url.original": url,
    "url.query": _hidden,
    "url.fragment": _hidden,
    "http.target": url,
    "db.statement": sql,
    "db.query.text": sql,
    "db.connection_string": _connection_string,
    "exception.message": message,
    "exception.stacktrace": stacktrace,
}
SENSITIVE: Final = frozenset(_CLEANERS)
"""Standard attributes that may carry a secret."""
_MESSAGES: Final = frozenset({"exception.message", "exception.stacktrace"})


def attributes(values: Mapping[str, Any], *, messages: bool) -> dict[str, Any]:
    """*values* with the `SENSITIVE` ones cleaned; *messages*: but for those of exceptions."""
    cleaned = dict(values)
    for name in (SENSITIVE - _MESSAGES if messages else SENSITIVE) & cleaned.keys():
        value = cleaned[name]
        cleaned[name] = _CLEANERS[name](value) if isinstance(value, str) else HIDDEN
    return cleaned
