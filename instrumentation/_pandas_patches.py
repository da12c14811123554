"""pandas: readers, writers and the operations between them.

One patch stands at the outermost function that all spellings share: `DataFrame.merge` calls
`pandas.merge`, `DataFrame.melt` calls `pandas.melt`. Calls that pandas makes of itself inside
such a call are not counted. Nothing of a cell is looked at, but the timestamp column of a
dataset that ``stagewatch.yaml`` declares; frames are asked for their length, names and types.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from stagewatch.instrumentation import _pandas_io as io
from stagewatch.instrumentation._base import (
    UNSEEN,
    Arguments,
    Function,
    Keywords,
    Patch,
    argument,
    beside,
    operation,
)
from stagewatch.instrumentation._pandas_io import rows_of
from stagewatch.operations import OperationKind, begin, end, fold
from stagewatch.safety import report
from stagewatch.stage_calls import drop_first_frame

Rows = Callable[[Arguments, Keywords], int]


def _of(*names: str) -> Rows:
    """Rows of the leading arguments, which are frames or collections of frames."""

    def rows(args: Arguments, kwargs: Keywords) -> int:
        return sum(rows_of(argument(args, kwargs, i, name)) for i, name in enumerate(names))

    return rows


def _of_self(args: Arguments, kwargs: Keywords) -> int:
    return rows_of(args[0]) if args else 0


def _of_group(args: Arguments, kwargs: Keywords) -> int:
    return rows_of(args[0].obj) if args else 0


def _folding(name: str, rows_in: Rows = _of_self) -> Callable[[Function], Function]:
    """For calls of microseconds: what `operation` does, and not one step more."""
    kind = OperationKind(f"pandas.{name}")

    def factory(wrapped: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = None
            try:
                # Inside, for a signal handler of the user's may raise between any two calls.
                call = begin(kind)
                before = 0 if call is None else rows_in(args, kwargs)
                result = wrapped(*args, **kwargs)
                if call is not None:
                    # In place there is no result, and the frame is as long as it has become.
                    after = rows_of(args[0] if result is None and args else result)
                    fold(call, before, after)
            except BaseException as error:
                if call is not None:
                    end(call, error)
                drop_first_frame(error)
                raise
            return result

        return wrapper

    return factory


def _open(name: str, rows_in: Rows) -> Callable[[Function], Function]:
    """For calls that may run the user's code, or another instrumentor's, inside."""
    closed, open_ = (OperationKind(f"pandas.{name}", open=o) for o in (False, True))
    return operation(
        lambda args, kwargs: open_ if _runs_user_code(args, kwargs) else closed,
        lambda args, kwargs, result: {
            "rows_in": rows_in(args, kwargs),
            "rows_out": rows_of(result),
        },
    )


def _runs_user_code(args: Arguments, kwargs: Keywords) -> bool:
    functions = args[1:2] or (kwargs.get("func", list(kwargs.values())),)
    return not all(isinstance(function, str) for function in _leaves(functions))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _query(wrapped: Function) -> Function:
    kind = OperationKind("pandas.query")

    def deeper(kwargs: Keywords) -> None:
        # `@name` in the expression is looked up in the frame so many levels up: ours is one more.
        kwargs["level"] = kwargs.get("level", 0) + 1

    return operation(
        lambda args, kwargs: kind,
        lambda args, kwargs, result: {
            "rows_in": _of_self(args, kwargs),
            "rows_out": rows_of(result),
        },
        deeper,
    )(wrapped)


def _fillna(wrapped: Function) -> Function:
    """`fillna(inplace=True)` warns of a chained assignment when nobody else holds the frame.

    pandas counts references to tell, so ours has to be gone when it looks. And it is the cheapest
    call of all: with its parameters spelled out nothing is packed and unpacked on the way.
    """
    code = wrapped.__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if known != ("self", "value", "axis", "inplace", "limit") or wrapped.__defaults__:
        return _folding("fillna")(wrapped)  # pandas 2
    kind = OperationKind("pandas.fillna")

    def wrapper(
        self: Any, value: Any, *, axis: Any = None, inplace: Any = False, limit: Any = None
    ) -> Any:
        call = None
        try:
            call = begin(kind)
            rows = 0
            try:
                if call is not None:
                    rows = len(self.index)
            except Exception as fault:
                report(fault)
            if inplace is False:
                result = wrapped(self, value, axis=axis, inplace=False, limit=limit)
            else:
                held = [self]
                del self
                # A plain call gives its reference away; one with * or ** would keep it.
                result = wrapped(held.pop(), value, axis=axis, inplace=inplace, limit=limit)
            if call is not None:
                fold(call, rows, rows)
        except BaseException as error:
            if call is not None:
                end(call, error)
            drop_first_frame(error)
            raise
        return result

    return wrapper


def _stack_level(wrapped: Function) -> Function:
    """pandas looks up the stack for the first frame outside its folder, to name it in a warning.

    Our frames, which `warnings` passes over, are no reason to stop: they also stand between
    pandas' own, where pandas calls a public function of itself.
    """
    package = os.path.dirname(sys.modules["pandas"].__file__ or "") + os.sep
    tests = os.path.join(package, "tests") + os.sep

    def find_stack_level() -> int:
        level = 1
        frame = sys._getframe(1)
        while frame is not None:
            file = frame.f_code.co_filename
            if file != UNSEEN:
                if not file.startswith(package) or file.startswith(tests):
                    break
                level += 1
            frame = frame.f_back  # type: ignore[assignment]
        return level

    return find_stack_level


# --- the table --------------------------------------------------------------------------------

_READERS = (
    ("pandas.io.parsers.readers", "read_csv", "filepath_or_buffer"),
    ("pandas.io.parsers.readers", "read_table", "filepath_or_buffer"),
    ("pandas.io.parsers.readers", "read_fwf", "filepath_or_buffer"),
    ("pandas.io.parquet", "read_parquet", "path"),
    ("pandas.io.json._json", "read_json", "path_or_buf"),
    ("pandas.io.excel._base", "read_excel", "io"),
    ("pandas.io.feather_format", "read_feather", "path"),
    ("pandas.io.orc", "read_orc", "path"),
    ("pandas.io.pickle", "read_pickle", "filepath_or_buffer"),
    ("pandas.io.html", "read_html", "io"),
    ("pandas.io.xml", "read_xml", "path_or_buffer"),
    ("pandas.io.pytables", "read_hdf", "path_or_buf"),
    ("pandas.io.stata", "read_stata", "filepath_or_buffer"),
    ("pandas.io.sas.sasreader", "read_sas", "filepath_or_buffer"),
    ("pandas.io.spss", "read_spss", "path"),
)
_WRITERS = (
    ("pandas.core.generic", "NDFrame.to_csv", "path_or_buf"),
    ("pandas.core.generic", "NDFrame.to_json", "path_or_buf"),
    ("pandas.core.generic", "NDFrame.to_excel", "excel_writer"),
    ("pandas.core.generic", "NDFrame.to_hdf", "path_or_buf"),
    ("pandas.core.frame", "DataFrame.to_parquet", "path"),
    ("pandas.core.frame", "DataFrame.to_feather", "path"),
    ("pandas.core.frame", "DataFrame.to_orc", "path"),
    ("pandas.core.frame", "DataFrame.to_stata", "path"),
    ("pandas.core.frame", "DataFrame.to_xml", "path_or_buffer"),
    ("pandas.io.pickle", "to_pickle", "filepath_or_buffer"),  # `DataFrame.to_pickle` calls it
)
_IN_CHUNKS = (
    # module, class, the method all its ways to the next chunk go through
    ("pandas.io.parsers.readers", "TextFileReader", "read"),
    ("pandas.io.json._json", "JsonReader", "__next__"),
    ("pandas.io.json._json", "JsonReader", "read"),
    ("pandas.io.stata", "StataReader", "read"),
    ("pandas.io.sas.sas7bdat", "SAS7BDATReader", "read"),
    ("pandas.io.sas.sas_xport", "XportReader", "read"),
)
_FRAME_METHODS = ("sort_values", "drop_duplicates", "dropna")
_GROUP_METHODS = (
    *("sum", "mean", "median", "min", "max", "count", "size", "first", "last", "std", "var"),
    *("sem", "prod", "quantile", "cumsum", "cumprod", "cummin", "cummax", "rank", "shift"),
    *("any", "all", "describe"),
)
_GROUPS = ("DataFrameGroupBy", "SeriesGroupBy")
_merge = "pandas.core.reshape.merge"


PATCHES = (
    Patch("pandas.util._exceptions", "find_stack_level", _stack_level),
    *(Patch(m, name, io.reader(name, io.file(0, first))) for m, name, first in _READERS),
    Patch("pandas.io.sql", "read_sql", io.reader("read_sql", io.query, always_open=True)),
    Patch(
        "pandas.io.sql",
        "read_sql_query",
        io.reader("read_sql_query", io.query, always_open=True),
    ),
    Patch(
        "pandas.io.sql",
        "read_sql_table",
        io.reader("read_sql_table", io.table(0, "table_name"), always_open=True),
    ),
    Patch("pandas.io.excel._base", "ExcelFile.parse", io.reader("read_excel", io.file(0, "self"))),
    *(
        Patch(m, path, io.writer(path.rpartition(".")[2], (1, where), io.file(1, where)))
        for m, path, where in _WRITERS
    ),
    Patch(
        "pandas.core.generic",
        "NDFrame.to_sql",
        io.writer("to_sql", (2, "con"), io.table(1, "name"), always_open=True),
    ),
    *(Patch(m, f"{reader}.{method}", io.chunk) for m, reader, method in _IN_CHUNKS),
    *(
        Patch(m, f"{reader}.close", beside(io.close))
        for m, reader in dict.fromkeys((m, reader) for m, reader, _ in _IN_CHUNKS)
    ),
    Patch("pandas.io.stata", "StataReader.__exit__", beside(io.close)),  # it has no `close`
    Patch(_merge, "merge", _folding("merge", _of("left", "right"))),
    Patch(_merge, "merge_asof", _folding("merge_asof", _of("left", "right"))),
    Patch(_merge, "merge_ordered", _folding("merge_ordered", _of("left", "right"))),
    Patch("pandas.core.frame", "DataFrame.join", _folding("join", _of("self", "other"))),
    Patch("pandas.core.reshape.concat", "concat", _folding("concat", _of("objs"))),
    Patch("pandas.core.reshape.melt", "melt", _folding("melt", _of("frame"))),
    Patch("pandas.core.reshape.pivot", "pivot_table", _folding("pivot_table", _of("data"))),
    *(Patch("pandas.core.frame", f"DataFrame.{n}", _folding(n)) for n in _FRAME_METHODS),
    Patch("pandas.core.frame", "DataFrame.query", _query),
    Patch("pandas.core.frame", "DataFrame.apply", _open("apply", _of_self)),
    Patch("pandas.core.series", "Series.apply", _open("apply", _of_self)),
    Patch("pandas.core.generic", "NDFrame.fillna", _fillna),
    *(
        Patch("pandas.core.groupby.groupby", f"GroupBy.{n}", _folding(f"groupby.{n}", _of_group))
        for n in _GROUP_METHODS
    ),
    *(
        Patch("pandas.core.groupby.generic", f"{group}.{n}", _folding(f"groupby.{n}", _of_group))
        for group in _GROUPS
        for n in ("nunique", *_GROUP_METHODS)
    ),
    Patch("pandas.core.groupby.groupby", "GroupBy.apply", _open("groupby.apply", _of_group)),
    *(
        Patch("pandas.core.groupby.generic", f"{group}.{n}", _open(f"groupby.{label}", _of_group))
        for group in _GROUPS
        for n, label in (("apply", "apply"), ("aggregate", "agg"), ("transform", "transform"))
    ),
)
