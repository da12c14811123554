"""Our sampler decides as the SDK's default does; our processor hands on to the user's."""

import itertools
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, ParentBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from stagewatch.processors.span_processor import PipelineProcessor
from stagewatch.sampling import WithParent

PARENTS = [
    SpanContext(trace_id, 7, is_remote, TraceFlags(flags), state)
    for trace_id, is_remote, flags, state in itertools.product(
        (0, 5), (True, False), (0, 1, 2, 3), (TraceState(), TraceState([("a", "1")]))
    )
]


@pytest.mark.parametrize("attributes", [None, {"a": 1}])
def test_decides_as_the_default(attributes: Any) -> None:
    """Decision, attributes and trace state, for parents of every kind in turn and for none."""
    ours = WithParent()
    for parent in [*PARENTS, *reversed(PARENTS)]:
        context = set_span_in_context(NonRecordingSpan(parent))
        found, expected = (
            sampler.should_sample(context, 5, "name", attributes=attributes)
            for sampler in (ours, DEFAULT_ON)
        )
        assert found.decision is expected.decision
        assert found.attributes == expected.attributes
        assert found.trace_state is expected.trace_state
    assert isinstance(ours, ParentBased)
    assert ours.get_description() == DEFAULT_ON.get_description()


def test_processors_of_the_user_see_every_span() -> None:
    """Added before or in the middle: starts and ends come to them, after ours."""
    seen: list[str] = []

    class Theirs(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            seen.append(f"start {span.name}")

        def on_end(self, span: Any) -> None:
            seen.append(f"end {span.name}")

    ours = PipelineProcessor(lambda span: seen.append(f"ours {span.name}"))
    provider = TracerProvider(active_span_processor=ours, shutdown_on_exit=False)
    tracer = provider.get_tracer("t")
    with tracer.start_as_current_span("a"):
        provider.add_span_processor(Theirs())
        with tracer.start_as_current_span("b"):
            pass
    assert seen == ["start b", "ours b", "end b", "ours a", "end a"]
    assert provider.force_flush()
