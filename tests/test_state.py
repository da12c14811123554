"""Where things lie, and who shares a recorder with whom."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest

from stagewatch.exporters import state
from stagewatch.exporters.state import Destination, destination

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4318"}
LOCAL = Destination("local")


def test_nothing_is_sent_without_endpoint() -> None:
    """No endpoint, no destination: all stays in the local history."""
    assert destination({}) == LOCAL
    assert destination({"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}) == LOCAL
    assert (
        destination({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"})
        == LOCAL
    )


@pytest.mark.parametrize(
    ("environ", "protocols"),
    [
        (ENDPOINT, {"traces": "http/protobuf", "metrics": "http/protobuf"}),
        ({**ENDPOINT, "OTEL_LOGS_EXPORTER": "otlp", "OTEL_METRICS_EXPORTER": "none"},
         {"traces": "http/protobuf", "logs": "http/protobuf"}),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
         {"traces": "grpc", "metrics": "grpc"}),
        ({**ENDPOINT, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": "grpc"},
         {"traces": "http/protobuf", "metrics": "grpc"}),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "console, otlp_proto_grpc"},
         {"traces": "grpc", "metrics": "http/protobuf"}),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "console"}, {"metrics": "http/protobuf"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x/v1/traces"}, {"traces": "http/protobuf"}),
    ],
)  # fmt: skip
def test_signals_and_protocols(environ: dict[str, str], protocols: dict[str, str]) -> None:
    """Which signals are sent, and how, as OpenTelemetry's variables say."""
    assert destination(environ).protocols == protocols


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"OTEL_EXPORTER_OTLP_HEADERS": "authorization=new"}, True),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_RESOURCE_ATTRIBUTES": "a=b"}, True),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "3"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://localhost:4319"}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, False),
        ({"OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem"}, False),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "delta"}, False),
        ({"OTEL_LOGS_EXPORTER": "otlp"}, False),
    ],
)
def test_same_recorder(change: dict[str, str], is_same: bool) -> None:
    """Endpoint, protocol, TLS, compression and temporality make a recorder; headers do not."""
    assert (destination({**ENDPOINT, **change}).key == destination(ENDPOINT).key) is is_same


def test_certificate_is_the_same_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means the file in the job's directory, in the recorder's directory too."""
    monkeypatch.chdir(tmp_path)
    relative = {**ENDPOINT, "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem"}
    absolute = {**ENDPOINT, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem")}
    assert destination(relative).key == destination(absolute).key


def test_directory_is_made_and_private(tmp_path: Path) -> None:
    """State directory and room are for their owner only."""
    found = state.state_directory(tmp_path / "a" / "b", is_default=True)
    room = state.room(found, LOCAL, 7)
    assert room == tmp_path / "a" / "b" / "rooms" / "local-7"
    assert state.room(found, LOCAL, 7) == room
    for path in (found, room):
        assert path.stat().st_mode & 0o777 == 0o700


def test_unusable_directory_moves_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can be made a temporary directory serves, and one line says so."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with caplog.at_level(logging.WARNING):
        found = state.state_directory(tmp_path / "file" / "state", is_default=False)
    assert found == tmp_path / f"stagewatch-{os.getuid()}"
    (line,) = caplog.messages
    assert str(tmp_path / "file" / "state") in line and str(found) in line


def test_read_only_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root may write everywhere, but not on a read-only mount."""
    if os.geteuid():
        pytest.skip("only root may mount")
    place = tmp_path / "ro"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place]).returncode:
        pytest.skip("no tmpfs here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    try:
        for configured in (place, place / "below"):
            found = state.state_directory(configured, is_default=False)
            assert found == tmp_path / f"stagewatch-{os.getuid()}"
        assert len(caplog.messages) == 2
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def test_somebody_elses_temporary_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link or a file that waits under our name in a shared directory is not followed."""
    (tmp_path / "file").touch()
    (tmp_path / "trap").mkdir()
    (tmp_path / f"stagewatch-{os.getuid()}").symlink_to(tmp_path / "trap")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = state.state_directory(tmp_path / "file" / "x", is_default=False)
    assert found.parent == tmp_path and found.name not in ("trap", f"stagewatch-{os.getuid()}")
    assert list((tmp_path / "trap").iterdir()) == []


def test_network_file_system_moves_only_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS a shared mapping is no shared memory; who configured it himself is believed."""
    monkeypatch.setattr(state, "_file_system", lambda path: 0x6969)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    elsewhere = tmp_path / f"stagewatch-{os.getuid()}"
    assert state.state_directory(tmp_path / "a", is_default=True) == elsewhere
    assert state.state_directory(tmp_path / "b", is_default=False) == tmp_path / "b"


def test_file_system_of_a_path_to_be(tmp_path: Path) -> None:
    """The file system of a directory that does not exist yet is that of its nearest parent."""
    assert state._file_system(tmp_path / "a" / "b") == state._file_system(tmp_path) != 0


def test_settings_are_remembered_without_secrets(tmp_path: Path) -> None:
    """Who reads a room's journals with other settings finds the room's, and no secret there."""
    environ = {
        **ENDPOINT,
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=secret",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=secret",
        "HOME": "/secret",
    }
    room = state.room(tmp_path, destination(environ), 7)
    assert state.remembered_settings(room, {}) is None
    assert state.remembered_settings(room, environ) == environ
    state.remember_settings(room, environ)
    assert b"secret" not in (room / "settings").read_bytes()
    assert state.remembered_settings(room, {"A": "b"}) == {"A": "b", **ENDPOINT}
    other = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere", "A": "b"}
    assert state.remembered_settings(room, other) == {"A": "b", **ENDPOINT}
    local = state.room(tmp_path, LOCAL, 7)
    assert state.remembered_settings(local, other) == {"A": "b"}


@pytest.mark.parametrize("secret", ["user:secret@localhost", "localhost/?api-key=secret"])
def test_endpoint_with_credentials_is_not_remembered(tmp_path: Path, secret: str) -> None:
    """Credentials in an endpoint, as a key in its query, never come to the disk."""
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{secret}"}
    room = state.room(tmp_path, destination(environ), 7)
    state.remember_settings(room, environ)
    assert list(room.iterdir()) == []
