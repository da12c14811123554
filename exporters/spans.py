"""Ended spans as journal records: the hot path of a job that traces much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import structs
from opentelemetry.sdk.trace import Event
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link

from stagewatch import clock, redaction
from stagewatch.exporters.journal import JournalWriter
from stagewatch.records import Attributes, Record, ScopeDefined, SpanEnded, SpanStarted
from stagewatch.safety import report

_MOST_BEGUN = 1000


class SpanWriter:
    """Writes spans to a journal; exception messages are redacted unless *messages* is set."""

    def __init__(self, *, messages: bool) -> None:
        self._append: Callable[[Record], None] = _nowhere
        self._messages = messages
        self._trace: tuple[int, bytes] = (0, b"")
        """Of the last span, as number and as bytes: the next one's is the same object."""
        self._scopes: dict[int, int] = {}
        self._kept: list[InstrumentationScope | None] = []
        """Scopes by their number; kept, so that no id of theirs is given again."""
        self._since = 0
        self._begun: set[int] = set()
        self.of_traces: dict[int, Any] = {}
        """What writes the spans of another run's trace, by trace id."""

    def attach(self, journal: JournalWriter) -> None:
        """Write to *journal* from now on: the first, or that of a forked child."""
        self._scopes = {}
        self._kept = []
        self._since = clock.now()
        self._begun = set()
        self._append = journal.append

    def detach(self) -> None:
        """Write nowhere: in a forked child, until it has a journal of its own."""
        self._append = _nowhere

    def begin(self, span: Any) -> None:
        """Append the beginning of an open span that gets a child, once; never raises.

        What was open before a fork is its own process's to end.
        """
        try:
            start = getattr(span, "_start_time", None)
            if start is None or start < self._since or span._end_time is not None:
                return
            trace_id, span_id, _, _, state, _ = span._context
            if other := self.of_traces.get(trace_id):
                other.begin(span)
                return
            if span_id in self._begun:
                return
            if len(self._begun) >= _MOST_BEGUN:  # said again is harmless
                self._begun.clear()
            self._begun.add(span_id)
            scope = self._scopes.get(id(span._instrumentation_scope))
            if scope is None:
                scope = self._define(span._instrumentation_scope)
            record = SpanStarted(
                span._name,
                trace_id.to_bytes(16, "big"),
                span_id.to_bytes(8, "big"),
                b"" if span._parent is None else span._parent[1].to_bytes(8, "big"),
                start,
                span._kind._value_,
                scope,
                clean(span._attributes, messages=self._messages),
                state.to_header() if state._dict else "",
            )
            try:
                self._append(record)
            except (TypeError, OverflowError, ValueError):
                self._append(structs.replace(record, attributes=plain(record.attributes)))
        except Exception as error:
            report(error)

    def write(self, span: Any) -> None:
        """Append one ended `ReadableSpan`; never raises."""
        # The fields behind the properties: those copy, and cost as much as all the rest. A test
        # pins them.
        try:
            trace_id, span_id, _, _, state, _ = span._context
            known, trace = self._trace
            if known is not trace_id:
                if other := self.of_traces.get(trace_id):
                    other.write(span)
                    return
                trace = trace_id.to_bytes(16, "big")
                self._trace = (trace_id, trace)
            parent = span._parent
            status = span._status
            attributes, events, links = span._attributes, span._events, span._links
            scope = self._scopes.get(id(span._instrumentation_scope))
            if scope is None:
                scope = self._define(span._instrumentation_scope)
            values = attributes._dict
            record = SpanEnded(
                span._name,
                trace,
                span_id.to_bytes(8, "big"),
                b"" if parent is None else parent[1].to_bytes(8, "big"),
                span._start_time,
                span._end_time,
                span._kind._value_,
                status._status_code._value_,
                self._message(status._description) if status._description else None,
                scope,
                values if values and _is_harmless(values) else self._cleaned(attributes),
                [self._event(event) for event in events] if events._dq else None,
                [self._link(link) for link in links] if links._dq else None,
                state.to_header() if state._dict else "",
                (attributes.dropped, events.dropped, links.dropped)
                if attributes.dropped or events.dropped or links.dropped
                else None,
            )
            try:
                self._append(record)
            except (TypeError, OverflowError, ValueError):  # numpy.float64, an int of 65 bits
                self._append(_plain_record(record))
        except Exception as error:
            report(error)

    def _define(self, scope: InstrumentationScope | None) -> int:
        number = self._scopes[id(scope)] = len(self._kept)
        self._kept.append(scope)
        self._append(
            ScopeDefined(
                number,
                scope.name if scope else "",
                scope.version if scope else None,
                scope.schema_url if scope else None,
            )
        )
        return number

    def _cleaned(self, attributes: Mapping[str, Any]) -> Attributes | None:
        return clean(attributes, messages=self._messages)

    def _message(self, text: str) -> str:
        return text if self._messages else redaction.message(text)

    def _event(self, event: Event) -> tuple[str, int, Attributes | None]:
        return (event.name, event.timestamp, clean(event.attributes, messages=self._messages))

    def _link(self, link: Link) -> tuple[bytes, bytes, Attributes | None]:
        context = link.context
        return (
            context.trace_id.to_bytes(16, "big"),
            context.span_id.to_bytes(8, "big"),
            clean(link.attributes, messages=self._messages),
        )


def _nowhere(record: Record) -> None:
    """Spans of a process that is no part of any run are not recorded."""


def clean(values: Mapping[str, Any] | None, *, messages: bool) -> Attributes | None:
    """Attributes as they are kept; *messages*: those of exceptions too."""
    # BoundedAttributes has the plain dict inside; its Mapping protocol costs 5 µs more.
    found = getattr(values, "_dict", None)
    if found is None:
        found = dict(values or {})
    if not found:
        return None
    return found if _is_harmless(found) else redaction.attributes(found, messages=messages)


_is_harmless = redaction.SENSITIVE.isdisjoint


def _plain_record(record: SpanEnded) -> SpanEnded:
    return structs.replace(
        record,
        name=plain(record.name),
        status_description=plain(record.status_description),
        attributes=plain(record.attributes),
        events=plain(record.events),
        links=plain(record.links),
    )


def plain(value: Any) -> Any:
    """*value* as msgpack can hold it; what it cannot becomes its text."""
    if value is None or isinstance(value, bool | bytes):
        return value
    if isinstance(value, int):
        return int(value) if -(1 << 63) <= value < 1 << 64 else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    # A file name that is not UTF-8 has lone surrogates, which nobody else can read.
    return str(value).encode("utf-8", "replace").decode()
