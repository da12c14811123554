"""What a dataset is called and looks like, without its secrets and without its values.

A URI never has credentials, a query string, or anything out of a statement but table names.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import sys
from datetime import date
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from stagewatch import redaction
from stagewatch.tracing import declared_pipeline

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"
_REMOTE = re.compile(rf"(?:[\w.+-]+::)*{_SCHEME}")
# `zip://*.csv::simplecache::` of fsspec; behind a `?`, `:` or `@` it may be part of a secret.
_CHAIN = re.compile(rf"(?:[\w.+-]+(?:://[^\s:?#@]*)?::)+(?={_SCHEME})")
_WIDEST = 500
"""Columns a fingerprint looks at, beside their number."""


def is_remote(source: object) -> bool:
    """Whether *source* is a URL; ``file://`` is one too."""
    return isinstance(source, str) and _REMOTE.match(source) is not None


def locate(source: object) -> tuple[str | None, int | None]:
    """URI and size in bytes of a path or URL; (None, None) for a buffer.

    Text that is neither a URL nor the path of something that exists is never repeated: some
    readers take the data itself.
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if not isinstance(source, str):
        return None, None
    if is_remote(source):
        innermost = redaction.url(_CHAIN.sub("", source, count=1))
        if not innermost.startswith("file://"):
            return innermost, None
        source = urlsplit(innermost).path
    path = os.path.abspath(os.path.expanduser(source))
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return f"file://{path}", status.st_size if stat.S_ISREG(status.st_mode) else None


# --- databases --------------------------------------------------------------------------------


def database(connection: Any) -> str | None:
    """URI of a database, from a SQLAlchemy engine, connection or URL or a sqlite3 connection."""
    if isinstance(connection, str):
        scheme, separator, rest = redaction.url(connection).partition("://")
        where, _, name = rest.partition("/")
        return _database(scheme.partition("+")[0], where, name) if separator else None
    sqlite3 = sys.modules.get("sqlite3")
    if sqlite3 is not None and isinstance(connection, sqlite3.Connection):
        return _database("sqlite", "", _sqlite_file(connection))
    url = getattr(getattr(connection, "engine", None), "url", None)
    if url is None:
        return None
    where = f"{url.host}:{url.port}" if url.port else url.host or ""
    return _database(url.get_backend_name(), where, url.database or "")


def _database(backend: str, where: str, name: str) -> str:
    if backend == "sqlite":
        in_memory = not name or name == ":memory:" or name.startswith("file:")
        return f"sqlite://{'/:memory:' if in_memory else os.path.abspath(name)}"
    return f"{backend}://{where}/{name}"


def _sqlite_file(connection: Any) -> str:
    # The plain class and no row factory: the user's may do anything.
    cursor = sys.modules["sqlite3"].Cursor(connection)
    cursor.row_factory = None
    try:
        return next((file for _, name, file in cursor.execute("PRAGMA database_list")), "")
    finally:
        cursor.close()


_PART = r"""(?:"[^"]+"|`[^`]+`|\[[^\]]+\]|[A-Za-z_][\w$]*)"""
_NAME = rf"(?>{_PART}(?:\.{_PART})*)"
_TOKENS = re.compile(
    rf"""
      --[^\n]* | /\*.*?\*/                                            # comments
    | '(?:[^']|'')*'                                                  # literals
    | \b(?:EXTRACT|TRIM|SUBSTRING|OVERLAY)\s*\([^()']*(?:'[^']*'[^()']*)*\)  # their FROM is none
    | \bDISTINCT\s+FROM\b
    | \b(?:FROM|JOIN)\s+(?:ONLY\s+|LATERAL\s+)?(?P<table>{_NAME})(?!\s*\()
    | \b(?P<common>{_NAME})\s+AS\s*(?:(?:NOT\s+)?MATERIALIZED\s*)?\(  # WITH common AS (
    | "[^"]*" | `[^`]*`
    | (?P<stray>['"`\\] | \$\w*\$)
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_TABLE = re.compile(_NAME)


def tables(statement: object) -> tuple[str, ...]:
    """Names of the tables a query reads, in their order; none where a literal might be taken for
    a name (a backslash, an odd quote).

    *statement*: SQL, a bare table name, or a SQLAlchemy text or select.
    """
    text = statement if isinstance(statement, str) else getattr(statement, "text", None)
    if not isinstance(text, str):
        return _selected(statement)
    if _TABLE.fullmatch(text.strip()):
        return (_plain(text.strip()),)
    if "\\" in text:
        return ()
    found: dict[str, None] = {}
    common: set[str] = set()
    for token in _TOKENS.finditer(text):
        if token["stray"]:
            return ()
        if token["table"]:
            found[_plain(token["table"])] = None
        if token["common"]:
            common.add(_plain(token["common"]).lower())
    return tuple(name for name in found if name.lower() not in common)


def _selected(statement: object) -> tuple[str, ...]:
    froms = getattr(statement, "get_final_froms", None)
    util = sys.modules.get("sqlalchemy.sql.util")
    if froms is None or util is None:
        return ()
    found = util.find_tables(statement, include_joins=False, include_selects=False)
    return tuple(dict.fromkeys(str(table.fullname) for table in found))


def _plain(name: str) -> str:
    return re.sub(r'["`\[\]]', "", name)


# --- frames -----------------------------------------------------------------------------------


def fingerprint(frame: Any) -> str | None:
    """Hash of a DataFrame's column names and types, 16 hex digits; None for anything else.

    Of a very wide frame the first columns and their number count.
    """
    columns = getattr(frame, "columns", None)
    if columns is None:
        return None
    names = columns[:_WIDEST].tolist()
    types = [_type_name(dtype) for dtype in frame.dtypes.array[:_WIDEST]]
    text = repr((len(columns), names, types))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _type_name(dtype: Any) -> str:
    # `str` of a numpy type is a C attribute, its `name` costs microseconds; others have no `str`.
    code = getattr(dtype, "str", None)
    return code if isinstance(code, str) else str(dtype.name)


def declared(uri: str) -> tuple[str | None, str | None]:
    """Name and timestamp column that ``stagewatch.yaml`` gives the dataset, if it does."""
    pipeline = declared_pipeline()
    if pipeline is not None:
        for name, dataset in pipeline.datasets.items():
            if fnmatchcase(uri, dataset.uri):
                return name, dataset.timestamp_column
    return None, None


def newest_event(frame: Any, column: str | None) -> int | None:
    """Newest time in the column that the user declared for a dataset, in ns since the epoch.

    The only place that looks at a cell. Times without zone count as UTC; plain numbers are none.
    """
    if column is None or column not in getattr(frame, "columns", ()) or not len(frame):
        return None
    newest = frame[column].max()
    if not isinstance(newest, str | date):  # `datetime` and `Timestamp` are dates
        return None
    stamp = sys.modules["pandas"].Timestamp(newest)
    return None if stamp != stamp else int(stamp.as_unit("ns").value)
