"""What a run says of the Spark application that it is: id, master, and where to look it up."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from stagewatch import recording, redaction, semconv
from stagewatch.safety import guarded


@guarded
def describe(context: Any) -> None:
    """Set the attributes of the run's span; of several contexts one after the other the last
    counts."""
    current = recording.active
    if current is None:
        return
    known = {
        semconv.SPARK_APPLICATION_ID: context.applicationId,
        semconv.SPARK_MASTER: _master(context.master),
    }
    where = _ui(context)
    if where:
        known[semconv.SPARK_UI_URL] = redaction.url(where)
    trace.get_current_span(current.run.context).set_attributes(known)


def _master(name: str) -> str:
    return redaction.url(name) if "//" in name else name  # ``local[2]``, ``yarn``


def _ui(context: Any) -> str | None:
    """Of the history where one is set up: it outlives the application."""
    history = context.getConf().get("spark.yarn.historyServer.address")
    if not history:
        return context.uiWebUrl  # type: ignore[no-any-return]
    if "://" not in history:
        history = f"http://{history}"
    return f"{history.rstrip('/')}/history/{context.applicationId}"
