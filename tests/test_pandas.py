"""pandas as its users see it, and what is seen of it."""

import inspect
import io
import multiprocessing
import pickle
import sqlite3
import subprocess
import sys
import textwrap
import traceback
import warnings
import weakref
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stagewatch import recording, safety, stages
from stagewatch.instrumentation import _base, _pandas_io, _pandas_patches
from stagewatch.instrumentation.pandas import PandasInstrumentor
from stagewatch.model import DeclaredDataset, Pipeline
from stagewatch.records import DatasetTouched, OperationEnded, StageEnded, TallyDefined
from tests.interrupted import everywhere
from tests.recorded import Clock, Recorded

FRAME = pd.DataFrame({"k": ["x", "y", "x"], "n": [1.0, None, 3.0]})
OTHER = pd.DataFrame({"k": ["x", "y"], "m": [10, 20]})


@pytest.fixture(autouse=True)
def watched() -> Iterator[PandasInstrumentor]:
    """pandas, patched; an error of ours that was swallowed fails the test."""
    before = safety.swallowed
    ours = PandasInstrumentor()
    ours.instrument()
    yield ours
    if ours.is_instrumented_by_opentelemetry:
        ours.uninstrument()
    assert safety.swallowed == before


def _folded(recorded: Recorded) -> dict[str, tuple[int, int, int]]:
    """Calls, rows in and rows out by ``stage:operation`` of what the status page counts."""
    page = recorded.page()
    cells = {
        f"{tally.stage}:{tally.name}" if tally.stage else tally.name: page.cell(
            "operation", tally.cell
        )
        for tally in recorded.of(TallyDefined)
    }
    return {n: (c["calls"], c["rows_in"], c["rows_out"]) for n, c in cells.items()}


def _spans(recorded: Recorded) -> list[tuple[str, dict[str, Any]]]:
    """Name and own attributes of each span."""
    common = {"pipeline.name", "operation", "stagewatch.span.role"}
    return [
        (span.name, {k: v for k, v in (span.attributes or {}).items() if k not in common})
        for span in recorded.spans()
    ]


def _records() -> tuple[int | None, int | None]:
    current = recording.active
    assert current is not None
    return current.without_stage.records_in, current.without_stage.records_out


# --- operations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "operation", "rows"),
    [
        (lambda: FRAME.merge(OTHER, on="k"), "merge", (5, 3)),
        (lambda: pd.merge(FRAME, right=OTHER, on="k"), "merge", (5, 3)),
        (lambda: pd.merge_asof(OTHER, OTHER, on="m"), "merge_asof", (4, 2)),
        (lambda: pd.merge_ordered(FRAME, OTHER, on="k"), "merge_ordered", (5, 3)),
        (lambda: FRAME.join(OTHER.set_index("k"), on="k"), "join", (5, 3)),
        (lambda: FRAME.join([OTHER[["m"]]]), "join", (5, 3)),
        (lambda: pd.concat([FRAME, FRAME]), "concat", (6, 6)),
        (lambda: pd.concat({"a": FRAME, "b": FRAME}), "concat", (6, 6)),
        (lambda: pd.concat(f for f in [FRAME, FRAME]), "concat", (0, 6)),
        (lambda: FRAME.sort_values("n"), "sort_values", (3, 3)),
        (lambda: FRAME.drop_duplicates("k"), "drop_duplicates", (3, 2)),
        (lambda: FRAME.dropna(), "dropna", (3, 2)),
        (lambda: FRAME.fillna(0), "fillna", (3, 3)),
        (lambda: FRAME["n"].fillna(value=0), "fillna", (3, 3)),
        (lambda: FRAME.copy().fillna({"n": 0}, limit=1), "fillna", (3, 3)),
        (lambda: FRAME.query("n > 1"), "query", (3, 1)),
        (lambda: FRAME.melt("k"), "melt", (3, 3)),
        (lambda: pd.melt(FRAME, "k"), "melt", (3, 3)),
        (lambda: FRAME.pivot_table("n", "k"), "pivot_table", (3, 1)),
        (lambda: FRAME.apply(len), "apply", (3, 2)),
        (lambda: FRAME["n"].apply(abs), "apply", (3, 3)),
        (lambda: FRAME.groupby("k").sum(), "groupby.sum", (3, 2)),
        (lambda: FRAME.groupby("k")["n"].mean(), "groupby.mean", (3, 2)),
        (lambda: FRAME.groupby("k").size(), "groupby.size", (3, 2)),
        (lambda: FRAME.groupby("k")["n"].nunique(), "groupby.nunique", (3, 2)),
        (lambda: FRAME.groupby("k").agg("sum"), "groupby.agg", (3, 2)),
        (lambda: FRAME.groupby("k").aggregate({"n": ["min", "max"]}), "groupby.agg", (3, 2)),
        (lambda: FRAME.groupby("k").agg(low=("n", "min")), "groupby.agg", (3, 2)),
        (lambda: FRAME.groupby("k")["n"].agg(lambda s: s.max()), "groupby.agg", (3, 2)),
        (lambda: FRAME.groupby("k")["n"].transform("sum"), "groupby.transform", (3, 3)),
        (lambda: FRAME.groupby("k")["n"].apply(list), "groupby.apply", (3, 2)),
        (lambda: FRAME.groupby("k").apply(len), "groupby.apply", (3, 2)),
    ],
)
def test_a_cheap_call_folds(recorded: Recorded, call: Any, operation: str, rows: Any) -> None:
    """One call of one operation with its rows, whatever pandas calls inside; and no span."""
    call()
    assert _folded(recorded) == {f"pandas.{operation}": (1, *rows)}
    assert _spans(recorded) == []
    assert _records() == (None, None)


def test_results_are_those_of_pandas(watched: PandasInstrumentor, recorded: Recorded) -> None:
    """The same frames with and without us."""

    def results() -> list[Any]:
        grouped = FRAME.groupby("k")
        return [
            FRAME.merge(OTHER).fillna(0).sort_values("n"),
            grouped.agg("sum"),
            grouped["n"].agg(["sum", "mean"]),
            grouped["n"].agg([np.sum, max]),
            grouped.apply(lambda g: g["n"].sum()),
            FRAME.query("n > 1"),
        ]

    ours = results()
    watched.uninstrument()
    for one, other in zip(ours, results(), strict=True):
        assert one.equals(other)


def test_slow_calls_become_spans(recorded: Recorded, clock: Clock) -> None:
    """At the threshold; what the user's function opens inside is a child, folded or not."""
    tracer = recorded.provider.get_tracer("user")

    def slow(series: Any) -> int:
        with tracer.start_as_current_span("mine"):
            clock.advance(0.02)
        return len(series)

    FRAME[["n"]].apply(slow)
    FRAME.apply(lambda series: clock.advance(0.001))
    assert recorded.tree() == [{"pandas.apply": [{"mine": []}]}]
    assert _folded(recorded) == {"pandas.apply": (1, 3, 2)}
    assert _spans(recorded)[1] == (
        "pandas.apply",
        {"pipeline.operation.rows.in": 3, "pipeline.operation.rows.out": 1},
    )


def test_operations_belong_to_their_stage(recorded: Recorded) -> None:
    """In the tally and on the span."""
    with stages.stage("clean"):
        FRAME.dropna()
    assert _folded(recorded) == {"clean:pandas.dropna": (1, 3, 2)}


def test_local_names_of_queries_are_the_callers(recorded: Recorded) -> None:
    """`@name` is found in the frame that calls, also with a level of its own."""
    limit = 1.0  # noqa: F841

    def through_a_function() -> pd.DataFrame:
        return FRAME.query("n > @limit", level=1)

    assert len(FRAME.query("n > @limit")) == len(through_a_function()) == 1


def test_without_a_run_everything_just_works() -> None:
    """Nothing records: the wrapper calls through."""
    assert recording.active is None
    assert len(FRAME.fillna(0).merge(OTHER)) == 3
    assert FRAME.to_csv(index=False).splitlines()[0] == "k,n"


# --- transparency -----------------------------------------------------------------------------


@pytest.mark.parametrize("with_run", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda: FRAME.merge(OTHER, on="nothing"),
        lambda: FRAME.fillna(),
        lambda: FRAME.fillna([1]),
        lambda: FRAME.query("nothing > 1"),
        lambda: FRAME.groupby("k").agg("nothing"),
        lambda: FRAME.groupby("k")["n"].apply(lambda s: 1 / 0),
        lambda: FRAME["k"].apply(float),
        lambda: pd.read_csv("no/such/file.csv"),
        lambda: pd.read_parquet(io.BytesIO(b"no parquet")),
        lambda: FRAME.to_csv("no/such/folder/file.csv"),
        lambda: pd.read_csv(),
    ],
)
def test_errors_are_untouched(
    watched: PandasInstrumentor, request: Any, call: Any, with_run: bool
) -> None:
    """Type, message, causes and the functions of the traceback are those without us."""
    if with_run:
        request.getfixturevalue("recorded")
    ours = _failure(call)
    watched.uninstrument()
    assert ours == _failure(call)


def _failure(call: Any) -> Any:
    try:
        call()
    except Exception as error:
        chain: list[Any] = []
        found: BaseException | None = error
        while found is not None:
            frames = traceback.extract_tb(found.__traceback__)
            chain.append((type(found), str(found), [(f.filename, f.name) for f in frames]))
            found = found.__cause__ or found.__context__
        return chain
    raise AssertionError("it did not fail")


def _chunks() -> Any:
    return pd.read_csv(io.StringIO("n\n1\n2\n"), chunksize=1)


def _rows_in_chunks() -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t (n)")
        connection.execute("INSERT INTO t VALUES (1), (2)")
        for chunk in pd.read_sql("SELECT n FROM t", connection, chunksize=1):
            len(chunk)


@pytest.mark.parametrize(
    "call",
    [
        lambda: FRAME.sort_values("n"),
        lambda: FRAME.fillna(0),
        lambda: FRAME["n"].apply(abs),
        lambda: pd.read_csv(io.StringIO("n\n1\n")),
        lambda: list(_chunks()),
        _rows_in_chunks,
    ],
)
def test_a_signal_at_any_moment_ends_the_call(recorded: Recorded, call: Any) -> None:
    """What the user's handler raises comes through, and later calls are seen as before."""
    ours = {_base.UNSEEN, *(m.__file__ or "" for m in (_base, _pandas_io, _pandas_patches))}
    for count in everywhere(call, ours):
        FRAME.dropna()
        assert _folded(recorded)["pandas.dropna"][0] == count, count


@pytest.mark.filterwarnings("ignore:The inplace keyword")
def test_in_place_by_keyword(recorded: Recorded) -> None:
    """No positional argument and no result: rows are not known, and that is all."""
    frame = FRAME.copy()
    assert pd.DataFrame.dropna(self=frame, inplace=True) is None
    assert len(frame) == 2


def test_a_failed_call_is_a_span_without_values(recorded: Recorded) -> None:
    """It says what failed and where; the cell is nowhere in the journal."""
    with pytest.raises(ValueError, match="Smith"):
        pd.Series(["Smith"]).apply(float)
    ((name, attributes),) = _spans(recorded)
    assert name == "pandas.apply"
    assert attributes["error.type"] == "ValueError"
    assert all(b"Smith" not in path.read_bytes() for path in recorded.directory.iterdir())


def test_functions_look_as_before(watched: PandasInstrumentor) -> None:
    """Signatures, names and documentation of all that is patched."""

    def looks() -> dict[str, Any]:
        found = {}
        for patch in PandasInstrumentor().patches():
            target: Any = sys.modules.get(patch.module)
            for part in patch.path.split("."):
                target = getattr(target, part, None)
            if target is not None:
                found[f"{patch.module}.{patch.path}"] = (
                    inspect.signature(target),
                    target.__name__,
                    target.__qualname__,
                    target.__module__,
                    target.__doc__,
                    type(target),
                )
        return found

    ours = looks()
    watched.uninstrument()
    assert len(ours) > 80
    assert ours == looks()


def test_uninstrument_restores_everything(watched: PandasInstrumentor) -> None:
    """Every attribute of every module and patched class of pandas is the object it was."""

    def everything() -> dict[str, int]:
        owners = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "pandas"}
        classes = {
            f"{n}.{c}": v
            for n, m in owners.items()
            for c, v in vars(m).items()
            if isinstance(v, type) and v.__module__.startswith("pandas")
        }
        return {
            f"{o}.{name}": id(value)
            for o, owner in (owners | classes).items()
            for name, value in vars(owner).items()
            if callable(value) or isinstance(value, staticmethod | classmethod | property)
        }

    watched.uninstrument()
    before = everything()
    watched.instrument()
    assert everything() != before
    watched.uninstrument()
    assert everything() == before


def test_all_names_of_a_function_are_one() -> None:
    """The wrapper is what every module of pandas has under that name."""
    assert pd.read_csv is pd.io.api.read_csv is pd.io.parsers.read_csv
    assert pd.read_csv is sys.modules["pandas.io.parsers.readers"].read_csv
    assert pd.merge is sys.modules["pandas.core.reshape.merge"].merge
    groups = sys.modules["pandas.core.groupby.generic"].DataFrameGroupBy
    assert groups.agg is groups.aggregate


def test_functions_are_pickled_by_name(tmp_path: Path) -> None:
    """Also by a pool's processes, however they start."""
    file = tmp_path / "frame.csv"
    FRAME.to_csv(file)
    for function in (pd.read_csv, pd.merge, pd.DataFrame.fillna):
        assert pickle.loads(pickle.dumps(function)) is function
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside the test's threads
        for method in ("fork", "spawn"):
            with multiprocessing.get_context(method).Pool(1) as pool:
                (frame,) = pool.map_async(pd.read_csv, [file]).get(timeout=60)
                assert len(frame) == 3


def test_functions_survive_cloudpickle() -> None:
    """By reference, as before."""
    cloudpickle = pytest.importorskip("cloudpickle")
    assert cloudpickle.loads(cloudpickle.dumps(pd.read_csv)) is pd.read_csv


@pytest.mark.parametrize(
    "call",
    [
        lambda: pd.read_csv(io.StringIO("a,b\n1,2\n"), sep="::", names=["x"]),
        lambda: pd.read_csv(io.StringIO("a\nsoon\nlater\n"), parse_dates=["a"]),
        lambda: FRAME[["n"]].fillna(0, inplace=True),
        lambda: FRAME["n"].fillna(0, inplace=True, limit=2),
        lambda: FRAME.copy().dropna(inplace=True),
        lambda: FRAME.copy().query("n > 1", inplace=True),
        lambda: FRAME.copy().sort_values("n", inplace=True),
        lambda: FRAME.join(OTHER, rsuffix="_"),
        lambda: FRAME.merge(OTHER.set_axis(["a", "b"], axis=1), how="cross").dropna(inplace=True),
        lambda: FRAME.groupby("k").agg(sum),
        lambda: pd.concat([FRAME, FRAME.iloc[:0].astype(object)]),
    ],
)
@pytest.mark.parametrize("with_run", [False, True])
def test_warnings_are_untouched(
    watched: PandasInstrumentor, request: Any, call: Any, with_run: bool
) -> None:
    """Those that count frames, those that look for pandas' folder, and those that count
    references: the same texts, for the same line of the user's.
    """
    if with_run:
        request.getfixturevalue("recorded")

    def warned() -> list[Any]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        return [(w.category, str(w.message), w.filename, w.lineno) for w in caught]

    ours = warned()
    watched.uninstrument()
    assert ours == warned()
    assert {file for _, _, file, _ in ours} <= {__file__}


def test_some_warnings_are_there(recorded: Recorded) -> None:
    """The comparison above is not one of nothing with nothing."""
    for call in (
        lambda: FRAME[["n"]].fillna(0, inplace=True),
        lambda: FRAME.copy().dropna(inplace=True),
        lambda: pd.read_csv(io.StringIO("a\nsoon\nlater\n"), parse_dates=["a"]),
    ):
        with pytest.warns(Warning) as caught:
            call()
        assert {warning.filename for warning in caught} == {__file__}


def test_a_frame_of_ones_own_is_filled_without_a_warning(recorded: Recorded) -> None:
    """Warnings are errors here."""
    frame = FRAME.copy()
    frame.fillna(0, inplace=True)
    assert frame["n"].tolist() == [1, 0, 3]


# --- readers and writers ----------------------------------------------------------------------


def test_files_are_datasets(recorded: Recorded, tmp_path: Path) -> None:
    """URI, rows, bytes and shape, on the span and as a record; the rows are the run's records."""
    file = tmp_path / "frame.csv"
    FRAME.to_csv(file, index=False)
    pd.read_csv(str(file))
    size = file.stat().st_size
    ((_, written), (_, read)) = spans = _spans(recorded)
    assert [name for name, _ in spans] == ["pandas.to_csv", "pandas.read_csv"]
    shape = written["pipeline.dataset.schema.fingerprint"]
    common = {
        "pipeline.dataset.uri": f"file://{file}",
        "pipeline.dataset.rows": 3,
        "pipeline.dataset.bytes": size,
        "pipeline.dataset.schema.fingerprint": shape,
    }
    rows_in, rows_out = "pipeline.operation.rows.in", "pipeline.operation.rows.out"
    assert written == common | {"pipeline.dataset.direction": "out", rows_in: 3, rows_out: 0}
    assert read == common | {"pipeline.dataset.direction": "in", rows_in: 0, rows_out: 3}
    touched = [(d.direction, d.uri, d.rows, d.bytes) for d in recorded.of(DatasetTouched)]
    assert touched == [("out", f"file://{file}", 3, size), ("in", f"file://{file}", 3, size)]
    assert _records() == (3, 3)


@pytest.mark.parametrize(
    ("write", "read", "name"),
    [
        (lambda p: FRAME.to_parquet(p), lambda p: pd.read_parquet(p), "parquet"),
        (lambda p: FRAME.to_json(p), lambda p: pd.read_json(p), "json"),
        (lambda p: FRAME.to_pickle(p), lambda p: pd.read_pickle(p), "pickle"),
        (lambda p: FRAME.to_feather(p), lambda p: pd.read_feather(p), "feather"),
        (lambda p: FRAME.to_orc(p), lambda p: pd.read_orc(p), "orc"),
        (lambda p: FRAME.to_stata(p), lambda p: pd.read_stata(p), "stata"),
    ],
)
def test_formats(recorded: Recorded, tmp_path: Path, write: Any, read: Any, name: str) -> None:
    """One span each way, with the rows; nothing else is counted."""
    file = tmp_path / "frame"
    write(file)
    assert len(read(file)) == 3
    assert [name for name, _ in _spans(recorded)] == [f"pandas.to_{name}", f"pandas.read_{name}"]
    assert [(d.uri, d.rows) for d in recorded.of(DatasetTouched)] == [(f"file://{file}", 3)] * 2
    assert _records() == (3, 3)
    assert _folded(recorded) == {}


def test_bytes_of_files_count_for_the_stage(recorded: Recorded, tmp_path: Path) -> None:
    """The size of what is read and written whole; not of lines appended, or of an open file."""
    file = tmp_path / "frame.csv"
    with stages.stage("copy"):
        FRAME.to_csv(file, index=False)
        size = file.stat().st_size
        pd.read_csv(str(file))
        for _ in pd.read_csv(file, chunksize=2):
            pass
        FRAME.to_csv(file, index=False, mode="a")
        with file.open() as open_file:
            pd.read_csv(open_file)
        FRAME.to_csv(io.StringIO())
    assert file.stat().st_size > size
    (stage,) = recorded.of(StageEnded)
    assert (stage.bytes_in, stage.bytes_out) == (2 * size, size)


def test_a_pickle_may_hold_anything(recorded: Recorded, tmp_path: Path) -> None:
    """What has no rows counts none."""
    for number, thing in enumerate(["text", None, {"a": FRAME}, [FRAME, 1], 3.5]):
        pd.to_pickle(thing, tmp_path / str(number))
        pd.read_pickle(tmp_path / str(number))
    read = [d.rows for d in recorded.of(DatasetTouched) if d.direction == "in"]
    assert read == [0, 0, 3, 3, 0]


def test_buffers_count_and_are_no_dataset(recorded: Recorded) -> None:
    """Rows only; a text that is returned folds."""
    text = FRAME.to_csv()
    assert text is not None
    pd.read_csv(io.StringIO(text))
    assert recorded.of(DatasetTouched) == []
    assert _folded(recorded) == {"pandas.to_csv": (1, 3, 0)}
    assert [name for name, _ in _spans(recorded)] == ["pandas.read_csv"]
    assert _records() == (3, 3)


def test_chunks_count_as_they_are_consumed(recorded: Recorded, tmp_path: Path) -> None:
    """The reader is pandas' own; its dataset is known when it is exhausted."""
    file = tmp_path / "frame.csv"
    pd.DataFrame({"n": range(5)}).to_csv(file, index=False)
    reader = pd.read_csv(file, chunksize=2)
    assert type(reader).__name__ == "TextFileReader"
    assert next(reader).n.tolist() == [0, 1]
    assert _records()[0] == 2
    assert len(reader.get_chunk(1)) == 1
    assert _records()[0] == 3
    assert sum(map(len, reader)) == 2
    assert _records()[0] == 5
    read = [d for d in recorded.of(DatasetTouched) if d.direction == "in"]
    assert [(d.uri, d.rows, d.bytes) for d in read] == [(f"file://{file}", 5, 12)]
    assert _folded(recorded)["pandas.read_chunk"][2] == 5
    assert _spans(recorded)[-1][1]["pipeline.dataset.uri"] == f"file://{file}"


def test_other_readers_in_chunks(recorded: Recorded, tmp_path: Path) -> None:
    """JSON lines and Stata; closed early they say what they have read."""
    lines, stata = tmp_path / "lines", tmp_path / "stata"
    FRAME.to_json(lines, orient="records", lines=True)
    FRAME.to_stata(stata)
    with pd.read_json(lines, lines=True, chunksize=2) as reader:
        assert len(next(reader)) == 2
    with pd.read_stata(stata, chunksize=2) as reader:
        assert [len(chunk) for chunk in reader] == [2, 1]
    read = [(d.uri, d.rows) for d in recorded.of(DatasetTouched) if d.direction == "in"]
    assert read == [(f"file://{lines}", 2), (f"file://{stata}", 3)]
    assert _records()[0] == 5


def _connections(tmp_path: Path) -> Any:
    import sqlalchemy

    file = tmp_path / "data.db"
    return {
        "dbapi": lambda: sqlite3.connect(file),
        "engine": lambda: sqlalchemy.create_engine(f"sqlite:///{file}"),
        "url": lambda: f"sqlite:///{file}",
    }


@pytest.mark.parametrize("kind", ["dbapi", "engine", "url"])
def test_tables_are_datasets(recorded: Recorded, tmp_path: Path, kind: str) -> None:
    """By the engine's URL and the table's name; a literal of a query is nowhere."""
    connection = _connections(tmp_path)[kind]()
    FRAME.to_sql("frames", connection, index=False)
    query = "SELECT * FROM frames -- FROM secret1\nWHERE k <> 'FROM secret2'"
    assert len(pd.read_sql(query, connection)) == 3
    assert len(pd.read_sql_query("SELECT count(*) FROM frames", connection)) == 1
    chunks = pd.read_sql(query, connection, chunksize=2)
    assert inspect.isgenerator(chunks)
    assert [len(chunk) for chunk in chunks] == [2, 1]
    uri = f"sqlite://{tmp_path}/data.db/frames"
    touched = [(d.direction, d.uri, d.rows) for d in recorded.of(DatasetTouched)]
    assert touched == [("out", uri, 3), ("in", uri, 3), ("in", uri, 1), ("in", uri, 3)]
    assert _records() == (7, 3)
    assert all(b"secret" not in path.read_bytes() for path in recorded.directory.iterdir())
    if kind == "dbapi":
        connection.close()
    if kind == "engine":
        assert len(pd.read_sql_table("frames", connection)) == 3
        assert len(pd.read_sql("frames", connection)) == 3
        connection.dispose()


def test_a_generator_of_chunks_stays_one(recorded: Recorded, tmp_path: Path) -> None:
    """Closed early, thrown into and left alone it does what pandas' own does."""
    with sqlite3.connect(tmp_path / "data.db") as connection:
        FRAME.to_sql("frames", connection)
        chunks = pd.read_sql("SELECT * FROM frames", connection, chunksize=1)
        assert chunks.__name__ == "_query_iterator"
        next(chunks)
        chunks.close()
        with pytest.raises(StopIteration):
            next(chunks)
        chunks = pd.read_sql("SELECT * FROM frames", connection, chunksize=1)
        next(chunks)
        with pytest.raises(KeyError, match="mine"):
            chunks.throw(KeyError("mine"))
        pd.read_sql("SELECT * FROM frames", connection, chunksize=1)
    connection.close()
    read = [d.rows for d in recorded.of(DatasetTouched) if d.direction == "in"]
    assert read == [1, 1]


def test_a_chunk_is_not_kept(recorded: Recorded, tmp_path: Path) -> None:
    """A consumer that drops a chunk frees it before the next one is made."""
    with sqlite3.connect(tmp_path / "data.db") as connection:
        FRAME.to_sql("frames", connection)
        chunks = pd.read_sql("SELECT * FROM frames", connection, chunksize=1)
        kept = weakref.ref(next(chunks))
        assert kept() is None
        chunks.close()
    connection.close()


def test_the_newest_event_of_a_declared_dataset(tmp_path: Path, clock: Clock) -> None:
    """Only of the column that was named, of readers and writers, whole and in chunks."""
    declared = {"sales": DeclaredDataset(uri="file://*/sales.csv", timestamp_column="at")}
    found = Recorded(tmp_path, clock, Pipeline(name="test", datasets=declared))
    file = tmp_path / "sales.csv"
    try:
        frame = pd.DataFrame({"at": pd.to_datetime(["2024-05-02", "2024-05-01"]), "b": [1, 2]})
        frame.to_csv(file)
        pd.read_csv(file)
        for _ in pd.read_csv(file, chunksize=1, parse_dates=["at"]):
            pass
        frame.to_csv(tmp_path / "other.csv")
        at = pd.Timestamp("2024-05-02").value
        assert [(d.declared, d.newest_event) for d in found.of(DatasetTouched)] == [
            ("sales", at),
            ("sales", at),
            ("sales", at),
            (None, None),
        ]
    finally:
        found.close()


def test_failed_io_is_a_span(recorded: Recorded) -> None:
    """With its error's type; no dataset was touched."""
    with pytest.raises(FileNotFoundError):
        pd.read_csv("no/such/file.csv")
    ((name, attributes),) = _spans(recorded)
    assert (name, attributes["error.type"]) == ("pandas.read_csv", "FileNotFoundError")
    assert [(o.name, o.error_type) for o in recorded.of(OperationEnded)] == [
        ("pandas.read_csv", "FileNotFoundError")
    ]
    assert recorded.of(DatasetTouched) == []


def test_from_the_first_import_on(tmp_path: Path) -> None:
    """In a process where pandas comes after us, a name taken by `from` is watched too."""
    script = textwrap.dedent(
        f"""
        import pathlib, sys
        sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
        from tests.recorded import Clock, Recorded
        from stagewatch import safety
        from stagewatch.instrumentation.pandas import PandasInstrumentor
        from stagewatch.model import Pipeline
        from stagewatch.records import SpanEnded, TallyDefined
        seen = Recorded(pathlib.Path({str(tmp_path)!r}), Clock(), Pipeline(name="p"))
        PandasInstrumentor().instrument()
        assert "pandas" not in sys.modules
        from pandas import DataFrame, concat
        concat([DataFrame(dict(a=[1]))]).fillna(0)
        counted = seen.of(TallyDefined) + seen.of(SpanEnded)  # the first call may take long
        print(sorted(one.name for one in counted), safety.swallowed)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "['pandas.concat', 'pandas.fillna'] 0\n"
    assert done.stderr == ""
