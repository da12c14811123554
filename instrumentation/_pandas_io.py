"""What crosses the border of the process through pandas: readers, writers, and readers in chunks.

Rows are counted when they arrive: a reader that was asked for chunks counts each as it is
consumed, and its dataset is known when it is closed or exhausted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from stagewatch import semconv
from stagewatch.instrumentation import _datasets as datasets
from stagewatch.instrumentation._base import (
    Arguments,
    Function,
    Keywords,
    argument,
    operation,
)
from stagewatch.model import Dataset
from stagewatch.operations import OperationKind, begin, end, forget, touch
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import drop_first_frame
from stagewatch.tracing import add_records, transferred


class Place(NamedTuple):
    """One dataset of a call."""

    uri: str
    bytes: int | None = None
    moved: int = 0
    """Of the bytes, those that the call read or wrote."""


Places = list[Place]
Find = Callable[[Arguments, Keywords], Places]


def rows_of(value: Any) -> int:
    """Rows of a frame or series, of all of them in a list or dict; 0 for anything else."""
    try:
        return len(value.index)
    except (AttributeError, TypeError):
        if isinstance(value, dict):
            return sum(map(rows_of, value.values()))
        if isinstance(value, list | tuple):  # they have an `index` too, a method
            return sum(map(rows_of, value))
    except Exception as error:
        report(error)
    return 0


def reader(name: str, find: Find, *, always_open: bool = False) -> Callable[[Function], Function]:
    """Patch for a function that reads one or several datasets."""
    local, remote = (OperationKind(f"pandas.{name}", io=True, open=o) for o in (False, True))

    def choose(args: Arguments, kwargs: Keywords) -> OperationKind:
        opened = always_open or any(map(datasets.is_remote, args[:1] or kwargs.values()))
        return remote if opened else local

    def look(args: Arguments, kwargs: Keywords, result: Any) -> dict[str, Any]:
        places = find(args, kwargs)
        if not hasattr(result, "__next__"):
            rows = rows_of(result)
            found = _describe(places, "in", rows, result)
            return {
                "rows_out": rows,
                "reads": rows,
                "bytes_in": _moved(places),
                "datasets": found,
            }
        reading = _Reading(places)
        if isinstance(result, GeneratorType):
            result = _counted(result, reading)
        else:
            _readings[result] = reading
        uri = (
            {semconv.DATASET_URI: places[0].uri, semconv.DATASET_DIRECTION: "in"} if places else {}
        )
        return {"result": result, "attributes": uri}

    return operation(choose, look)


def writer(
    name: str, target: tuple[int, str], find: Find, *, always_open: bool = False
) -> Callable[[Function], Function]:
    """Patch for a function that writes its first argument; *target* says which argument is where.

    Without a target it returns what it would have written: rows count, but nothing has left.
    """
    local, remote = (OperationKind(f"pandas.{name}", io=True, open=o) for o in (False, True))
    in_memory = OperationKind(f"pandas.{name}")

    def choose(args: Arguments, kwargs: Keywords) -> OperationKind:
        where = argument(args, kwargs, *target)
        if where is None:
            return in_memory
        return remote if always_open or datasets.is_remote(where) else local

    def look(args: Arguments, kwargs: Keywords, result: Any) -> dict[str, Any]:
        frame = argument(args, kwargs, 0, "obj")
        rows = rows_of(frame)
        if argument(args, kwargs, *target) is None:
            add_records(out=rows)
            return {"rows_in": rows}
        places = find(args, kwargs)
        return {
            "rows_in": rows,
            "writes": rows,
            "bytes_out": _moved(places),
            "datasets": _describe(places, "out", rows, frame),
        }

    return operation(choose, look)


# --- where ------------------------------------------------------------------------------------


def file(position: int, name: str) -> Find:
    """The argument is a path, a URL, a buffer, or an object that holds one of these."""

    def find(args: Arguments, kwargs: Keywords) -> Places:
        source = argument(args, kwargs, position, name)
        # Of a sheet, of one key of several, or of lines appended nobody knows the size.
        whole = isinstance(source, str | os.PathLike) and not kwargs.get("key")
        whole = whole and "a" not in str(kwargs.get("mode", ""))
        # ExcelWriter has a `path`; ExcelFile, whose own methods are patched too, an `io`.
        for attribute in ("path", "io"):
            if hasattr(type(source), attribute) or attribute in getattr(source, "__dict__", ()):
                source = getattr(source, attribute)
        uri, size = datasets.locate(source)
        return [Place(uri, size, size or 0 if whole else 0)] if uri else []

    return find


def _moved(places: Places) -> int:
    return sum(place.moved for place in places)


def query(args: Arguments, kwargs: Keywords) -> Places:
    """The tables that ``(sql, con)`` reads."""
    where = datasets.database(argument(args, kwargs, 1, "con"))
    names = datasets.tables(argument(args, kwargs, 0, "sql"))
    return [Place(f"{where}/{name}") for name in names] if where else []


def table(position: int, name: str) -> Find:
    """The table named by the argument, in the database of the argument after it."""

    def find(args: Arguments, kwargs: Keywords) -> Places:
        where = datasets.database(argument(args, kwargs, position + 1, "con"))
        return [Place(f"{where}/{argument(args, kwargs, position, name)}")] if where else []

    return find


def _describe(places: Places, direction: str, rows: int, frame: Any) -> list[Dataset]:
    # Which of several tables a row came from nobody knows.
    single = len(places) == 1
    described = []
    for uri, size, _ in places:
        name, column = datasets.declared(uri)
        shape = newest = None
        if single:
            with guarded:
                shape = datasets.fingerprint(frame)
            with guarded:
                newest = datasets.newest_event(frame, column)
        described.append(
            Dataset(
                uri=uri,
                direction=direction,
                rows=rows if single else None,
                bytes=size,
                fingerprint=shape,
                newest_event=newest,
                declared=name,
            )
        )
    return described


# --- chunks -----------------------------------------------------------------------------------


class _Reading:
    """What has come out of one reader so far."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._rows = 0
        self._newest: int | None = None
        self._found: list[Dataset] = []

    def add(self, chunk: Any, rows: int) -> None:
        self._rows += rows
        if not self._found:  # all chunks have the same columns
            self._found = _describe(self._places, "in", rows, chunk)
        for dataset in self._found:
            if dataset.declared is not None and dataset.rows is not None:
                newest = datasets.newest_event(chunk, datasets.declared(dataset.uri)[1])
                if newest is not None and (self._newest is None or newest > self._newest):
                    self._newest = newest

    def close(self) -> None:
        for dataset in self._found or _describe(self._places, "in", 0, None):
            rows = self._rows if dataset.rows is not None else None
            touch(replace(dataset, rows=rows, newest_event=self._newest))
        transferred(bytes_in=_moved(self._places))
        self._places, self._found = [], []


_CHUNK = OperationKind("pandas.read_chunk")
_readings: WeakKeyDictionary[Any, _Reading] = WeakKeyDictionary()
"""By reader: nothing is hung on the user's object."""


def _arrived(call: Any, reading: _Reading | None, chunk: Any) -> None:
    rows = 0
    try:
        rows = rows_of(chunk)
        add_records(rows)
        if reading is not None:
            reading.add(chunk, rows)
    except Exception as fault:
        report(fault)
    finally:
        end(call, rows_out=rows)


def chunk(wrapped: Function) -> Function:
    """Patch for the method of a reader that gives the next chunk (or all that is left)."""

    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = None
        try:
            call = begin(_CHUNK)
            result = wrapped(self, *args, **kwargs)
            if call is not None:
                _arrived(call, _readings.get(self), result)
        except StopIteration as error:
            if call is not None:
                forget(call)
            drop_first_frame(error)
            raise
        except BaseException as error:
            if call is not None:
                end(call, error)
            drop_first_frame(error)
            raise
        return result

    return wrapper


def close(args: Arguments) -> None:
    """Before a reader's ``close``, which exhaustion calls too."""
    reading = _readings.pop(args[0], None)
    if reading is not None:
        reading.close()


def _counted(chunks: GeneratorType[Any, Any, Any], reading: _Reading) -> Any:
    """The same generator, with its chunks counted."""
    counting: Any = _counting(chunks, reading)
    counting.__name__, counting.__qualname__ = chunks.__name__, chunks.__qualname__
    return counting


def _counting(chunks: Generator[Any, Any, Any], reading: _Reading) -> Generator[Any, Any, Any]:
    thrown: BaseException | None = None
    given: list[Any] = []  # popped as it is yielded: the consumer's chunk is not kept alive here
    try:
        while True:
            call = None
            try:
                call = begin(_CHUNK)
                given.append(next(chunks) if thrown is None else chunks.throw(thrown))
                if call is not None:
                    _arrived(call, reading, given[0])
            except StopIteration as stopped:
                if call is not None:
                    forget(call)
                return stopped.value
            except BaseException as error:
                if call is not None:
                    end(call, error)
                drop_first_frame(error)
                raise
            thrown = None
            try:
                yield given.pop()
            except GeneratorExit:
                chunks.close()
                raise
            except BaseException as error:
                thrown = error
    finally:
        with guarded:
            reading.close()
