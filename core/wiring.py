"""The SDK wired up for a job: what `stagewatch.distro` does once it knows that this is one."""

from __future__ import annotations

import os
from typing import Any

from opentelemetry import trace

from stagewatch import clock, lifecycle, semconv, surroundings
from stagewatch.exporters.spans import SpanWriter
from stagewatch.processors.span_processor import PipelineProcessor

_spans: SpanWriter | None = None


def configure() -> None:
    """Set up the tracer provider."""
    global _spans
    prepared = surroundings.prepare()
    if prepared is None:
        return
    import opentelemetry.sdk.trace as sdk
    from opentelemetry.sdk.resources import Resource

    from stagewatch.ids import OwnIds

    _spans = SpanWriter(messages=prepared.config.settings.exception_messages)
    # A user's span that a step of the clock falls into would be out of its stage, or negative.
    sdk.time_ns = clock.now  # type: ignore[attr-defined]
    # Of this SDK a forked child would start threads, to learn what it is; ours records for its
    # run as its parent does.
    sdk._get_process_dependent_resource = Resource.get_empty  # type: ignore[attr-defined]
    provider = sdk.TracerProvider(
        resource=_resource(prepared.pipeline.name),
        shutdown_on_exit=False,
        active_span_processor=PipelineProcessor(_spans.write, _spans.begin),
        **{"id_generator": OwnIds(), **_customised()},
    )
    trace.set_tracer_provider(provider)


def open_run() -> None:
    """Open the run, and record into it whatever SDK there is."""
    provider = trace.get_tracer_provider()
    spans, elsewhere = _spans, False
    if spans is None and hasattr(provider, "add_span_processor"):
        prepared = surroundings.prepare()
        if prepared is None:
            return
        spans, elsewhere = SpanWriter(messages=prepared.config.settings.exception_messages), True
        provider.add_span_processor(PipelineProcessor(spans.write, spans.begin))
    resource = getattr(provider, "resource", None)
    attributes = dict(resource.attributes) if resource is not None else {}
    journal = lifecycle.open_run(spans, attributes, elsewhere=elsewhere)
    if journal is None or elsewhere:
        return
    from stagewatch.exporters import logs, metrics

    metrics.install(journal, resource)
    prepared = surroundings.prepare()
    messages = prepared is not None and prepared.config.settings.exception_messages
    logs.install(journal, resource, os.environ, messages=messages)


def _resource(pipeline: str) -> Any:
    """The user's resource; the service is called as the pipeline, unless they say otherwise."""
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    named = OTELResourceDetector().detect().attributes.get(semconv.SERVICE_NAME)
    return Resource.create({} if named else {semconv.SERVICE_NAME: pipeline})


def _customised() -> dict[str, Any]:
    """The default sampler, and sampler and id generator that come from entry points; the SDK itself
    reads the others."""
    known = {"always_on", "always_off", "traceidratio"}
    sampler = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    generator = os.environ.get("OTEL_PYTHON_ID_GENERATOR", "").strip()
    found: dict[str, Any] = {}
    if sampler in ("", "parentbased_always_on"):
        from stagewatch.sampling import WithParent

        found["sampler"] = WithParent()
    if (not sampler or sampler.removeprefix("parentbased_") in known) and not generator:
        return found
    from opentelemetry.sdk import _configuration  # 40 ms: only for those who need it

    if sampler and sampler.removeprefix("parentbased_") not in known:
        found["sampler"] = _configuration._import_sampler(sampler)
    if generator:
        found["id_generator"] = _configuration._import_id_generator(generator)
    return found
