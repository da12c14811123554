"""Structured Streaming: where queries start and stop, and where the user's function gets a batch.

What queries and batches become is in `queries` and `batches`.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Struct

from stagewatch.instrumentation._base import Arguments, Function, Patch, beside
from stagewatch.instrumentation.pyspark import attaching
from stagewatch.instrumentation.pyspark.batches import Inside
from stagewatch.instrumentation.pyspark.streams import Streams
from stagewatch.safety import guarded
from stagewatch.stage_calls import drop_first_frame


def _starting(_: Arguments) -> None:
    """A query: a context that was there before us is listened to from now on."""
    _here()


def _started(_: Arguments, query: Any) -> None:
    """Only here its trigger is to be had."""
    if (streams := _here()) is not None:
        jvm = query._jsq
        run = jvm.runId().toString()
        trigger = jvm.streamingQuery().trigger().toString()
        streams.started(jvm.id().toString(), run, trigger)


def _stopping(args: Arguments) -> None:
    if (streams := _here()) is not None:
        streams.stopping(args[0]._jsq.id().toString())


def _runs_batch(wrapped: Function) -> Function:
    """Of what the JVM calls with every batch, in a thread of its own."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = _enter(*args)
        try:
            result = wrapped(*args, **kwargs)
        except BaseException as error:
            _leave(call, error)
            drop_first_frame(error)
            raise
        _leave(call, None)
        return result

    return wrapper


class _Call(Struct, frozen=True):
    streams: Streams
    inside: Inside


def _enter(function: Any = None, frame: Any = None, number: int = -1, *_: Any) -> _Call | None:
    with guarded:
        streams = _here()
        if streams is None or number < 0:
            return None
        session = function.session
        query_id = session.sparkContext.getLocalProperty("sql.streaming.queryId")
        if not streams.is_open(query_id):  # its start has been posted, but is not told yet
            query = session._jsparkSession.streams().get(query_id)
            streams.open(query_id, query.runId().toString(), query.name())
        inside = streams.enter(query_id, number)
        return _Call(streams, inside) if inside is not None else None
    return None


def _leave(call: _Call | None, error: BaseException | None) -> None:
    with guarded:
        if call is not None:
            call.streams.leave(call.inside, error)


def _here() -> Streams | None:
    with guarded:
        attached = attaching.here()
        return attached.streams if attached is not None else None
    return None


_starts = beside(_starting, _started)

PATCHES: Final = (
    Patch("pyspark.sql.streaming.readwriter", "DataStreamWriter.start", _starts),
    Patch("pyspark.sql.streaming.readwriter", "DataStreamWriter.toTable", _starts),
    Patch("pyspark.sql.streaming.query", "StreamingQuery.stop", beside(_stopping)),
    Patch("pyspark.sql.utils", "ForeachBatchFunction.call", _runs_batch),
)
