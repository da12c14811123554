"""What may not leave the user's process: cell values, literals, credentials, query strings.

Pure functions over text; they err on the side of taking out too much.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

HIDDEN: Final = "?"

# A contraction is no quote: "can't parse 'x'" would otherwise come out with its quotes swapped.
_QUOTED: Final = re.compile(
    r"""(?<=\w)'(?:t|s|re|ve|ll|d|m)\b(?!')"""
    r"""|(?P<quoted>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*"|`[^`]*`|\$(\w*)\$.*?\$\2\$)"""
    r"""|(?P<open>['"`].*)""",
    re.DOTALL,
)
_QUERY: Final = re.compile(r"\?[^\s)\]>,;]+")
_CREDENTIALS: Final = re.compile(r"(://)[^\s/@]*@")
_NUMBER: Final = re.compile(r"(?<![A-Za-z_])[-+]?\d[\w.:+-]*")
_COMMENT: Final = re.compile(r"/\*.*?\*/|--[^\n]*", re.DOTALL)
_LONGEST: Final = 1000

_FRAME: Final = re.compile(r'\s+File "')
_HEADERS: Final = (
    "Traceback (most recent call last):",
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_ERROR_LINE: Final = re.compile(r"^[\s|+]*([A-Za-z_][\w.]*)(?::.*)?$")


def message(text: str) -> str:
    """*text* with what stands in quotes, and numbers, replaced: pandas puts cell values there.

    >>> message("could not convert string to float: 'Smith'")
    'could not convert string to float: ?'
    """
    text = _QUOTED.sub(_without_quoted, text[: 4 * _LONGEST])
    text = _CREDENTIALS.sub(r"\1", _QUERY.sub(HIDDEN, text))
    return _NUMBER.sub(HIDDEN, text)[:_LONGEST]


def sql(statement: str) -> str:
    """*statement* without literals and comments.

    >>> sql("SELECT * FROM t WHERE name = 'Smith' AND age > 42")
    'SELECT * FROM t WHERE name = ? AND age > ?'
    """
    statement = _QUOTED.sub(_without_quoted, statement[: 16 * _LONGEST])
    statement = _COMMENT.sub("", statement)
    return _NUMBER.sub(HIDDEN, statement)[: 4 * _LONGEST]


def _without_quoted(found: re.Match[str]) -> str:
    return found[0] if found["quoted"] is None and found["open"] is None else HIDDEN


def url(text: str) -> str:
    """*text* without user name, password, query string and fragment.

    >>> url("https://me:secret@example.org/a?token=x#y")
    'https://example.org/a'
    """
    text = re.split(r"[?#]", text, maxsplit=1)[0]
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def path(text: str) -> str:
    """A request target without its query string."""
    return re.split(r"[?#]", text, maxsplit=1)[0]


def stacktrace(text: str) -> str:
    """A formatted traceback with its frames, of each exception the type alone, and source lines
    without what stands in quotes."""
    kept: list[str] = []
    source_lines = 0
    for line in text.splitlines():
        stripped = line.strip()
        if _FRAME.match(line):
            source_lines = 2  # the source line, perhaps a line of carets
            kept.append(line)
        elif stripped in _HEADERS:
            source_lines = 0
            kept.append(line)
        elif source_lines and line.startswith("    "):
            source_lines -= 1
            kept.append(_QUOTED.sub(_without_quoted, line))  # a statement's literal, a password
        elif not line[:1].isspace() and (found := _ERROR_LINE.match(line)):
            source_lines = 0
            kept.append(found[1])
    return "\n".join(kept)


def _hidden(_text: str) -> str:
    return HIDDEN


_CLEANERS: Final[Mapping[str, Callable[[str], str]]] = {
    "url.full": url,
    "http.url": url,
    "url.original": url,
    "url.query": _hidden,
    "url.fragment": _hidden,
    "http.target": path,
    "db.statement": sql,
    "db.query.text": sql,
    "db.connection_string": url,
}
SENSITIVE: Final = frozenset(_CLEANERS)
"""Standard span attributes that may carry a secret."""


def attributes(values: Mapping[str, Any]) -> dict[str, Any]:
    """*values* with the `SENSITIVE` ones cleaned."""
    cleaned = dict(values)
    for name in SENSITIVE & cleaned.keys():
        value = cleaned[name]
        cleaned[name] = _CLEANERS[name](value) if isinstance(value, str) else HIDDEN
    return cleaned
