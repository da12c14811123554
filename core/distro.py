"""What ``opentelemetry-instrument`` finds: the SDK wired up, and a loader that cannot hurt.

Order in the process: `Distro`, `Configurator`, `open_run` (before the instrumentors, which want to
know the pipeline), instrumentors. Where another distribution's configurator was chosen, `open_run`
attaches to its SDK.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.dependencies import DependencyConflictError
from opentelemetry.instrumentation.distro import BaseDistro  # type: ignore[attr-defined]

from stagewatch import clock, lifecycle, semconv, surroundings
from stagewatch.exporters.spans import SpanWriter
from stagewatch.processors.span_processor import PipelineProcessor
from stagewatch.safety import guarded

_logger = logging.getLogger(__name__)
_OURS = {"requests": "stagewatch_requests", "threading": "stagewatch_concurrent"}
"""Ours in place of upstream instrumentors: they load those when it is time, or do without."""

_spans: SpanWriter | None = None


class Distro(BaseDistro):  # type: ignore[misc]
    """Loads instrumentors so that none stops the next."""

    def _configure(self, **kwargs: Any) -> None: ...

    def load_instrumentor(self, entry_point: Any, **kwargs: Any) -> None:
        """Check each library's version: upstream does so once per distribution, and ours holds
        them all. Raises ImportError and DependencyConflictError, which upstream's loader expects.
        """
        name = entry_point.name
        if name in _OURS and _OURS[name] not in _disabled():
            return
        if not _disabled().isdisjoint(_other_names(name)):
            return
        kwargs |= {"skip_dep_check": False, "raise_exception_on_conflict": True}
        absent: Exception | None = None
        with guarded:
            try:
                super().load_instrumentor(entry_point, **kwargs)
            except (DependencyConflictError, ImportError) as error:
                absent = error
        if absent:
            raise absent


def _other_names(name: str) -> set[str]:
    """``pandas`` stands for ``stagewatch_pandas``, ``threading`` for ``stagewatch_concurrent``."""
    upstream = {theirs for theirs, ours in _OURS.items() if ours == name}
    return upstream | {name.removeprefix("stagewatch_")}


def _disabled() -> set[str]:
    """What the user does not want; ``pandas`` there means ``stagewatch_pandas`` too."""
    names = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    return {name.strip() for name in names}


class Configurator:
    """Sets up the SDK's tracer provider, and makes the others only where they are used."""

    @guarded
    def configure(self, **_: Any) -> None:
        """Called by ``opentelemetry-instrument``; never raises."""
        global _spans
        prepared = surroundings.prepare()
        if prepared is None:
            return
        import opentelemetry.sdk.trace as sdk

        from stagewatch.ids import OwnIds

        _spans = SpanWriter(messages=prepared.config.settings.exception_messages)
        # A user's span that a step of the clock falls into would be out of its stage, or negative.
        sdk.time_ns = clock.now  # type: ignore[attr-defined]
        provider = sdk.TracerProvider(
            resource=_resource(prepared.pipeline.name),
            shutdown_on_exit=False,
            active_span_processor=PipelineProcessor(_spans.write),
            **{"id_generator": OwnIds(), **_customised()},
        )
        trace.set_tracer_provider(provider)


@guarded
def open_run() -> None:
    """Entry point ``opentelemetry_pre_instrument``: the run is open before anything is patched."""
    provider = trace.get_tracer_provider()
    spans, elsewhere = _spans, False
    if spans is None and hasattr(provider, "add_span_processor"):
        prepared = surroundings.prepare()
        if prepared is None:
            return
        spans, elsewhere = SpanWriter(messages=prepared.config.settings.exception_messages), True
        provider.add_span_processor(PipelineProcessor(spans.write))
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
