"""A YAML file into a type, with the line of every fault; imported only where there is a file.

Scalars are read as the type asks, not as YAML guesses: ``version: 1.10`` stays ``1.10``, and
``1:30`` is not 90.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

import yaml
from msgspec import inspect as types

from stagewatch.values import KINDS, nearest, shown

_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_T = TypeVar("_T")
_NOTHING = yaml.ScalarNode("tag:yaml.org,2002:null", "")
_PLAIN_KINDS = {types.StrType: "text", types.FloatType: "number", types.IntType: "count"}


def read(text: bytes, label: str, cls: type[_T]) -> tuple[_T | None, list[str]]:
    """The file as a `cls`, and what is wrong with it; None if anything is.

    `label` is the file's name in the messages: ``LABEL:LINE: PATH: what is wrong``.
    """
    try:
        loader = _loader(text)
        try:
            reader = _Reader(label, loader)
            root = loader.get_single_node() or _NOTHING
            value = reader.read(root, types.type_info(cls), "", 1)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{mark.line + 1}" if mark else "1"
        return None, [f"{label}:{line}: not YAML: {error.problem or error.context}"]
    except (yaml.YAMLError, UnicodeError) as error:
        return None, [f"{label}:1: not YAML: {shown(str(error))[1:-1]}"]
    except RecursionError:
        return None, [f"{label}:1: nested too deeply"]
    if reader.faults:
        return None, [fault for _line, fault in sorted(reader.faults, key=lambda f: f[0])]
    return cast(_T, value), []


def _loader(text: bytes) -> Any:
    # libyaml's recursion ends the process (seen at 40,000 levels); Python's raises.
    may_be_deep = sum(text.count(opener) for opener in (b"[", b"{", b"- ", b"? ")) > 5000
    return (yaml.SafeLoader if may_be_deep else _FastLoader)(text)


class _Reader:
    """Walks nodes and types side by side and collects all faults on the way."""

    def __init__(self, label: str, loader: Any) -> None:
        self.label = label
        self.loader = loader
        self.faults: list[tuple[int, str]] = []
        self.mappings: dict[yaml.Node, dict[str, tuple[int, yaml.Node]]] = {}

    def fault(self, line: int, path: str, what: str) -> Any:
        where = f"{self.label}:{line}: {path}: " if path else f"{self.label}:{line}: "
        self.faults.append((line, where + what))
        return None

    def read(self, node: yaml.Node, kind: types.Type, path: str, line: int) -> Any:
        """The value of one node; after a fault, None."""
        match kind:
            case types.UnionType():
                return self.read(node, _not_none(kind), path, line)
            case types.StructType():
                return self._struct(node, kind, path, line)
            case types.DictType():
                pairs = self._pairs(node, path, line) or {}
                inside = kind.value_type
                return {
                    key: self._entry(key, value, inside, f"{path}.{key}", at)
                    for key, (at, value) in pairs.items()
                }
            case types.VarTupleType():
                if not isinstance(node, yaml.SequenceNode):
                    return self.fault(line, path, f"{_described(node)} is not a list (- …)")
                return tuple(
                    self.read(item, kind.item_type, f"{path}[{n}]", _line(item))
                    for n, item in enumerate(node.value)
                )
            case _:
                return self._scalar(node, kind, path)

    def _entry(self, key: str, node: yaml.Node, kind: types.Type, path: str, line: int) -> Any:
        if not key.strip():
            return self.fault(line, path, "a name is empty")
        if isinstance(kind, types.StructType):
            return self._struct(node, kind, path, line, key)
        return self.read(node, kind, path, line)

    def _scalar(self, node: yaml.Node, kind: types.Type, path: str) -> Any:
        if not isinstance(node, yaml.ScalarNode) or _is_null(node):
            return self.fault(_line(node), path, f"{_described(node)} is not a value")
        try:
            return KINDS[kind_of(kind)].parse(node.value)
        except ValueError as error:
            return self.fault(_line(node), path, str(error))

    def _struct(
        self,
        node: yaml.Node,
        kind: types.StructType,
        path: str,
        line: int,
        key: str | None = None,
    ) -> Any:
        fields = {field.name: field for field in kind.fields}
        known = [name for name, field in fields.items() if source(field) == "file"]
        given: dict[str, Any] = {n: key for n, f in fields.items() if source(f) == "key"}
        before = len(self.faults)
        pairs = self._pairs(node, path, line)
        if pairs is None:
            return None
        for name, (at, value) in pairs.items():
            here = f"{path}.{name}" if path else name
            if name in known:
                if not _is_null(value) or fields[name].required:
                    given[name] = self.read(value, fields[name].type, here, at)
            elif name in fields and source(fields[name]) == "environment":
                variable = f"STAGEWATCH_{name.upper()}"
                self.fault(at, here, f"belongs to one process: set {variable} instead")
            else:
                meant = nearest(name, known)
                hint = f"did you mean {meant}?" if meant else f"known are {', '.join(known)}"
                self.fault(at, here, f"unknown key ({hint})")
        for name in known:
            if fields[name].required and name not in given:
                self.fault(line, f"{path}.{name}", "is missing")
        return None if len(self.faults) > before else kind.cls(**given)

    def _pairs(
        self, node: yaml.Node, path: str, line: int
    ) -> dict[str, tuple[int, yaml.Node]] | None:
        """Key → line and value, without duplicates; merge keys (``<<``) are followed.

        None, and a fault, where there is no mapping.
        """
        if _is_null(node):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.fault(line, path, f"{_described(node)} is not a mapping (key: value)")
            return None
        if node in self.mappings:
            # An alias: merged already, which cannot be told from declared twice.
            return self.mappings[node]
        own: dict[str, int] = {}
        for key, _value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None:
                self.fault(_line(key), path, f"{_described(key)} is not a key")
            elif name in own:
                here = f"{path}.{name}" if path else name
                self.fault(_line(key), here, f"declared twice (first in line {own[name]})")
            else:
                own[name] = _line(key)
        self.loader.flatten_mapping(node)
        self.mappings[node] = {
            key.value: (_line(key), value)
            for key, value in node.value
            if isinstance(key, yaml.ScalarNode)
        }
        return self.mappings[node]


def source(field: types.Field) -> str:
    """Where the value comes from: ``file``, ``key`` or ``environment``."""
    extra = (isinstance(field.type, types.Metadata) and field.type.extra) or {}
    return str(extra.get("source", "file"))


def kind_of(kind: types.Type) -> str:
    """Name in `KINDS` of a scalar's type."""
    if isinstance(kind, types.Metadata):
        return str((kind.extra or {}).get("kind") or kind_of(kind.type))
    if isinstance(kind, types.UnionType):
        return kind_of(_not_none(kind))
    return _PLAIN_KINDS[type(kind)]


def _not_none(kind: types.UnionType) -> types.Type:
    return next(t for t in kind.types if not isinstance(t, types.NoneType))


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == _NOTHING.tag


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1 if node.start_mark else 1


def _described(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "nothing" if _is_null(node) else shown(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


# --- for editors ------------------------------------------------------------------------------


def schema(cls: type, title: str) -> dict[str, Any]:
    """JSON schema (2020-12) of the files that `read` takes for `cls`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **_schema(types.type_info(cls)),
    }


def _schema(kind: types.Type) -> dict[str, Any]:
    match kind:
        case types.UnionType():
            return _schema(_not_none(kind))
        case types.StructType():
            fields = [f for f in kind.fields if source(f) == "file"]
            described: dict[str, Any] = {
                "description": (kind.cls.__doc__ or "").strip(),
                "type": ["object", "null"],
                "additionalProperties": False,
                "properties": {f.name: _property(kind.cls, f) for f in fields},
            }
            required = [f.name for f in fields if f.required]
            return {**described, "required": required} if required else described
        case types.DictType():
            return {
                "type": ["object", "null"],
                "additionalProperties": _schema(kind.value_type),
            }
        case types.VarTupleType():
            return {"type": "array", "items": _schema(kind.item_type)}
        case _:
            return dict(KINDS[kind_of(kind)].schema)


def _property(cls: type, field: types.Field) -> dict[str, Any]:
    described = _schema(field.type)
    extra = field.type.extra_json_schema if isinstance(field.type, types.Metadata) else None
    text = (extra or {}).get("description") or _comments(cls).get(field.name)
    if text:
        described["description"] = text
    if isinstance(field.default, bool | int | float | str):
        described["default"] = field.default
    return described


def _comments(cls: type) -> dict[str, str]:
    """The strings under a class's fields: Python forgets them, the source does not."""
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    return dict(_commented(tree.body))


def _commented(body: list[Any]) -> Iterator[tuple[str, str]]:
    import ast

    for field, below in zip(body, body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                yield name, " ".join(text.split())
