"""What the jobs of the matrix are made of, and the notes they leave of what truly happened.

Under the stock SDK a stage is a plain span, as its user would write it. Notes are lines of JSON
in the job's directory; nothing here depends on what is being tested.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry import trace

try:
    from stagewatch import stage as _stage
except ImportError:
    _stage = None

HERE = Path(os.environ.get("FAULTS_DIRECTORY", "."))
_PATIENCE = 60.0
_tracer = trace.get_tracer("mine")


class _Nothing:
    def records(self, **counts: int) -> None:
        """The stock SDK does not count."""


def note(**facts: Any) -> None:
    """One line, in one write: many processes note at once."""
    with open(HERE / "notes", "a") as file:
        file.write(json.dumps(facts) + "\n")


@contextmanager
def stage(name: str) -> Iterator[Any]:
    """A stage; noted with its id when it begins, with the seconds it took when it has ended."""
    before = time.monotonic()
    with _stage(name) if _stage else _tracer.start_as_current_span(name) as counts:
        note(begun=name, id=_current_id())
        start = time.monotonic()
        try:
            yield counts if _stage else _Nothing()
        finally:
            least = time.monotonic() - start
    note(ended=name, least=least, most=time.monotonic() - before)


@contextmanager
def own(name: str) -> Iterator[None]:
    """A span of the user's own; noted when it ends."""
    with _tracer.start_as_current_span(name):
        span_id = _current_id()
        yield
    note(span=name, id=span_id)


def note_open(name: str) -> None:
    """The current span, which has not ended and may never."""
    note(open=name, id=_current_id())


def ready() -> None:
    """Say that the moment for the harness's deed has come."""
    (HERE / "ready").touch()


def wait() -> None:
    """Be ready, and go on when the deed is done; never, if it was a signal."""
    ready()
    until = time.monotonic() + _PATIENCE
    while not (HERE / "go").exists():
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.01)


def last() -> None:
    """The job's last line is reached: what comes now is its end."""
    note(last=time.time())


def _current_id() -> str:
    return f"{trace.get_current_span().get_span_context().span_id:016x}"
