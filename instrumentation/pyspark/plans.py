"""What a Spark Connect plan reads and writes, and what the server measured of it.

Pure functions over the client's own protobuf messages, which differ between Spark's versions: so
fields are asked for by name. Of SQL nothing but names of tables is looked at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from stagewatch import redaction, semconv
from stagewatch.instrumentation._datasets import database, is_remote, locate, tables
from stagewatch.instrumentation.pyspark.datasets import named

_RELATION: Final = "spark.connect.Relation"
_MOST: Final = 10_000
"""Relations of a plan that are looked at."""

_NO_EXECUTION: Final = frozenset(
    {
        "catalog",
        "create_dataframe_view",
        "create_resource_profile_command",
        "get_resources_command",
        "register_data_source",
        "register_function",
        "register_table_function",
        "remove_cached_remote_relation_command",
        "streaming_query_command",
        "streaming_query_listener_bus_command",
        "streaming_query_manager_command",
        "write_stream_operation_start",
    }
)
"""Commands to the session alone; the streams among them are batches' business."""
_SHOWN: Final = frozenset({"show_string", "html_string"})

_NAME: Final = r"(?:`[^`]+`|[\w$]+)(?:\.(?:`[^`]+`|[\w$]+))*"
_TEMPORARY_VIEW: Final = re.compile(
    rf"\s*create\s+(?:or\s+replace\s+)?(?:global\s+)?temp(?:orary)?\s+view\s+"
    rf"(?:if\s+not\s+exists\s+)?(?P<name>{_NAME})",
    re.IGNORECASE,
)
_WRITTEN: Final = re.compile(
    rf"\s*(?:insert\s+(?:into|overwrite)\s+(?!(?:local\s+)?directory\b)(?:table\s+)?"
    rf"|merge\s+(?:with\s+schema\s+evolution\s+)?into\s+"
    rf"|(?:create|replace)\s+(?:or\s+replace\s+)?table\s+(?:if\s+not\s+exists\s+)?"
    rf"(?=.*\bas\b\s*(?:select|with|table|values|from|\()))(?P<name>{_NAME})",
    re.IGNORECASE | re.DOTALL,
)
_FILES: Final = re.compile(r"(?:parquet|orc|csv|json|text|xml|avro|delta|binaryfile)\.(.*[/:].*)")
"""The path in ``parquet.`/data/x` ``."""


class Source(NamedTuple):
    """What a plan reads or writes, as far as the client can know it."""

    uri: str
    table: str | None = None
    """Its name, where it is one of the server's catalog: the server knows it in full."""


Views = Mapping[str, tuple[Source, ...]]
"""What temporary views of the session read, by name."""


# --- the plan ---------------------------------------------------------------------------------


def kind(plan: Any) -> str:
    """Type of the command, or of the plan's topmost relation; "" if it cannot be told."""
    top = plan.WhichOneof("op_type")
    if top == "root":
        return plan.root.WhichOneof("rel_type") or ""
    return plan.command.WhichOneof("command_type") or "" if top == "command" else ""


def executes(kind: str) -> bool:
    """Whether a plan of this `kind` makes Spark work on data."""
    return kind not in _NO_EXECUTION


def shows(kind: str) -> bool:
    """Whether its rows come back as a text."""
    return kind in _SHOWN


def fingerprint(plan: Any) -> str | None:
    """Hash of its operators, without their arguments, 16 hex digits."""
    names = [kind(plan), *(name for name, _ in _relations(plan))]
    return (
        hashlib.blake2b(" ".join(names).encode(), digest_size=8).hexdigest() if names[0] else None
    )


def view(plan: Any) -> str | None:
    """Name of the temporary view that it makes, in small letters."""
    if kind(plan) == "create_dataframe_view":
        return str(plan.command.create_dataframe_view.name).lower()
    made = _TEMPORARY_VIEW.match(_statement(plan))
    return _plain(made["name"]).lower() if made is not None else None


def reads(plan: Any, views: Views, here: bool) -> tuple[Source, ...]:
    """Each once. *here*: the server is on this machine, and so may be what it reads."""
    found: dict[Source, None] = {}
    aliases: set[str] = set()
    names: list[str] = []
    for name, relation in _relations(plan):
        if name == "subquery_alias":
            aliases.add(relation.alias.lower())
        elif name == "sql":
            names += tables(relation.query)
        elif name == "read":
            if relation.WhichOneof("read_type") == "named_table":
                names.append(_plain(relation.named_table.unparsed_identifier))
            else:
                found.update(dict.fromkeys(_stored(relation.data_source, here)))
    for name in names:
        if name.lower() in views:
            found.update(dict.fromkeys(views[name.lower()]))
        elif name.lower() not in aliases:
            found[_named(name, here)] = None
    return tuple(found)


def writes(plan: Any, here: bool) -> Source | None:
    """Where its rows go, if it is a command that writes."""
    written = kind(plan)
    if written == "write_operation":
        command = plan.command.write_operation
        if command.HasField("table"):
            return _named(_plain(command.table.table_name), here)
        if command.path:
            return Source(_path(command.path, here))
        return next(iter(_stored(command, here)), None)
    if written == "write_operation_v2":
        return _named(_plain(plan.command.write_operation_v2.table_name), here)
    if written == "merge_into_table_command":
        return _named(_plain(plan.command.merge_into_table_command.target_table_name), here)
    into = _WRITTEN.match(_statement(plan))
    return _named(_plain(into["name"]), here) if into is not None else None


def _statement(plan: Any) -> str:
    if kind(plan) != "sql_command":
        return ""
    command = plan.command.sql_command
    if "input" not in command.DESCRIPTOR.fields_by_name or not command.HasField("input"):
        return str(command.sql)  # before 4.0
    return next((str(r.query) for name, r in _relations(plan) if name == "sql"), "")


def _relations(plan: Any) -> Iterator[tuple[str, Any]]:
    """Those of the plan with their types, from its top down."""
    top = plan.WhichOneof("op_type")
    if top == "root":
        waiting = [plan.root]
    elif top == "command" and plan.command.WhichOneof("command_type"):
        waiting = list(_below(getattr(plan.command, plan.command.WhichOneof("command_type"))))
    else:
        return
    seen = 0
    while waiting and seen < _MOST:
        seen += 1
        relation = waiting.pop()
        name = relation.WhichOneof("rel_type")
        if name is None:
            continue
        inner = getattr(relation, name)
        yield name, inner
        waiting.extend(reversed(list(_below(inner))))


def _below(message: Any) -> Iterator[Any]:
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.full_name == _RELATION:
            yield from (value,) if hasattr(value, "WhichOneof") else value


# --- names ------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return name.replace("`", "")


def _named(name: str, here: bool) -> Source:
    file = _FILES.fullmatch(name)
    if file:
        return Source(_path(file[1], here))
    where = named(name)
    return Source(where, name if where == name else None)


def _stored(source: Any, here: bool) -> Iterator[Source]:
    """Of a reader or writer with format, paths and options."""
    options = {key.lower(): value for key, value in source.options.items()}
    paths = list(getattr(source, "paths", ())) or [
        options[key] for key in ("path",) if key in options
    ]
    for path in paths:
        yield Source(_path(path, here))
    if "dbtable" in options or "query" in options:
        base = database(options.get("url", "").removeprefix("jdbc:"))
        for table in tables(options.get("dbtable") or options.get("query")) if base else ():
            yield Source(f"{base}/{table}")


def _path(path: str, here: bool) -> str:
    """Without secrets. One without a scheme is the server's to resolve: it is a file's here only
    where it is found here."""
    if path.startswith("file:/"):
        return "file:///" + path.removeprefix("file:").lstrip("/")
    if is_remote(path):
        return redaction.url(path)
    return (here and locate(path)[0]) or path


# --- what the server measured -----------------------------------------------------------------


class Node(NamedTuple):
    """An operator of the plan that was executed, with those of its metrics that are not 0."""

    name: str
    metrics: dict[str, float]


_SUMS: Final = {
    "shuffleBytesWritten": semconv.SPARK_SHUFFLE_WRITE_BYTES,
    "shuffleRecordsWritten": semconv.SPARK_SHUFFLE_WRITE_RECORDS,
    "localBytesRead": semconv.SPARK_SHUFFLE_READ_BYTES,
    "remoteBytesRead": semconv.SPARK_SHUFFLE_READ_BYTES,
    "recordsRead": semconv.SPARK_SHUFFLE_READ_RECORDS,
    "spillSize": semconv.SPARK_SPILL_MEMORY,
}
_OF_SCANS: Final = {
    "numOutputRows": semconv.SPARK_INPUT_RECORDS,
    "filesSize": semconv.SPARK_INPUT_BYTES,
    "numFiles": semconv.SPARK_INPUT_FILES,
}
_OF_WRITES: Final = {
    "numOutputRows": semconv.SPARK_OUTPUT_RECORDS,
    "numOutputBytes": semconv.SPARK_OUTPUT_BYTES,
    "numFiles": semconv.SPARK_OUTPUT_FILES,
}
_IN_MEMORY: Final = frozenset({"Scan ExistingRDD", "Scan OneRowRelation"})


def node(metrics: Any) -> Node:
    """Of a `pyspark.sql.metrics.PlanMetrics`."""
    known = {metric.name: metric.value for metric in metrics.metrics if metric.value}
    return Node(metrics.name.strip(), known)


def scans(nodes: Iterable[Node]) -> list[Node]:
    """Those that read from outside of Spark."""
    return [
        node
        for node in nodes
        if node.name.startswith(("Scan ", "BatchScan")) and node.name not in _IN_MEMORY
    ]


def figures(nodes: list[Node]) -> dict[str, int | float]:
    """Attributes of the operation: sums over its operators."""
    found: dict[str, int | float] = {}
    scanned = scans(nodes)
    for one in nodes:
        names = dict(_SUMS)
        if one in scanned:
            names.update(_OF_SCANS)
        elif "numOutputBytes" in one.metrics:
            names.update(_OF_WRITES)
        for metric, attribute in names.items():
            if metric in one.metrics:
                found[attribute] = found.get(attribute, 0) + int(one.metrics[metric])
        if wait := one.metrics.get("fetchWaitTime"):
            name = semconv.SPARK_SHUFFLE_FETCH_WAIT
            found[name] = found.get(name, 0.0) + wait / 1000
    return found


_GIVEN_NAME: Final = re.compile(r"[A-Za-z_][\w-]{0,63}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBERS: Final = frozenset({"byte", "short", "integer", "long", "float", "double"})


def observed(metrics: Any) -> dict[str, int | float]:
    """Attributes from a `PlanObservedMetrics`: numbers alone, and under a name the user chose.

    Text and times are cell values, whatever made them; and where no alias was given the name is the
    expression, with its literals.
    """
    found: dict[str, int | float] = {}
    name = "" if _UUID.fullmatch(metrics.name) else f"{metrics.name}."
    if name and not _GIVEN_NAME.fullmatch(metrics.name):
        return found
    for key, literal in zip(metrics.keys, metrics.metrics, strict=False):
        if literal.WhichOneof("literal_type") in _NUMBERS and _GIVEN_NAME.fullmatch(key):
            value = getattr(literal, literal.WhichOneof("literal_type"))
            found[f"{semconv.SPARK_OBSERVED}{name}{key}"] = value
    return found
