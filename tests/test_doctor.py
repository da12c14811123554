"""`stagewatch doctor`: what it finds wrong, in which words, and that it keeps secrets."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from stagewatch import checks, doctor
from stagewatch.checks import Check, Level
from stagewatch.exporters.state import destination
from tests.prepared import run, span, store

COMMAND = Path(sys.executable).with_name("stagewatch")


def texts(found: list[Check], topic: str, level: Level | None = None) -> list[str]:
    """Sentences on one topic."""
    return [check.text for check in found if check.topic == topic and level in (None, check.level)]


def examined(state: Path, **settings: str) -> list[Check]:
    """The diagnosis of a job that has no configuration file."""
    return doctor.examine({"STAGEWATCH_STATE_DIR": str(state)} | settings, Path("/"))


@pytest.fixture
def listener() -> Iterator[int]:
    """A port on loopback where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port on loopback that is taken, but where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# --- configuration and state ------------------------------------------------------------------


def test_every_topic_is_looked_at(tmp_path: Path) -> None:
    """No look fails on an ordinary machine, and none is left out."""
    found = examined(tmp_path / "state")
    assert {check.topic for check in found} == {
        "versions", "configuration", "settings", "distro", "configurator", "libraries", "state",
        "recorder", "backend", "telemetry",
    }  # fmt: skip
    assert not [check for check in found if "could not be looked at" in check.text]


def test_wrong_configuration_is_the_jobs_own_line(tmp_path: Path) -> None:
    """The command exits 1 and prints the line the job warned with."""
    file = tmp_path / "stagewatch.yaml"
    file.write_text('pipelines:\n  sales:\n    sla:\n      deadline: "45x"\n')
    done = subprocess.run(
        [COMMAND, "doctor"],
        cwd=tmp_path,
        env={"STAGEWATCH_STATE_DIR": str(tmp_path / "state"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    line = (
        'stagewatch.yaml:4: pipelines.sales.sla.deadline: "45x" is not a duration '
        "(45m, 1h30m, PT45M)"
    )
    assert done.returncode == 1
    assert [text for text in done.stdout.splitlines() if text.endswith(line)][0].startswith("✗")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="sys.monitoring misses nothing")
def test_functions_of_the_script_may_be_late(tmp_path: Path) -> None:
    """Which declared functions are hard to catch on 3.11; methods and modules are not."""
    file = tmp_path / "stagewatch.yaml"
    file.write_text(
        "pipelines:\n  sales:\n    stages:\n      extract: {}\n"
        "      load: {function: Loader.load}\n      clean: {function: 'jobs.clean:run'}\n"
    )
    found = examined(tmp_path / "state", STAGEWATCH_CONFIG=str(file))
    assert texts(found, "configuration", Level.TROUBLE) == []
    (late,) = [text for text in texts(found, "configuration") if "may miss" in text]
    assert late.startswith("sales: the script's own functions (extract) may miss")


def test_what_has_no_effect_is_said(tmp_path: Path) -> None:
    """A deadline counts from a scheduled time; without any it would say nothing for ever."""
    file = tmp_path / "stagewatch.yaml"
    file.write_text(
        "pipelines:\n"
        "  sales:\n"
        "    sla: {deadline: 5m, start_grace: 1m, escalation: [{after: 1m, severity: page}]}\n"
        "    stages: {load: {max_error_ratio: 0.1}}\n"
        "  nightly: {schedule: {cron: '0 2 * * *'}, sla: {deadline: 5m, max_age: 3d}}\n"
        "  hourly: {sla: {max_duration: 5m, escalation: [{after: 1m, severity: page}]}}\n"
    )

    def remarks(**settings: str) -> list[str]:
        found = examined(tmp_path / "state", STAGEWATCH_CONFIG=str(file), **settings)
        return texts(found, "configuration", Level.WARNING)

    assert remarks() == [
        "sales: without effect: sla.deadline counts from the scheduled time: it needs a schedule "
        "or STAGEWATCH_SCHEDULED_TIME (did you mean max_duration?)",
        "sales: without effect: sla.escalation needs a deadline that counts, or a max_duration",
        "sales: without effect: sla.start_grace needs a schedule",
        "sales: without effect: max_error_ratio (load) is not judged yet",
    ]
    assert len(remarks(STAGEWATCH_SCHEDULED_TIME="2026-11-21T02:00:00Z")) == 2


def test_unusable_state_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jobs have to move elsewhere, doctor says where to."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "file").touch()
    found = examined(tmp_path / "file" / "state")
    (trouble,) = texts(found, "state", Level.TROUBLE)
    assert trouble.startswith(f"{tmp_path / 'file' / 'state'} cannot be used; jobs write to ")


def test_settings_of_ours(tmp_path: Path) -> None:
    """What is set is shown; a name that was mistyped is recognised."""
    found = examined(tmp_path / "state", STAGEWATCH_DETAIL_RATIO="0.5", STAGEWATCH_DETAL_CAP="7")
    assert 'STAGEWATCH_DETAIL_RATIO="0.5"' in texts(found, "settings", Level.OK)
    assert texts(found, "settings", Level.WARNING) == [
        "STAGEWATCH_DETAL_CAP is not a setting we know; did you mean STAGEWATCH_DETAIL_CAP?"
    ]


def test_journals_without_recorder(tmp_path: Path) -> None:
    """Journals that nobody takes in are named."""
    room = tmp_path / "state" / "rooms" / "local-1"
    room.mkdir(parents=True, mode=0o700)
    (room / "1.2.ab.0.journal").touch()
    (warning,) = texts(examined(tmp_path / "state"), "recorder", Level.WARNING)
    assert warning.startswith(f"journals wait in {room}, and no recorder lives")


def test_pending(tmp_path: Path) -> None:
    """What waits for another backend than this environment's is said."""
    one = run(1)
    store(tmp_path / "state", one, [span(one, 5, "a", 0, 1)], pending_for="elsewhere")
    assert "pending for another backend (elsewhere): 1 trace" in texts(
        examined(tmp_path / "state"), "telemetry", Level.WARNING
    )


# --- backend ----------------------------------------------------------------------------------


def backend(environ: Mapping[str, str]) -> list[tuple[Level, str]]:
    """What is found out about the backend alone."""
    return [(check.level, check.text) for check in checks.backend(destination(environ), environ)]


def test_no_endpoint() -> None:
    """Without an endpoint nothing is wrong, and nothing is sent."""
    ((level, text),) = backend({})
    assert level is Level.OK
    assert "nothing is sent" in text


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_backend_answers(listener: int, protocol: str) -> None:
    """One connection per address, whatever the number of signals."""
    where = f"http://127.0.0.1:{listener}"
    found = backend({"OTEL_EXPORTER_OTLP_ENDPOINT": where, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol})
    assert found == [(Level.OK, f"traces, metrics: {where} answers")]


def test_backend_is_dead_for_one_signal(listener: int, dead_port: int) -> None:
    """Each signal has an endpoint of its own; the dead one is named, without its credentials."""
    found = backend(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{listener}",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://me:s3cret@127.0.0.1:{dead_port}/v1?t=1",
        }
    )
    refused = f"metrics: nobody answers at http://127.0.0.1:{dead_port} (Connection refused)"
    assert found == [
        (Level.OK, f"traces: http://127.0.0.1:{listener} answers"),
        (Level.TROUBLE, refused),
    ]


def test_silent_backend_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that drops packets costs the bound and no more."""
    monkeypatch.setattr(checks, "CONNECT_SECONDS", 0.2)
    over = threading.Event()

    def hang(*_: object) -> None:
        over.wait(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    begun = time.monotonic()
    ((level, text),) = backend({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://192.0.2.1:4318"})
    over.set()
    assert time.monotonic() - begun < 20
    assert (level, text.endswith("(no answer within 2 s)")) == (Level.TROUBLE, True)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"ENDPOINT": "localhost:4318"}, "the endpoint is not a URL such as http://localhost:4318"),
        ({"ENDPOINT": "http://"}, "the endpoint is not a URL such as http://localhost:4318"),
        ({"ENDPOINT": "http://h:x"}, "the endpoint is not a URL such as http://localhost:4318"),
        (
            {"ENDPOINT": "http://127.0.0.1:1", "PROTOCOL": "http/json"},
            "the protocol http/json is not supported (http/protobuf, grpc)",
        ),
    ],
)
def test_wrong_endpoints(settings: dict[str, str], complaint: str) -> None:
    """What the exporter could not use is said without trying it."""
    environ = {f"OTEL_EXPORTER_OTLP_{name}": text for name, text in settings.items()}
    environ["OTEL_METRICS_EXPORTER"] = "none"
    assert backend(environ) == [(Level.TROUBLE, f"traces: {complaint}")]


def test_host_name_that_is_none() -> None:
    """A name that cannot even be looked up is an answer, not a traceback."""
    ((level, text),) = backend({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{'a' * 70}.example:1"})
    assert level is Level.TROUBLE
    assert text.startswith("traces, metrics: nobody answers at http://aaa")


def test_missing_certificate(listener: int) -> None:
    """A certificate file that is not there would fail every export."""
    found = backend(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"https://127.0.0.1:{listener}",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem",
        }
    )
    assert (Level.TROUBLE, "OTEL_EXPORTER_OTLP_CERTIFICATE: there is no such file") in found


# --- OTEL_* -----------------------------------------------------------------------------------


def test_unsupported_settings() -> None:
    """Settings without effect are named with the reason; typing errors with what was meant."""
    found = checks.settings(
        {
            "OTEL_BSP_SCHEDULE_DELAY": "1",
            "OTEL_SERVICE_NAM": "x",
            "OTEL_SDK_DISABLED": "true",
            "OTEL_TRACES_EXPORTER": "otlp,console",
            "OTEL_TRACES_SAMPLER": "always_on",
        }
    )
    assert [(check.level.value, check.text) for check in found] == [
        ("warning", "OTEL_SDK_DISABLED=true: nothing is recorded"),
        (
            "warning",
            "OTEL_BSP_SCHEDULE_DELAY is not supported: the recorder sends, not a processor in "
            "the job",
        ),
        (
            "warning",
            "OTEL_SERVICE_NAM is not a setting we know; did you mean OTEL_SERVICE_NAME?",
        ),
        ("warning", "OTEL_TRACES_EXPORTER: console is not supported; only otlp and none are"),
        ("ok", "3 OTEL_* variables are set and honoured"),
    ]


def test_every_variable_of_the_sdk_is_decided() -> None:
    """Each setting the SDK knows is honoured or refused with a reason: none is unknown."""
    from opentelemetry.sdk import environment_variables as sdk

    names = [name for name in vars(sdk) if name.startswith("OTEL_")]
    assert len(names) > 60
    unknown = [
        check.text for check in checks.settings(dict.fromkeys(names, "")) if "know" in check.text
    ]
    assert unknown == []


def test_header_values_are_never_printed(tmp_path: Path) -> None:
    """Headers are counted; their values stand nowhere, nor do an endpoint's credentials."""
    found = examined(
        tmp_path / "state",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer s3cret",
        OTEL_EXPORTER_OTLP_TRACES_HEADERS="a=s3cret,b=s3cret",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://me:s3cret@127.0.0.1:1/?key=s3cret",
    )
    assert "OTEL_EXPORTER_OTLP_HEADERS: set, 1 header" in texts(found, "settings")
    assert "OTEL_EXPORTER_OTLP_TRACES_HEADERS: set, 2 headers" in texts(found, "settings")
    assert "s3cret" not in doctor.checks_text(found).plain


# --- launcher, libraries, versions ------------------------------------------------------------


def offer(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let these distros and configurators be installed, in this order."""

    def entry_points(*, group: str) -> metadata.EntryPoints:
        return metadata.EntryPoints(metadata.EntryPoint(name, "m:f", group) for name in names)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


@pytest.mark.parametrize(
    ("names", "setting", "level", "words"),
    [
        (["stagewatch"], None, Level.OK, "ours, there is no other"),
        (["stagewatch", "aws"], None, Level.WARNING, "found first; beside it: aws; set OTEL_PY"),
        (["aws", "stagewatch"], None, Level.TROUBLE, '"aws" is found first; without ours'),
        (["aws", "stagewatch"], "stagewatch", Level.OK, "ours, because OTEL_PYTHON_"),
        (["aws", "stagewatch"], "aws", Level.WARNING, '"aws", because OTEL_PYTHON_'),
        (["stagewatch"], "gone", Level.TROUBLE, 'asks for "gone", which is not installed'),
    ],
)
def test_launcher(
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    setting: str | None,
    level: Level,
    words: str,
) -> None:
    """Which of several distros and configurators wins, why, and what to set."""
    offer(monkeypatch, *names)
    settings = ("OTEL_PYTHON_DISTRO", "OTEL_PYTHON_CONFIGURATOR")
    found = list(checks.launcher(dict.fromkeys(settings, setting) if setting else {}))
    assert [check.topic for check in found] == ["distro", "configurator"]
    assert [check.level for check in found] == [level, level]
    assert all(words in check.text for check in found)


def test_ours_stands_for_upstream() -> None:
    """A library that ours patches by the upstream instrumentor is named once."""
    named = [check.text.partition(":")[0] for check in checks.instrumentors({})]
    assert "requests" not in named


def test_disabled_instrumentors() -> None:
    """A library's own name disables ours too; the star disables all."""
    found = [
        check.text
        for check in checks.instrumentors({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "pandas , x"})
        if "disabled" in check.text
    ]
    assert found == ["stagewatch_pandas: disabled by OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"]
    every = checks.instrumentors({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "*"})
    assert {check.level for check in every} == {Level.WARNING}


def test_broken_instrumentor_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentor that cannot be loaded is trouble, and no reason to stop looking."""
    offer(monkeypatch, "broken")
    (found,) = checks.instrumentors({})
    assert found == Check(
        Level.TROUBLE, "libraries", "broken: cannot be loaded (ModuleNotFoundError)"
    )


def test_versions_are_coherent_here() -> None:
    """The set that is installed for these tests is one release."""
    assert [check.level for check in checks.versions()] == [Level.OK, Level.OK]


def test_versions_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A package of another release than the rest is named with what it needs."""
    for name, version, needs in (
        ("opentelemetry-sdk", "2.0", "opentelemetry-api==2.0"),
        ("opentelemetry-api", "1.0", "missing-thing"),
    ):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: {needs}\n"
        )
    there = list(metadata.distributions(path=[str(tmp_path)]))
    monkeypatch.setattr(metadata, "distributions", lambda: there)
    assert [check.text for check in checks.versions() if check.level is Level.TROUBLE] == [
        "opentelemetry-api needs missing-thing, which is not installed",
        "opentelemetry-sdk 2.0 needs opentelemetry-api==2.0, but 1.0 is installed",
    ]
