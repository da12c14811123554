"""What `stagewatch doctor` looks at around us: versions, launcher, libraries, ``OTEL_*``, backend.

Every function yields `Check`s and raises nothing that a wrong environment could cause. No value of
a setting that may hold a secret is ever part of a check.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from msgspec import Struct

from stagewatch.exporters.state import SIGNALS, Destination

CONNECT_SECONDS: Final = 2.0


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    TROUBLE = "trouble"


class Check(Struct, frozen=True):
    """One line of the diagnosis."""

    level: Level
    topic: str
    text: str
    """One sentence."""


# --- versions ---------------------------------------------------------------------------------


def versions() -> Iterator[Check]:
    """Python, and whether the OpenTelemetry packages are of one release: their pins are exact."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found = {
        str(canonicalize_name(dist.metadata["Name"])): dist
        for dist in metadata.distributions()
        if dist.metadata["Name"]
    }
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    ours = found["stagewatch"].version if "stagewatch" in found else "not installed"
    yield Check(Level.OK, "versions", f"stagewatch {ours}, Python {python} ({sys.executable})")
    family = [name for name in found if name.startswith("opentelemetry-")] + ["stagewatch"]
    broken = False
    for name in sorted(set(family) & set(found)):
        for line in found[name].requires or []:
            wanted = Requirement(line)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            installed = found.get(str(canonicalize_name(wanted.name)))
            if installed is None:
                text = f"{name} needs {wanted.name}, which is not installed"
            elif not wanted.specifier.contains(installed.version, prereleases=True):
                text = f"{name} {found[name].version} needs {wanted.name}{wanted.specifier}, "
                text += f"but {installed.version} is installed"
            else:
                continue
            broken = True
            yield Check(Level.TROUBLE, "versions", text)
    if not broken:
        shown = ", ".join(
            f"{name} {found[name].version}"
            for name in ("opentelemetry-sdk", "opentelemetry-instrumentation")
            if name in found
        )
        yield Check(Level.OK, "versions", f"{shown}: one coherent set")


# --- launcher and instrumentors ---------------------------------------------------------------


def launcher(environ: Mapping[str, str]) -> Iterator[Check]:
    """Whose distro and configurator `opentelemetry-instrument` would choose, and why."""
    for kind in ("distro", "configurator"):
        variable = f"OTEL_PYTHON_{kind.upper()}"
        there = [point.name for point in metadata.entry_points(group=f"opentelemetry_{kind}")]
        wanted = environ.get(variable)
        chosen = next((name for name in there if wanted in (None, name)), None)
        others = ", ".join(name for name in there if name != "stagewatch")
        if chosen == "stagewatch" and wanted:
            text, level = f"ours, because {variable} says so", Level.OK
        elif chosen == "stagewatch" and not others:
            text, level = "ours, there is no other", Level.OK
        elif chosen == "stagewatch":
            text = f"ours, because it is found first; beside it: {others}; "
            text, level = text + f"set {variable}=stagewatch to be sure", Level.WARNING
        elif wanted and chosen:
            text = f'"{chosen}", because {variable} says so; {_without(kind)}'
            level = Level.WARNING
        elif wanted:
            text = f'{variable} asks for "{wanted}", which is not installed; {_without(kind)}; '
            text, level = text + f"set {variable}=stagewatch", Level.TROUBLE
        else:
            text = f'"{chosen}" is found first; {_without(kind)}; set {variable}=stagewatch'
            level = Level.TROUBLE
        yield Check(level, kind, text)


def _without(kind: str) -> str:
    if kind == "distro":
        return "without ours one failing instrumentor stops all others"
    text = "without ours the history is kept, but spans, metrics and logs of other libraries are "
    return text + "left to that configurator's exporters and lost where those lose them"


def disabled(environ: Mapping[str, str]) -> frozenset[str]:
    """Names in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``; ``*`` is all."""
    names = environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")
    return frozenset(name.strip() for name in names if name.strip())


def instrumentors(environ: Mapping[str, str]) -> Iterator[Check]:
    """Which libraries would be patched; what is disabled, of a wrong version or broken."""
    off = disabled(environ)
    absent = []
    there = metadata.entry_points(group="opentelemetry_instrumentor")
    for point in there:
        library = point.name.removeprefix("stagewatch_")
        if f"stagewatch_{point.name}" in there.names:
            continue  # ours applies the upstream one itself
        if point.name == "threading" and "stagewatch_concurrent" in there.names - off:
            continue  # ours stands for it
        if off & {"*", point.name, library}:
            text = f"{point.name}: disabled by OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"
            yield Check(Level.WARNING, "libraries", text)
            continue
        try:
            conflict = _conflict(point)
        except Exception as error:  # a foreign class: anything may be wrong with it
            text = f"{point.name}: cannot be loaded ({type(error).__name__})"
            yield Check(Level.TROUBLE, "libraries", text)
            continue
        if conflict is None:
            yield Check(Level.OK, "libraries", f"{point.name}: patches {_patched(library)}")
        elif conflict:
            text = f"{point.name}: patches nothing, {conflict}"
            yield Check(Level.WARNING, "libraries", text)
        else:
            absent.append(point.name)
    if absent:
        text = f"not installed, so nothing to patch: {', '.join(sorted(absent))}"
        yield Check(Level.OK, "libraries", text)


def _conflict(point: metadata.EntryPoint) -> str | None:
    """Why it cannot be applied: None if it can, empty if its library is not installed."""
    from opentelemetry.instrumentation.dependencies import (
        get_dependency_conflicts,
        get_dist_dependency_conflicts,
    )

    dist = point.dist
    if dist is not None and dist.metadata["Name"] != "stagewatch":
        found = get_dist_dependency_conflicts(dist)
    else:
        found = get_dependency_conflicts(point.load()().instrumentation_dependencies())
    if found is None:
        return None
    here = found.found or ", ".join(found.found_any or ())
    wanted = found.required or " or ".join(map(str, found.required_any or ()))
    return f"it wants {wanted}, but there is {here}" if here else ""


def _patched(library: str) -> str:
    if library == "functions":
        return "the functions declared as stages in stagewatch.yaml"
    if library == "concurrent":
        return "threads, executors and pools"
    try:
        return f"{library} {metadata.version(library)}"
    except metadata.PackageNotFoundError:
        return library


# --- OTEL_* settings --------------------------------------------------------------------------

_HONOURED: Final = re.compile(
    r"SDK_DISABLED|SERVICE_NAME|RESOURCE_ATTRIBUTES|(TRACES|METRICS|LOGS)_EXPORTER|PROPAGATORS"
    r"|TRACES_SAMPLER(_ARG)?|(SPAN_|EVENT_|LINK_)?ATTRIBUTE_COUNT_LIMIT|SPAN_(EVENT|LINK)_COUNT_LIMIT"
    r"|(SPAN_)?ATTRIBUTE_VALUE_LENGTH_LIMIT|LOGRECORD_ATTRIBUTE_(COUNT|VALUE_LENGTH)_LIMIT"
    r"|EXPORTER_OTLP_((TRACES|METRICS|LOGS)_)?(ENDPOINT|PROTOCOL|HEADERS|CERTIFICATE|CLIENT_KEY"
    r"|CLIENT_CERTIFICATE|COMPRESSION|TIMEOUT|INSECURE)"
    r"|EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE|SEMCONV_STABILITY_OPT_IN"
    r"|EXPERIMENTAL_RESOURCE_DETECTORS|LOG_LEVEL|INSTRUMENTATION_.*"
    r"|PYTHON_(DISTRO|CONFIGURATOR|DISABLED_INSTRUMENTATIONS|ID_GENERATOR|CONTEXT"
    r"|EXPORTER_OTLP_.*_CREDENTIAL_PROVIDER|INSTRUMENTATION_.*|.*EXCLUDED_URLS|AUTO_INSTRUMENTATION_.*)"
)
_ELSEWHERE: Final = "the recorder sends, not a processor in the job"
_UNSUPPORTED: Final = (
    (r"BSP_.*|BLRP_.*", _ELSEWHERE),
    (r"METRIC_EXPORT_(INTERVAL|TIMEOUT)", "the recorder sends every 10 s and at a run's end"),
    (r"METRICS_EXEMPLAR_FILTER", "exemplars are not recorded"),
    (r"EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "histograms have fixed bounds"),
    (r"(EXPERIMENTAL_)?CONFIG_FILE", "declarative configuration is not read"),
    (r"EXPORTER_(JAEGER|ZIPKIN|PROMETHEUS)_.*", "only OTLP is sent"),
    (r"PYTHON_(TRACER|METER|LOGGER)_(PROVIDER|CONFIGURATOR)", "the providers are ours"),
    (r"PYTHON_SDK_INTERNAL_METRICS_ENABLED", "`stagewatch.telemetry.*` says the same"),
    (r"PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED", "OTEL_LOGS_EXPORTER=otlp turns logs on"),
)
_EXPORTERS: Final = frozenset({"", "otlp", "otlp_proto_http", "otlp_proto_grpc", "none"})


def settings(environ: Mapping[str, str]) -> Iterator[Check]:
    """``OTEL_*`` that do nothing here, or nothing at all; and what is off altogether."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield Check(Level.WARNING, "settings", "OTEL_SDK_DISABLED=true: nothing is recorded")
    fine = 0
    for variable in sorted(name for name in environ if name.startswith("OTEL_")):
        name = variable.removeprefix("OTEL_")
        if re.fullmatch(r"(TRACES|METRICS|LOGS)_EXPORTER", name):
            asked = {part.strip().lower() for part in environ[variable].split(",")}
            for part in sorted(asked - _EXPORTERS):
                text = f"{variable}: {part} is not supported; only otlp and none are"
                yield Check(Level.WARNING, "settings", text)
        if re.fullmatch(_HONOURED, name):
            fine += 1
            if name.endswith("HEADERS"):
                count = sum("=" in part for part in environ[variable].split(","))
                text = f"{variable}: set, {count} {'header' if count == 1 else 'headers'}"
                yield Check(Level.OK, "settings", text)
            continue
        reason = next((why for what, why in _UNSUPPORTED if re.fullmatch(what, name)), None)
        if reason:
            text = f"{variable} is not supported: {reason}"
        else:
            text = f"{variable} is not a setting we know{_meant(variable)}"
        yield Check(Level.WARNING, "settings", text)
    if fine:
        yield Check(Level.OK, "settings", f"{fine} OTEL_* variables are set and honoured")


def _meant(variable: str) -> str:
    from difflib import get_close_matches

    from opentelemetry import environment_variables as api
    from opentelemetry.sdk import environment_variables as sdk

    known = [name for module in (api, sdk) for name in vars(module) if name.startswith("OTEL_")]
    close = get_close_matches(variable, known, n=1, cutoff=0.85)
    return f"; did you mean {close[0]}?" if close else ""


# --- backend ----------------------------------------------------------------------------------


class Address(Struct, frozen=True):
    """Where a signal goes, without anything secret."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


def address(endpoint: str, protocol: str) -> Address | None:
    """None for an endpoint that the exporter of *protocol* cannot use."""
    if protocol != "grpc" and "://" not in endpoint:
        return None
    try:
        parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    fallback = 80 if protocol != "grpc" and parts.scheme == "http" else 443
    return Address(parts.scheme, parts.hostname, port or fallback)


def backend(goal: Destination, environ: Mapping[str, str]) -> Iterator[Check]:
    """Whether somebody answers where each signal is sent to: a TCP connection, at most 2 s."""
    if not goal.endpoints:
        text = "OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing is sent, all stays in the history"
        yield Check(Level.OK, "backend", text)
        return
    for name in ("CERTIFICATE", "CLIENT_CERTIFICATE", "CLIENT_KEY"):
        for prefix in ("", *(f"{signal.upper()}_" for signal in SIGNALS)):
            variable = f"OTEL_EXPORTER_OTLP_{prefix}{name}"
            if environ.get(variable) and not Path(environ[variable]).is_file():
                yield Check(Level.TROUBLE, "backend", f"{variable}: there is no such file")
    signals: dict[Address, list[str]] = {}
    for signal, endpoint in goal.endpoints.items():
        protocol = goal.protocols[signal]
        if protocol not in ("grpc", "http/protobuf"):
            text = f"{signal}: the protocol {protocol} is not supported (http/protobuf, grpc)"
            yield Check(Level.TROUBLE, "backend", text)
        elif where := address(endpoint, protocol):
            signals.setdefault(where, []).append(signal)
            if protocol != "grpc" and where.port == 4317:
                text = f"{signal}: port 4317 speaks gRPC as a rule, but the protocol is {protocol}"
                yield Check(Level.WARNING, "backend", text)
        else:
            text = f"{signal}: the endpoint is not a URL such as http://localhost:4318"
            yield Check(Level.TROUBLE, "backend", text)
    for where, error in _connections(list(signals)).items():
        names = ", ".join(signals[where])
        if error:
            yield Check(Level.TROUBLE, "backend", f"{names}: nobody answers at {where} ({error})")
        else:
            yield Check(Level.OK, "backend", f"{names}: {where} answers")


def _connections(addresses: list[Address]) -> dict[Address, str | None]:
    """What is wrong with each address, None if nothing is; all at once, within the bound."""
    found: dict[Address, str | None] = dict.fromkeys(addresses, "no answer within 2 s")

    def connect(where: Address) -> None:
        try:
            socket.create_connection((where.host, where.port), CONNECT_SECONDS).close()
            found[where] = None
        except TimeoutError:
            return
        except (OSError, ValueError) as error:  # a host name may not even be encodable
            found[where] = getattr(error, "strerror", None) or type(error).__name__

    threads = [threading.Thread(target=connect, args=[one], daemon=True) for one in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        # The name's look-up has a timeout of its own that nobody can set: leave it behind.
        thread.join(CONNECT_SECONDS)
    return dict(found)
