"""Log records, where ``OTEL_LOGS_EXPORTER`` asks for them: written to the journal like spans."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from stagewatch.exporters.journal import JournalWriter
from stagewatch.exporters.spans import clean, plain
from stagewatch.records import LogEmitted, ScopeDefined
from stagewatch.safety import guarded

_FIRST_SCOPE = 1 << 16
"""Scopes of logs and of spans are numbered apart."""
_journal: JournalWriter | None = None
_scopes: dict[tuple[str, str | None], int] = {}


def attach(journal: JournalWriter | None) -> None:
    """Write to *journal* from now on: the first, or that of a forked child; None: nowhere."""
    global _journal
    _journal = journal
    _scopes.clear()


def install(
    journal: JournalWriter, resource: Any, environ: Mapping[str, str], *, messages: bool = False
) -> None:
    """Set up the SDK's logger provider, if logs are asked for.

    What a record says is its author's choice; the message of an exception that goes with it is
    redacted unless *messages* is set.

    Python's ``logging`` is bridged where ``OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED`` says
    so, as with the stock SDK.
    """
    wanted = environ.get("OTEL_LOGS_EXPORTER", "").strip().lower()
    if wanted in ("", "none"):
        return
    from opentelemetry import _logs as api
    from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler, LogRecordProcessor

    attach(journal)

    class JournalProcessor(LogRecordProcessor):  # here, because the SDK's logs are imported late
        @guarded
        def on_emit(self, log_record: Any) -> None:
            if _journal is None:
                return
            scope = log_record.instrumentation_scope
            key = (scope.name if scope else "", scope.version if scope else None)
            number = _scopes.get(key)
            if number is None:
                number = _scopes[key] = _FIRST_SCOPE + len(_scopes)
                _journal.append(ScopeDefined(number, key[0], key[1], None))
            record = log_record.log_record
            severity = record.severity_number
            _journal.append(
                LogEmitted(
                    record.timestamp or record.observed_timestamp or 0,
                    record.observed_timestamp or 0,
                    severity.value if severity is not None else 0,
                    record.severity_text,
                    plain(record.body),
                    (record.trace_id or 0).to_bytes(16, "big"),
                    (record.span_id or 0).to_bytes(8, "big"),
                    number,
                    plain(clean(record.attributes, messages=messages)),
                    record.event_name,
                )
            )

        def shutdown(self) -> None: ...

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return True

    provider = LoggerProvider(resource, shutdown_on_exit=False)
    provider.add_log_record_processor(JournalProcessor())
    api.set_logger_provider(provider)
    bridge = environ.get("OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED", "")
    if bridge.strip().lower() == "true":
        logging.getLogger().addHandler(LoggingHandler(logger_provider=provider))
