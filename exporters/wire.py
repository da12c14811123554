"""Spans in protobuf's wire format, byte by byte: a third of what message objects cost.

Only what every span has; events and links are rare, and are built as messages. A test compares
all of it with what the official messages read.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Any, Final

from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from stagewatch import redaction
from stagewatch.records import Attributes, SpanEnded

_HEAD: Final = Struct("<2s16s2s8sBBBQBQ")
_DOUBLE: Final = Struct("<d")
_MAX_INT: Final = 1 << 63
_REMEMBERED: Final = 4096
_LONG: Final = 256
"""A text of so many characters is not the same again."""
_MESSAGE, _STACKTRACE = "exception.message", "exception.stacktrace"
_WATCHED: Final = redaction.SENSITIVE | {_MESSAGE, _STACKTRACE}
_BOOLEAN, _INTEGER, _REAL = b"\x10", b"\x18", b"\x21"
"""Fields of `AnyValue`."""
_SHORT: Final = tuple(bytes((number,)) for number in range(0x80))


def span(ended: SpanEnded, threshold: str | None, messages: bool) -> bytes:
    """The `Span` message.

    *threshold*: ``th`` value of the sample it stands for; *messages*: exception messages may be
    exported.
    """
    parts = [
        _HEAD.pack(
            b"\x0a\x10", ended.trace_id, b"\x12\x08", ended.span_id,
            0x30, ended.kind + 1, 0x39, ended.start, 0x41, ended.end,
        ),
        _named(ended.name),
    ]  # fmt: skip
    if ended.parent_span_id:
        parts.append(b"\x22\x08" + ended.parent_span_id)
    if (values := ended.attributes) is not None:
        if not _is_harmless(values):
            values = exported(values, messages)
        parts.append(attributes(values, b"\x4a"))
    if ended.status:
        status = b"\x18" + varint(ended.status)
        if messages and ended.status_description:
            text = ended.status_description.encode("utf-8", "replace")
            status = block(b"\x12", text) + status
        parts.append(block(b"\x7a", status))
    state = ended.trace_state
    if threshold is not None:
        state = with_threshold(state, threshold)
    if state:
        parts.append(block(b"\x1a", state.encode()))
    if ended.events or ended.links or ended.dropped:
        parts.append(_rest(ended, messages))
    return b"".join(parts)


def attributes(values: Attributes, tag: bytes) -> bytes:
    """One `KeyValue` per attribute, each under the field *tag*."""
    known = _remembered[tag]
    parts = []
    for pair in values.items():
        name, value = pair
        kind = value.__class__
        if kind is str:
            parts.append(known.texts.get(pair) or known.text(name, value))
        elif kind is int and 0 <= value < _MAX_INT:
            number = varint(value)
            size = len(number)
            parts.append(known.integers[size].get(name) or known.integer(name, size))
            parts.append(number)
        elif kind is float:
            parts.append(known.reals.get(name) or known.real(name))
            parts.append(_pack_double(value))
        elif kind is bool:
            parts.append(known.booleans.get(pair) or known.boolean(name, value))
        else:
            message = AnyValue()
            put_value(message, value)
            parts.append(tag + _pair(name, message.SerializeToString()))
    return b"".join(parts)


class _Remembered:
    """What most spans share is encoded once: attributes, but for their numbers."""

    def __init__(self, tag: bytes) -> None:
        self._tag = tag
        self.texts: dict[tuple[str, str], bytes] = {}
        self.booleans: dict[tuple[str, bool], bytes] = {}
        self.reals: dict[str, bytes] = {}
        self.integers: list[dict[str, bytes]] = [{} for _ in range(10)]
        """By the bytes that the number takes, 1 to 9."""

    def text(self, name: str, value: str) -> bytes:
        made = self._tag + _pair(name, block(b"\x0a", value.encode("utf-8", "replace")))
        return _remember(self.texts, (name, value), made) if len(value) < _LONG else made

    def boolean(self, name: str, value: bool) -> bytes:
        made = self._tag + _pair(name, _BOOLEAN + _SHORT[value])
        return _remember(self.booleans, (name, value), made)

    def real(self, name: str) -> bytes:
        return _remember(self.reals, name, self._before(name, _REAL, 8))

    def integer(self, name: str, size: int) -> bytes:
        return _remember(self.integers[size], name, self._before(name, _INTEGER, size))

    def _before(self, name: str, field: bytes, size: int) -> bytes:
        return self._tag + _pair(name, field + bytes(size))[:-size]


def _pair(name: str, value: bytes) -> bytes:
    """A `KeyValue`, behind its length; *value*: its `AnyValue`."""
    return block(b"", block(b"\x0a", name.encode("utf-8", "replace")) + block(b"\x12", value))


def _remember(known: dict[Any, bytes], key: Any, made: bytes) -> bytes:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = made
    return made


_remembered: Final = {tag: _Remembered(tag) for tag in (b"\x0a", b"\x4a")}


def block(tag: bytes, body: bytes) -> bytes:
    """A field with a length."""
    return tag + varint(len(body)) + body


def varint(number: int) -> bytes:
    """A number that is not negative."""
    if number < 0x80:
        return _SHORT[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    if number < 0x200000:
        return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14))
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def with_threshold(state: str, threshold: str) -> str:
    """A trace state with the threshold in OpenTelemetry's own entry, which goes first."""
    entries = [entry for entry in state.split(",") if entry]
    own = next((entry[3:] for entry in entries if entry.startswith("ot=")), "")
    kept = [part for part in own.split(";") if part and not part.startswith("th:")]
    others = [entry for entry in entries if not entry.startswith("ot=")]
    return ",".join(["ot=" + ";".join([f"th:{threshold}", *kept]), *others])


def exported(values: Attributes, messages: bool) -> Attributes:
    """Without exception messages, unless the user opted in, and without other secrets."""
    if not redaction.SENSITIVE.isdisjoint(values):
        values = redaction.attributes(values, messages=messages)
    if messages or (_MESSAGE not in values and _STACKTRACE not in values):
        return values
    kept = {name: value for name, value in values.items() if name != _MESSAGE}
    if _STACKTRACE in kept:
        kept[_STACKTRACE] = redaction.stacktrace(str(kept[_STACKTRACE]))
    return kept


def put(target: Any, values: Attributes) -> None:
    """Add attributes to a repeated field of a message."""
    for name, value in values.items():
        put_value(target.add(key=name).value, value)


def put_value(target: Any, value: Any) -> None:
    """Fill an `AnyValue`."""
    match value:
        case str():
            target.string_value = value
        case bool():
            target.bool_value = value
        case int() if -_MAX_INT <= value < _MAX_INT:
            target.int_value = value
        case float():
            target.double_value = value
        case bytes():
            target.bytes_value = value
        case list() | tuple():
            target.array_value.SetInParent()
            for one in value:
                put_value(target.array_value.values.add(), one)
        case dict():
            target.kvlist_value.SetInParent()
            for name, one in value.items():
                put_value(target.kvlist_value.values.add(key=str(name)).value, one)
        case None:
            pass
        case _:
            target.string_value = str(value)


@lru_cache(_REMEMBERED)
def _named(name: str) -> bytes:
    return block(b"\x2a", name.encode("utf-8", "replace"))


def _rest(ended: SpanEnded, messages: bool) -> bytes:
    message = Span()
    for name, time, values in ended.events or ():
        event = message.events.add(name=name, time_unix_nano=time)
        put(event.attributes, exported(values or {}, messages))
    for trace_id, span_id, values in ended.links or ():
        link = message.links.add(trace_id=trace_id, span_id=span_id)
        put(link.attributes, exported(values or {}, messages))
    if ended.dropped:
        (
            message.dropped_attributes_count,
            message.dropped_events_count,
            message.dropped_links_count,
        ) = ended.dropped
    made: bytes = message.SerializeToString()
    return made


_is_harmless: Final = _WATCHED.isdisjoint
_pack_double: Final = _DOUBLE.pack
