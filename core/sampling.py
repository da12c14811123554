"""The SDK's default sampler at a third of its cost, where there is a parent: a run always is one.

The SDK asks for the current span three times, and makes the same result anew for every span.
"""

from __future__ import annotations

from collections.abc import Sequence

from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState, get_current_span
from opentelemetry.util.types import Attributes


class WithParent(ParentBased):
    """``parentbased_always_on``: sampled if the parent is, or if there is none."""

    def __init__(self) -> None:
        super().__init__(ALWAYS_ON)
        self._last = SamplingResult(Decision.RECORD_AND_SAMPLE)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See `ParentBased`."""
        parent = get_current_span(parent_context).get_span_context()
        _, _, _, flags, state, is_valid = parent  # a tuple: its properties cost a call each
        if not (is_valid and flags & 1):
            return super().should_sample(parent_context, trace_id, name, kind, attributes, links)
        found = self._last
        if attributes is not None or found.trace_state is not state:
            found = SamplingResult(Decision.RECORD_AND_SAMPLE, attributes, state)
            if attributes is None:
                self._last = found
        return found
