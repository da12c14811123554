"""Where everything lies on disk, and which recorder a process belongs to.

``STATE/history.db`` is shared by all; ``STATE/rooms/DESTINATION-NAMESPACE/`` holds lock, socket,
journals and status pages of the processes that one recorder looks after: those with the same
exporter settings in the same PID namespace.
"""

from __future__ import annotations

import ctypes
import logging
import os
import stat
from _blake2 import blake2b
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct, field

from stagewatch.exporters.journal import pid_namespace
from stagewatch.system import LINUX

_logger = logging.getLogger(__name__)

SIGNALS: Final = ("traces", "metrics", "logs")
_NETWORK_FILE_SYSTEMS: Final = {0x6969, 0x65735546, 0xFF534D42, 0xFE534D42, 0x01021997, 0x00C36400}
_COPY_ON_WRITE_FILE_SYSTEMS: Final = {0x9123683E, 0x2FC12FC1, 0xCA451A4E}
_DEFAULT_PROTOCOL: Final = "http/protobuf"
# What makes two exporters different ones; header values may change (a token that was renewed).
_IDENTITY: Final = (
    "ENDPOINT",
    "PROTOCOL",
    "CERTIFICATE",
    "CLIENT_CERTIFICATE",
    "CLIENT_KEY",
    "COMPRESSION",
    "INSECURE",
)

FILE_SETTINGS: Final = ("CERTIFICATE", "CLIENT_KEY")
"""Ends of the names of settings that are paths."""


class Destination(Struct, frozen=True):
    """Where telemetry goes to."""

    key: str
    """``local`` when nothing is sent, else 12 hex digits of the settings below."""
    protocols: dict[str, str] = field(default_factory=dict)
    """Signal to ``http/protobuf`` or ``grpc``, for the signals that are sent."""
    endpoints: dict[str, str] = field(default_factory=dict)
    """Signal to endpoint as the user gave it."""
    temporality: str = "cumulative"
    """Of metrics: ``cumulative``, ``delta`` or ``lowmemory``."""


def destination(environ: Mapping[str, str]) -> Destination:
    """Read ``OTEL_EXPORTER_OTLP_*`` and ``OTEL_{TRACES,METRICS,LOGS}_EXPORTER``.

    A signal is sent if it has an endpoint and its exporter is ``otlp`` (or, but for logs, unset).
    """
    identity: list[str] = []
    protocols: dict[str, str] = {}
    endpoints: dict[str, str] = {}
    for signal in SIGNALS:
        exporter = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower()
        wanted = {name.strip() for name in exporter.split(",")}
        if exporter and not wanted & {"otlp", "otlp_proto_http", "otlp_proto_grpc"}:
            continue
        if signal == "logs" and not exporter:
            continue
        settings = {name: _otlp(environ, signal, name) for name in _IDENTITY}
        if not settings["ENDPOINT"]:
            continue
        protocols[signal] = (
            "grpc" if "otlp_proto_grpc" in wanted else settings["PROTOCOL"] or _DEFAULT_PROTOCOL
        )
        endpoints[signal] = settings["ENDPOINT"]
        identity += [signal, protocols[signal], *(settings[name] for name in _IDENTITY)]
    if not identity:
        return Destination("local")
    temporality = environ.get(
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "cumulative"
    ).lower()
    identity.append(temporality)
    # hashlib would load OpenSSL into every job.
    key = blake2b("\0".join(identity).encode(), digest_size=6).hexdigest()
    return Destination(key, protocols, endpoints, temporality)


def _otlp(environ: Mapping[str, str], signal: str, name: str) -> str:
    own = environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}")
    value = (own or environ.get(f"OTEL_EXPORTER_OTLP_{name}") or "").strip()
    # The recorder lives in another directory and has to find the same file, and the same key.
    return os.path.abspath(value) if value and name.endswith(FILE_SETTINGS) else value


def state_directory(configured: Path, *, is_default: bool) -> Path:
    """*configured*, made and writable; else a temporary directory, with one warning.

    A default on NFS or FUSE moves to local storage: a shared mapping there is no shared memory.
    """
    if is_default and _file_system(configured) in _NETWORK_FILE_SYSTEMS:
        return _elsewhere(configured, "is on a network file system")
    try:
        configured.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return _elsewhere(configured, f"cannot be made ({error.strerror})")
    if not _is_writable(configured):
        return _elsewhere(configured, "cannot be written")
    return configured


def place(configured: Path, environ: Mapping[str, str]) -> tuple[Path, Path]:
    """State directory and room of this process; made if need be. Raises OSError."""
    directory = state_directory(configured, is_default="STAGEWATCH_STATE_DIR" not in environ)
    return directory, room(directory, destination(environ), pid_namespace())


def room(state: Path, goal: Destination, namespace: int) -> Path:
    """The directory of one recorder's lock, socket, journals and pages; made if need be."""
    path = state / "rooms" / f"{goal.key}-{namespace}"
    try:
        os.utime(path)  # rooms that nobody comes to are deleted
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def remember_settings(place: Path, environ: Mapping[str, str]) -> None:
    """Leave in the room *place* what makes its destination, for who takes in its journals later.

    No header, and no endpoint that carries credentials or a query string. Raises OSError.
    """
    kept = {name: environ[name] for name in _settings() if environ.get(name)}
    if not any("@" in value or "?" in value for value in kept.values()):
        temporary = place / f"settings.{os.getpid()}"
        temporary.write_bytes(msgspec.json.encode(kept))
        temporary.rename(place / "settings")


def remembered_settings(place: Path, environ: Mapping[str, str]) -> dict[str, str] | None:
    """*environ* with the settings of the room *place*; None if they are not known."""
    key = place.name.partition("-")[0]
    if destination(environ).key == key:
        return dict(environ)
    others = {name: value for name, value in environ.items() if name not in _settings()}
    if key == "local":
        return others
    try:
        kept = msgspec.json.decode((place / "settings").read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return None
    found = others | kept
    return found if destination(found).key == key else None


def _settings() -> list[str]:
    names = ["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"]
    for signal in SIGNALS:
        names.append(f"OTEL_{signal.upper()}_EXPORTER")
        names += (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}" for name in _IDENTITY)
    return names + [f"OTEL_EXPORTER_OTLP_{name}" for name in _IDENTITY]


def is_copy_on_write(path: Path) -> bool:
    """Whether preallocation reserves nothing at *path*, so that a mapped store may be a SIGBUS."""
    return _file_system(path) in _COPY_ON_WRITE_FILE_SYSTEMS


def _is_writable(path: Path) -> bool:
    # os.access says yes to root on a read-only mount's directory of another; statvfs knows.
    try:
        return os.access(path, os.W_OK | os.X_OK) and not os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        return False


def _elsewhere(wanted: Path, reason: str) -> Path:
    import tempfile  # rarely needed, and it takes milliseconds

    path = Path(tempfile.gettempdir()) / f"stagewatch-{os.getuid()}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        foreign = not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid()
    except OSError:
        foreign = True
    if foreign:
        path = Path(tempfile.mkdtemp(prefix="stagewatch-"))
    _logger.warning("stagewatch: the state directory %s %s; using %s", wanted, reason, path)
    return path


def _file_system(path: Path) -> int:
    """Magic number of statfs(2) of *path*, or of its nearest parent that exists; 0 if unknown."""
    if not LINUX:  # where its structure is larger, and begins with something else
        return 0
    buffer = ctypes.create_string_buffer(256)
    statfs = getattr(ctypes.CDLL(None), "statfs", None)
    while statfs is not None:
        if statfs(os.fsencode(path), buffer) == 0:
            return int.from_bytes(buffer.raw[:4], "little")
        if path.parent == path:
            break
        path = path.parent
    return 0
