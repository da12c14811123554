"""What a dataset is called: never with a secret, a literal or a cell in it."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagewatch.instrumentation import _datasets as datasets


@pytest.mark.parametrize(
    ("source", "uri"),
    [
        ("s3://key:secret@bucket/a/b.parquet?token=secret#x", "s3://bucket/a/b.parquet"),
        ("https://example.org:8443/a.csv?sig=secret", "https://example.org:8443/a.csv"),
        ("simplecache::s3://bucket/a.csv", "s3://bucket/a.csv"),
        ("zip://*.csv::simplecache::s3://me:secret@bucket/a.zip?x", "s3://bucket/a.zip"),
        ("https://h/p?x=a::b&token=secret", "https://h/p"),
        ("https://h/p?x=a::b://c&token=secret", "https://h/p"),
        ("https://me:a::secret@h/p", "https://h/p"),
        ("https://me::secret@h/p", "https://h/p"),
        ("no/such/file.csv", None),
        ('{"secret": "https://example.org"}', None),
        ("a\x00b", None),
        ("x" * 10_000, None),
        (b"data", None),
        (object(), None),
        (None, None),
    ],
)
def test_where_data_is(source: Any, uri: str | None) -> None:
    """URLs lose their secrets; text that is no path of something existing is not repeated."""
    assert datasets.locate(source) == (uri, None)


def test_local_files_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a path, a relative one, a `Path` and a ``file://`` URL; a folder has none."""
    file = tmp_path / "a b.csv"
    file.write_text("12345")
    monkeypatch.chdir(tmp_path)
    for source in (str(file), "a b.csv", file, f"file://{file}", f"file://{file}?x=secret"):
        assert datasets.locate(source) == (f"file://{file}", 5)
    assert datasets.locate(tmp_path) == (f"file://{tmp_path}", None)


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("orders", ("orders",)),
        ("SELECT * FROM orders", ("orders",)),
        (
            'select a from sales.orders o left join "Cust omers" c on o.id = c.id',
            ("sales.orders", "Cust omers"),
        ),
        ("SELECT * FROM `a`.`b` JOIN [c].[d] ON 1 = 1", ("a.b", "c.d")),
        ("SELECT * FROM t WHERE x = 'a FROM secret' -- JOIN secret", ("t",)),
        ('SELECT * /* FROM secret */ FROM t WHERE x = "FROM secret"', ("t",)),
        ("SELECT 'it''s FROM secret' FROM t", ("t",)),
        ("SELECT 'it\\'s FROM secret' FROM t", ()),
        ("SELECT $$ FROM secret $$ FROM t", ()),
        ("SELECT 'FROM secret", ()),
        ("SELECT EXTRACT(YEAR FROM at), TRIM('x' FROM name) FROM t", ("t",)),
        ("SELECT * FROM t WHERE a IS DISTINCT FROM b", ("t",)),
        ("SELECT * FROM generate_series(1, 2)", ()),
        ("SELECT * FROM (SELECT * FROM inner_t) x", ("inner_t",)),
        ("WITH c AS (SELECT * FROM t) SELECT * FROM c JOIN u ON true", ("t", "u")),
        ("PRAGMA table_info", ()),
        (None, ()),
    ],
)
def test_tables_of_a_query(statement: Any, names: tuple[str, ...]) -> None:
    """Names after FROM and JOIN; nothing where a literal could be taken for one."""
    assert datasets.tables(statement) == names


@given(st.text(alphabet="abSECRET'\"`\\-/*$ \n();,", max_size=40))
def test_literals_are_never_names(text: str) -> None:
    """Whatever stands in a quoted literal, doubled quotes included."""
    quoted = text.replace("'", "''")
    found = datasets.tables(f"SELECT * FROM t WHERE x = ' FROM secret {quoted} JOIN secret' AND 1")
    assert set(found) <= {"t"}


def test_tables_of_sqlalchemy_statements() -> None:
    """Text and selects, with and without a join."""
    import sqlalchemy as sa

    metadata = sa.MetaData()
    one = sa.Table("one", metadata, sa.Column("a", sa.Integer), schema="s")
    two = sa.Table("two", metadata, sa.Column("a", sa.Integer))
    joined = sa.select(one).join(two, one.c.a == two.c.a).where(one.c.a == "secret")
    assert datasets.tables(sa.text("SELECT * FROM t WHERE a = :a")) == ("t",)
    assert datasets.tables(sa.select(one)) == ("s.one",)
    assert set(datasets.tables(joined)) == {"s.one", "two"}


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("postgresql+psycopg2://me:secret@host:5432/shop?x=secret", "postgresql://host:5432/shop"),
        ("mysql://me:secret@host/shop", "mysql://host/shop"),
        ("postgresql://etl:sec/ret@db/sales", "postgresql://db/sales"),
        ("postgresql://etl:sec#ret@db/sales", "postgresql://db/sales"),
        ("postgresql://etl:sec?ret@db/sales", "postgresql://db/sales"),
        ("postgresql://etl:se@cr@et@db/sales", "postgresql://db/sales"),
        ("redshift+redshift_connector://me:secret@db/sales", "redshift://db/sales"),
        ("mssql+pyodbc:///?odbc_connect=PWD=secret", "mssql:///"),
        ("host=db password=secret", None),
        ("sqlite:////data/shop.db", "sqlite:///data/shop.db"),
        ("sqlite://", "sqlite:///:memory:"),
    ],
)
def test_databases(url: str, uri: str | None) -> None:
    """The same from a URL as text and, where its driver is here, from an engine."""
    import sqlalchemy as sa

    assert datasets.database(url) == uri
    if url.startswith("sqlite"):
        engine = sa.create_engine(url)
        assert datasets.database(engine) == uri
        engine.dispose()
    assert datasets.database(object()) is None


def test_fingerprints() -> None:
    """The same for the same columns and types, whatever the rows; another for any other."""
    frame = pd.DataFrame({"a": [1], "b": ["x"], "c": pd.Categorical(["secret"])})
    same = pd.DataFrame({"a": [2, 3], "b": ["y", None], "c": pd.Categorical(["p", "q"])})
    found = datasets.fingerprint(frame)
    assert found is not None and len(found) == 16
    assert datasets.fingerprint(same) == found
    others = [
        frame.rename(columns={"a": "z"}),
        frame.astype({"a": float}),
        frame[["b", "a", "c"]],
        frame.iloc[:, :2],
        pd.DataFrame(columns=range(600)),
        pd.DataFrame(columns=range(601)),
    ]
    assert len({datasets.fingerprint(other) for other in others} | {found}) == 7
    assert datasets.fingerprint(pd.Series([1])) is None


@pytest.mark.parametrize(
    ("values", "newest"),
    [
        (["2024-05-01", "2024-05-02"], 1714608000 * 10**9),
        (pd.to_datetime(["2024-05-02", None]), 1714608000 * 10**9),
        (pd.to_datetime(["2024-05-02 02:00"]).tz_localize("Europe/Berlin"), 1714608000 * 10**9),
        (pd.to_datetime([None]), None),
        ([1, 2], None),
        ([1.5, None], None),
        ([True], None),
        ([], None),
    ],
)
def test_newest_events(values: Any, newest: int | None) -> None:
    """Text and times, with and without zone; numbers have no unit and so no time."""
    assert datasets.newest_event(pd.DataFrame({"at": values}), "at") == newest
    assert datasets.newest_event(pd.DataFrame({"at": values}), "other") is None
