"""What Spark reads and writes is named without a secret, wherever a driver has users put one."""

from __future__ import annotations

import pytest

from stagewatch.instrumentation.pyspark.datasets import named, uri
from stagewatch.instrumentation.pyspark.draining import _decoded
from stagewatch.instrumentation.pyspark.events import (
    Files,
    Jdbc,
    Marked,
    PlanNode,
    Relation,
    Source,
    Table,
)
from stagewatch.instrumentation.pyspark.rules_of_plans import _where


@pytest.mark.parametrize(
    ("relation", "expected"),
    [
        (Files("file:/data/x"), "file:///data/x"),
        (Files("s3a://KEY:SECRET@bucket/x"), "s3a://bucket/x"),
        (
            Files("abfss://raw@acct.dfs.core.windows.net/x"),
            "abfss://raw@acct.dfs.core.windows.net/x",
        ),
        (Table("spark_catalog.default.t"), "spark_catalog.default.t"),
        (Table("delta.`s3a://KEY:SECRET@bucket/x`"), "s3a://bucket/x"),
        (Table("iceberg.`s3a://bucket/x?sig=SECRET`"), "s3a://bucket/x"),
        (Jdbc("jdbc:postgresql://me:SECRET@h:5432/db", "shop.t"), "postgresql://h:5432/db/shop.t"),
        (Jdbc("jdbc:teradata://h/DATABASE=x,USER=u,PASSWORD=SECRET", "t"), "teradata://h/t"),
        (Jdbc("jdbc:db2://h:50000/DB:user=u;password=SECRET;", "t"), "db2://h:50000/DB/t"),
        (Jdbc("jdbc:db2://h:50000/DB:password=SECRET;user=u;", "t"), "db2://h:50000/DB/t"),
        (Jdbc("jdbc:informix-sqli://h/db:password=SECRET", "t"), "informix-sqli://h/db/t"),
        (Jdbc("jdbc:sas:iom:h:8591:user:SECRET", "t"), "sas/t"),
        (Jdbc("jdbc:oracle:thin:scott/SECRET@h:1521:x", "t"), "oracle/t"),
        (Jdbc("jdbc:derby:memory:x", "t"), "derby:memory:x/t"),
        (Jdbc("jdbc:sqlite:/srv/x.db", "t"), "sqlite:/srv/x.db/t"),
        (Jdbc("jdbc:postgresql://db/shop", "(select 'SECRET') q"), "postgresql://db/shop"),
        (Jdbc("jdbc:sqlserver://db:1433;password=SECRET", "dbo.t"), "sqlserver://db:1433/dbo.t"),
        (Jdbc("jdbc:derby:memory:x;user=me;password=SECRET", "t"), "derby:memory:x/t"),
        (Jdbc("jdbc:postgresql://db/shop?password=SECRET"), "postgresql://db/shop"),
        (Table(""), None),
        (Source("SomeRelation"), None),
    ],
)
def test_uri(relation: Relation, expected: str | None) -> None:
    """Place and table stay; credentials, parameters and literals go."""
    assert uri(relation) == expected


def test_a_hash_in_a_password() -> None:
    """It does not end the URL, so that half of the password would stand for the host."""
    found = uri(Jdbc("jdbc:mysql://u:12#rest@h/db", "t"))
    assert found is not None and "12" not in found and "rest" not in found


def test_containers_of_azure() -> None:
    """Two containers of one account are two places."""
    urls = [Files(f"abfss://{name}@acct.dfs.core.windows.net/x") for name in ("raw", "clean")]
    assert [uri(url) for url in urls] == [
        "abfss://raw@acct.dfs.core.windows.net/x",
        "abfss://clean@acct.dfs.core.windows.net/x",
    ]


def test_a_table_that_is_a_path() -> None:
    """As SQL writes it under Spark Connect."""
    assert named("iceberg.s3a://KEY:SECRET@bucket/x") == "s3a://bucket/x"
    assert named("shop.orders") == "shop.orders"


def test_options_of_a_connector() -> None:
    """Its scan is named by its class: its own text may be all of its options."""
    node = PlanNode("Scan Es(Map(pass -> SECRET))", relation=Source("ElasticsearchRelation"))
    assert _where(node) == "ElasticsearchRelation"
    assert _where(PlanNode("Scan Es(Map(pass -> SECRET))")) == "Scan Es"


def test_an_event_that_is_none() -> None:
    """Those beside it are taken."""
    good = '{"type":"marked","context":"a"}'
    text = f'[{good},{{"type":"from a newer listener"}},{good.replace("a}", "b}")}]'
    assert list(_decoded(text)) == [Marked("a"), Marked("a")]
