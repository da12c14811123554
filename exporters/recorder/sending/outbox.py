"""What waits in the history for one destination, signal by signal, batch by batch.

A batch is marked in one transaction when it was accepted: killed in between it is sent again,
with the same ids. What a backend refuses for its content is split until the bad item is found;
that one is counted and given up, so that it does not stand in the way of the others.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from msgspec import json, msgpack

from stagewatch import semconv
from stagewatch.database import PENDING, REJECTED, SENT, WAITING, transaction
from stagewatch.exporters import otlp
from stagewatch.exporters.channels import Channel, Reply, open_channel
from stagewatch.exporters.otlp import LogItem, Point, Resource, Scope
from stagewatch.exporters.recorder.intake import rows
from stagewatch.exporters.recorder.intake.increments import Increment, dropped
from stagewatch.exporters.recorder.intake.totals import Totals, is_delta
from stagewatch.exporters.recorder.sending import series
from stagewatch.exporters.state import Destination
from stagewatch.records import LogEmitted, SpanEnded
from stagewatch.safety import report

BATCH: Final = 1000
BATCH_BYTES: Final = 3_000_000
"""Of records, which are about as long in OTLP; gRPC servers take 4 MiB."""
_PROBE: Final = 50
"""Items with which a backend is tried that refused the last time: the others would be in vain."""
_CACHED: Final = 10_000

_decode_span = msgpack.Decoder(SpanEnded).decode
_decode_log = msgpack.Decoder(LogEmitted).decode


_MARK: Final = f"update span set state = ? where state = {PENDING} and n "


class _Delivery(NamedTuple):
    accepted: list[int]
    """Row ids, as in `bad`."""
    bad: list[int]
    rejected: int
    """Items of accepted requests that the backend did not take; it does not say which."""
    is_refused: bool
    """The rest was not taken, and may be later."""


class Outbox:
    """Over a connection of its own; for one thread. `send` raises sqlite3.Error."""

    def __init__(
        self, link: sqlite3.Connection, goal: Destination, environ: Mapping[str, str]
    ) -> None:
        self.signals = tuple(sorted(goal.protocols, key=("traces", "metrics", "logs").index))
        self.sent = dict.fromkeys(self.signals, 0)
        self.refusal = ""
        """Why the last request was not taken; empty if it was."""
        self._link = link
        self._goal = goal
        self._environ = environ
        self._channels: dict[str, Channel] = {}
        self._refused: set[str] = set()
        """Signals whose last request was not taken."""
        self._until: float | None = None
        self._resources: dict[int, Resource] = {}
        self._scopes: dict[int, Scope] = {}
        with transaction(link):
            self._destination = rows.destination_row(link, goal)
            self._interned = rows.Interned(link)
            self._delta = is_delta(goal)
            self._totals = Totals(link, self._destination, delta=self._delta)

    def send(self, signal: str, goes_on: Callable[[], bool]) -> bool:
        """Send what waits, while *goes_on* says so; False if the backend refused, for now."""
        if signal == "traces":
            return self._send_spans(goes_on)
        if signal == "logs":
            return self._send_logs(goes_on)
        return self._send_deltas(goes_on) and self._send_totals()

    def pending(self) -> dict[str, int]:
        """How much waits, by signal; only what is not 0."""
        counts = {
            signal: sum(
                self._link.execute(
                    f"select count(*) from {table}", (self._destination,)
                ).fetchone()[0]
                for table in WAITING[signal]
            )
            for signal in self.signals
        }
        return {signal: count for signal, count in counts.items() if count}

    def is_active(self) -> bool:
        """Whether a run is under way, so that totals are repeated."""
        return series.is_active(self._link, self._destination)

    def use(self, environ: Mapping[str, str]) -> None:
        """Other settings (header values) from the next request on."""
        self._environ = environ
        self.close()

    def hurry(self, until: float) -> None:
        """One attempt a request from now on, and none beyond *until* (monotonic seconds).

        May be called from another thread.
        """
        self._until = until
        for channel in list(self._channels.values()):
            channel.hurry(_left(until))

    def close(self) -> None:
        """Let go of connections; a request under way in another thread fails."""
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            channel.close()

    # --- signals ------------------------------------------------------------------------------

    def _send_spans(self, goes_on: Callable[[], bool]) -> bool:
        while goes_on():
            found = self._link.execute(
                "select n, resource, scope, threshold, record from span "
                f"where destination = ? and state = {PENDING} order by role, n limit ?",
                (self._destination, self._at_once("traces")),
            ).fetchall()
            if not found:
                return True
            found = _cut(found)
            items = {row[0]: row[1:] for row in found}
            self._learn(items.values())
            done = self._deliver("traces", items, self._spans_request)
            with transaction(self._link):
                for state, numbers in ((SENT, done.accepted), (REJECTED, done.bad)):
                    self._mark(state, numbers)
                self._count("traces", done)
            if done.is_refused:
                return False
        return True

    def _mark(self, state: int, numbers: list[int]) -> None:
        if not numbers:
            return
        first, last = min(numbers), max(numbers)
        if last - first == len(numbers) - 1:  # a burst: none between them is another's
            self._link.execute(_MARK + "between ? and ?", (state, first, last))
        else:
            listed = json.encode(numbers).decode()
            self._link.execute(_MARK + "in (select value from json_each(?))", (state, listed))

    def _spans_request(self, items: Sequence[Any]) -> bytes:
        spans = (
            (resource, scope, threshold, _decode_span(record))
            for resource, scope, threshold, record in items
        )
        return otlp.spans(spans, self._resources, self._scopes)

    def _send_logs(self, goes_on: Callable[[], bool]) -> bool:
        while goes_on():
            found = self._link.execute(
                "select n, resource, scope, record from log where destination = ? "
                "order by n limit ?",
                (self._destination, self._at_once("logs")),
            ).fetchall()
            if not found:
                return True
            found = _cut(found)
            items = {row[0]: row[1:] for row in found}
            self._learn(items.values())
            done = self._deliver("logs", items, self._logs_request)
            with transaction(self._link):
                gone = [(n,) for n in (*done.accepted, *done.bad)]
                self._link.executemany("delete from log where n = ?", gone)
                self._count("logs", done)
            if done.is_refused:
                return False
        return True

    def _logs_request(self, items: Sequence[Any]) -> bytes:
        logs = [LogItem(resource, scope, _decode_log(record)) for resource, scope, record in items]
        return otlp.logs(logs, self._resources, self._scopes)

    def _send_deltas(self, goes_on: Callable[[], bool]) -> bool:
        while self._delta and goes_on():
            items = series.deltas(self._link, self._destination, self._at_once("metrics"))
            if not items:
                return True
            self._learn_resources(point.resource for point in items.values())
            done = self._deliver("metrics", items, self._metrics_request)
            with transaction(self._link):
                gone = [(n,) for n in (*done.accepted, *done.bad)]
                self._link.executemany("delete from delta where n = ?", gone)
                self._count("metrics", done)
            if done.is_refused:
                return False
        return True

    def _send_totals(self) -> bool:
        if not series.has_news(self._link, self._destination):
            return True
        self._note_pending()
        found = series.totals(self._link, self._destination, delta=self._delta)
        for at in range(0, len(found), BATCH):
            part = {one.n: one for one in found[at : at + BATCH]}
            now = time.time_ns()
            # A series that is new to the backend, or may have gone stale there, first shows what
            # it was: else its first increment would be no increase.
            before = {
                n: one.before(now) for n, one in part.items() if not self._delta and one.is_new(now)
            }
            self._learn_resources(one.resource for one in part.values())
            if before and self._deliver("metrics", before, self._metrics_request).is_refused:
                return False
            now = max(time.time_ns(), now + 1_000_000)
            points = {n: one.point(now, delta=self._delta) for n, one in part.items()}
            done = self._deliver("metrics", points, self._metrics_request)
            with transaction(self._link):
                series.mark_sent(self._link, [part[n] for n in (*done.accepted, *done.bad)], now)
                self._count("metrics", done)
            if done.is_refused:
                return False
        return True

    def _metrics_request(self, items: Sequence[Point]) -> bytes:
        return otlp.metrics(items, self._resources)

    # --- delivery -----------------------------------------------------------------------------

    def _deliver(
        self, signal: str, items: Mapping[int, Any], encode: Callable[[Sequence[Any]], bytes]
    ) -> _Delivery:
        accepted: list[int] = []
        bad: list[int] = []
        rejected = 0
        waiting = [list(items)]
        while waiting:
            part = waiting.pop()
            reply = self._attempt(signal, [items[n] for n in part], encode)
            if reply.accepted:
                accepted += part
                rejected += min(reply.rejected, len(part))
            elif not reply.is_bad:
                return _Delivery(accepted, bad, rejected, True)
            elif len(part) == 1:
                bad += part
            else:
                half = len(part) // 2
                waiting += [part[half:], part[:half]]
        return _Delivery(accepted, bad, rejected, False)

    def _attempt(
        self, signal: str, items: list[Any], encode: Callable[[Sequence[Any]], bytes]
    ) -> Reply:
        try:
            request = encode(items)
        except Exception as error:  # of one item, such as a time before 1970: found by halving
            report(error)
            return Reply(False, is_bad=True)
        reply = self._channel(signal).send(request, once=signal in self._refused)
        self.refusal = reply.reason
        if reply.accepted or reply.is_bad:
            self._refused.discard(signal)
        else:
            self._refused.add(signal)
        return reply

    def _at_once(self, signal: str) -> int:
        return _PROBE if signal in self._refused else BATCH

    def _channel(self, signal: str) -> Channel:
        channel = self._channels.get(signal)
        if channel is None:
            try:
                channel = open_channel(signal, self._goal.protocols[signal], self._environ)
            except Exception as error:  # settings that the exporter cannot use
                report(error)
                fault = f"settings that cannot be used ({type(error).__name__})"
                return Channel(None, signal, fault)  # until they are mended
            self._channels[signal] = channel
        if self._until is not None:
            channel.hurry(_left(self._until))
        return channel

    def _count(self, signal: str, done: _Delivery) -> None:
        found = []
        if taken := len(done.accepted) - done.rejected:
            label = ((semconv.SIGNAL, signal),)
            found.append(Increment(semconv.TELEMETRY_SHIPPED, label, taken))
            self.sent[signal] += taken
        if lost := len(done.bad) + done.rejected:
            found.append(dropped(signal, "rejected", lost))
        if found:
            self._totals.add(found, None, self._interned.own_resource(), time.time_ns())

    def _note_pending(self) -> None:
        counts = self.pending()
        with transaction(self._link):
            self._totals.add(
                [
                    Increment(
                        semconv.TELEMETRY_PENDING,
                        ((semconv.SIGNAL, signal),),
                        counts.get(signal, 0),
                    )
                    for signal in self.signals
                    if signal != "metrics"  # what waits there is what is being sent
                ],
                None,
                self._interned.own_resource(),
                time.time_ns(),
            )

    def _learn(self, found: Collection[Any]) -> None:
        """Resources and scopes of rows that begin with their numbers."""
        self._learn_resources({row[0] for row in found})
        if len(self._scopes) > _CACHED:
            self._scopes.clear()
        for scope in {row[1] for row in found}:
            if scope not in self._scopes:
                row = self._link.execute(
                    "select name, version, schema_url from scope where id = ?", (scope,)
                ).fetchone()
                self._scopes[scope] = Scope(*row) if row else Scope("", "", "")

    def _learn_resources(self, numbers: Iterable[int]) -> None:
        if len(self._resources) > _CACHED:
            self._resources.clear()
        for number in numbers:
            if number not in self._resources:
                row = self._link.execute(
                    "select attributes, messages from resource where id = ?", (number,)
                ).fetchone()
                attributes, messages = row or (b"\x80", 0)
                self._resources[number] = Resource(msgpack.decode(attributes), bool(messages))


def _cut(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    total = 0
    for number, row in enumerate(found):
        total += len(row[-1])
        if total > BATCH_BYTES and number:
            return found[:number]
    return found


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.05)
