"""The one SQLite file of a state directory: its schema and how it is opened."""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from stagewatch.model import Role

FILE: Final = "history.db"
VERSION: Final = 3

PENDING, SENT, HELD, KEPT, REJECTED, LOCAL = range(6)
"""States of a span: to be sent; sent; a detail that waits for its run's outcome; one that was not
chosen; refused for good; never to be sent, because nothing is or it was not sampled."""
STATES: Final = ("pending", "sent", "held", "kept", "rejected", "local")
ROLES: Final = (Role.RUN, Role.STAGE, Role.USER, Role.DETAIL)
"""By their number in the database, in the order in which they are sent."""

_SCHEMA: Final = """
create table meta(key text primary key, value text) without rowid;
create table destination(id integer primary key, key text unique not null, signals text not null);
create table journal(
    key text primary key, run_id text not null, segment int not null, offset int not null,
    closed int not null default 0, at int not null, exiting blob, state blob,
    destination int not null) without rowid;
create index journal_open on journal(destination) where not closed;
create index journal_run on journal(run_id);
create table run(
    id integer primary key, run_id text unique not null, pipeline text not null, trace_id blob,
    span_id blob, start int not null, end int, scheduled int, attempt int not null default 1,
    deadline int, outcome text, error_type text, error_message text, error_place text,
    records_in int, records_out int, records_rejected int not null default 0, cpu_seconds real,
    memory_peak int, host text not null default '', pid int not null default 0, wait_status int,
    parent_run_id text, late int not null default 0, details_sent int not null default 0,
    details_cut int not null default 0, has_spans int not null default 0,
    has_details int not null default 0);
create index run_start on run(start);
create index run_pipeline on run(pipeline, start);
create index run_stored on run(start) where has_spans;
create table stage(
    run int not null, name text not null, calls int not null, failed int not null,
    start int not null, seconds real not null, active_seconds real not null, records_in int,
    records_out int, records_rejected int not null, retries int not null, cpu_seconds real,
    memory_peak int, error_type text, by_frames int not null default 0,
    primary key(run, name)) without rowid;
create table operation(
    run int not null, stage text not null, name text not null, calls int not null,
    folded int not null, failed int not null, seconds real not null, rows_in int not null,
    rows_out int not null, primary key(run, stage, name)) without rowid;
create table dataset(
    run int not null, stage text not null, direction text not null, uri text not null, rows int,
    bytes int, fingerprint text, newest_event int, declared text, at int not null,
    primary key(run, stage, direction, uri)) without rowid;
create table resource(
    id integer primary key, digest blob unique not null, attributes blob not null,
    messages int not null);
create table scope(
    id integer primary key, name text not null, version text not null, schema_url text not null,
    unique(name, version, schema_url));
create table span(
    n integer primary key, trace_id blob not null, span_id blob not null, parent blob not null,
    run int not null, role int not null, start int not null, seconds real not null,
    failed int not null, state int not null, destination int not null, resource int not null,
    scope int not null, threshold text, record blob not null);
create unique index span_id on span(run, span_id);
create index span_pending on span(destination, role, n) where state = 0;
create table instrument(
    id integer primary key, scope text not null, scope_version text not null, name text not null,
    kind text not null, unit text not null, description text not null, bounds blob not null,
    unique(scope, scope_version, name, kind, unit, bounds));
create table total(
    n integer primary key, destination int not null, resource int not null,
    instrument int not null, attributes blob not null, pipeline text, value not null,
    buckets blob, start int not null, version int not null default 1, quiet int not null,
    sent_version int not null default 0, sent_value, sent_buckets blob, sent_at int,
    changed int not null, unique(destination, resource, instrument, attributes));
create index total_pending on total(destination) where version != sent_version and not quiet;
create table delta(
    n integer primary key, destination int not null, resource int not null,
    instrument int not null, attributes blob not null, value not null, buckets blob,
    start int not null, end int not null);
create index delta_destination on delta(destination);
create table log(
    n integer primary key, destination int not null, resource int not null, scope int not null,
    record blob not null);
create index log_destination on log(destination);
"""

_MIGRATIONS: Final = {
    1: """
alter table run add column last_stage text;
alter table run add column last_operation text;
alter table stage add column bytes_in int not null default 0;
alter table stage add column bytes_out int not null default 0;
create table failure(
    run int not null, stage text not null, operation text not null, error_type text not null,
    calls int not null, primary key(run, stage, operation, error_type)) without rowid;
create table live(run integer primary key, state blob not null);
create table notice(
    run int not null, name text not null, key text not null, at int not null,
    attributes blob not null, primary key(run, name, key)) without rowid;
create index run_end on run(end, start);
""",
    2: """
alter table run add column ticks int not null default 0;
alter table run add column boot_id text not null default '';
alter table run add column pid_namespace int not null default 0;
""",
}
"""What brings a file of a version to the next."""

WAITING: Final = {
    "traces": (f"span where destination = ? and state = {PENDING}",),
    "metrics": (
        "total where destination = ? and version != sent_version and not quiet",
        "delta where destination = ?",
    ),
    "logs": ("log where destination = ?",),
}
"""What of a signal waits to be sent to a destination: count these rows."""


def connect(state: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode, at the current schema; made by the first who writes.

    Raises OSError where it cannot be made, and sqlite3.Error, also for a file of a newer version
    and, if `readonly`, for a missing one and for one of an older version that cannot be written.
    """
    path = state / FILE
    if readonly:
        link = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10, isolation_level=None
        )
        link.execute("pragma cache_size=-4000")
        if 0 < link.execute("pragma user_version").fetchone()[0] < VERSION:
            connect(state).close()
        return link
    # SQLite makes a new file by the umask, and its WAL with the same mode. Never open one that is
    # there: closing it would drop the POSIX locks of this process's other connections, and the
    # next reader would take itself for the last and unlink the WAL under them.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    link = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    link.execute("pragma cache_size=-1000")
    link.execute("pragma synchronous=normal")
    if link.execute("pragma user_version").fetchone()[0] != VERSION:
        _migrate(link)
    link.execute("pragma journal_size_limit=8000000")
    return link


def is_current(link: sqlite3.Connection) -> bool:
    """Whether the file is still of the version that this program knows."""
    return bool(link.execute("pragma user_version").fetchone()[0] == VERSION)


@contextmanager
def transaction(link: sqlite3.Connection) -> Iterator[None]:
    """All or nothing; waits for other writers."""
    link.execute("begin immediate")
    try:
        yield
        link.execute("commit")
    except BaseException:
        if link.in_transaction:
            link.execute("rollback")
        raise


def _migrate(link: sqlite3.Connection) -> None:
    link.execute("pragma auto_vacuum=incremental")
    _wait_for(link, "pragma journal_mode=wal")
    link.execute("begin immediate")
    try:
        version = link.execute("pragma user_version").fetchone()[0]
        if version > VERSION:
            raise sqlite3.DatabaseError(
                f"the history was written by a newer stagewatch (format {version}, "
                f"this one knows {VERSION})"
            )
        if version == 0:
            _run(link, _SCHEMA)
            version = 1
            link.executemany(
                "insert into meta values(?, ?)",
                [("instance", uuid.uuid4().hex), ("born", str(time.time_ns()))],
            )
        for step in range(version, VERSION):
            _run(link, _MIGRATIONS[step])
        link.execute(f"pragma user_version={VERSION}")
        link.execute("commit")
    except BaseException:
        if link.in_transaction:
            link.execute("rollback")
        raise


def _run(link: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";\n"):
        link.execute(statement)


def _wait_for(link: sqlite3.Connection, statement: str) -> None:
    # The change of the journal mode does not honour the busy timeout.
    for _ in range(200):
        try:
            link.execute(statement)
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            time.sleep(0.05)
    link.execute(statement)
