"""The real `stagewatch` command, as a process, on a prepared history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stagewatch.exporters.state import destination
from stagewatch.model import Outcome, Role, Stage
from tests.otlp_receiver import OtlpReceiver
from tests.prepared import identity, run, span, store

COMMAND = Path(sys.executable).with_name("stagewatch")


def environment(state: Path, **settings: str) -> dict[str, str]:
    """Nothing of the tester's own OpenTelemetry or stagewatch settings."""
    own = ("OTEL_", "STAGEWATCH_", "NO_COLOR", "FORCE_COLOR", "TTY_")
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(own)}
    return inherited | {"STAGEWATCH_STATE_DIR": str(state), "COLUMNS": "120"} | settings


def stagewatch(state: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the state directory's parent."""
    return subprocess.run(
        [COMMAND, *arguments],
        env=environment(state, **settings),
        cwd=state.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Three runs of two pipelines, the newest of which failed in its stage."""
    place = tmp_path / "state"
    failed = run(
        1,
        outcome=Outcome.FAILURE,
        error_type="KeyError",
        error_message="column ? is missing",
        error_place="etl.py:12 in transform",
    )
    spans = [
        span(failed, 1, "flights", 0, 10, span_id=failed.span_id, role=Role.RUN, failed=True),
        span(failed, 10, "transform", 0, 4, role=Role.STAGE, failed=True),
        *(
            span(failed, 100 + i, f"call {i}", i / 100, 0.01, parent_span_id=identity(10))
            for i in range(200)
        ),
    ]
    stages = [Stage(name="transform", calls=1, failed=1, seconds=4.0, records_in=336_776)]
    store(place, failed, spans, stages)
    store(place, run(2))
    store(place, run(3, pipeline="sales"))
    return place


def test_help_is_quick_and_complete(tmp_path: Path) -> None:
    """`--help` names every command and imports nothing heavy."""
    code = (
        "import sys; from stagewatch.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'rich', 'sqlite3', 'yaml', 'opentelemetry.sdk'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("report", "show", "watch", "ship", "doctor", "schema"):
        assert f"    {command} " in done.stdout
    assert "opentelemetry-instrument python etl.py" in done.stdout


def test_version(tmp_path: Path) -> None:
    """`--version` is one line."""
    assert stagewatch(tmp_path, "--version").stdout.startswith("stagewatch 0.")


def test_report(state: Path) -> None:
    """Runs come newest first, each pipeline with its summary, without colour in a pipe."""
    done = stagewatch(state, "report")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[2] for line in lines[1:4]] == [f"0000000{n}" for n in (1, 2, 3)]
    assert [line.split(":")[0] for line in lines[5:]] == ["flights", "sales"]
    assert "\x1b" not in done.stdout


def test_report_of_one_pipeline(state: Path) -> None:
    """A name narrows the report, `-n` cuts it."""
    done = stagewatch(state, "report", "flights", "-n", "1", "--json")
    found = json.loads(done.stdout)
    assert [one["outcome"] for one in found["runs"]] == ["failure"]
    assert [one["pipeline"] for one in found["pipelines"]] == ["flights"]


def test_report_of_an_unknown_pipeline(state: Path) -> None:
    """One clear line, with the names there are."""
    done = stagewatch(state, "report", "flghts")
    assert done.returncode == 1
    assert done.stderr == 'stagewatch: no pipeline "flghts"; there are flights, sales\n'


def test_report_of_nothing(tmp_path: Path) -> None:
    """Before the first run the report says how to get one."""
    done = stagewatch(tmp_path / "state", "report")
    assert done.returncode == 0
    assert "opentelemetry-instrument python etl.py" in done.stdout
    empty = stagewatch(tmp_path / "state", "report", "--json")
    assert json.loads(empty.stdout) == {"runs": [], "pipelines": [], "advice": {}}


def test_show_last(state: Path) -> None:
    """`last` is the newest run, with tree, stages and error; `--all` cuts nothing."""
    done = stagewatch(state, "show", "last")
    assert (done.returncode, done.stderr) == (0, "")
    assert "KeyError at etl.py:12 in transform" in done.stdout
    assert "├ transform" in done.stdout or "└ transform" in done.stdout
    assert " more\n" in done.stdout
    everything = stagewatch(state, "show", "last", "--all")
    assert everything.stdout.count("call ") == 200


def test_show_by_prefix_as_json(state: Path) -> None:
    """The beginning of an id is enough; the JSON has every span."""
    found = json.loads(stagewatch(state, "show", "00000001", "--json").stdout)
    assert found["run"]["error_type"] == "KeyError"
    assert len(found["spans"]) == 202


def test_show_of_an_unknown_run(state: Path) -> None:
    """One clear line that names the last runs."""
    done = stagewatch(state, "show", "abc")
    assert (done.returncode, done.stdout) == (1, "")
    last = "00000001, 00000002, 00000003"
    assert done.stderr == f'stagewatch: no run "abc"; the last ones are {last}\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: stagewatch"),
        (["shw"], "stagewatch: argument COMMAND: invalid choice: 'shw'"),
        (["show"], "stagewatch: the following arguments are required: RUN"),
        (["report", "-n", "0"], 'stagewatch: argument -n: "0" is not a number of runs'),
        (["watch", "--interval", "0"], 'stagewatch: argument --interval: "0" is not a number of'),
        (["ship", "--timeout", "x"], 'stagewatch: argument --timeout: "x" is not a number of'),
    ],
)
def test_misuse(tmp_path: Path, arguments: list[str], message: str) -> None:
    """A command that is not understood is status 2 and a line that says why."""
    done = stagewatch(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)


def test_closed_pipe(state: Path) -> None:
    """`stagewatch show | head -1` ends quietly."""
    pipeline = f"{COMMAND} show last --json | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", pipeline], env=environment(state), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("{\n0\n", "")


def test_terminal_that_knows_ascii_only(state: Path) -> None:
    """Bars that cannot be encoded are replaced, not raised about."""
    done = stagewatch(state, "show", "last", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "transform" in done.stdout


def test_no_color(state: Path) -> None:
    """NO_COLOR wins over a forced terminal: no escape sequence at all."""
    assert "\x1b[" in stagewatch(state, "report", FORCE_COLOR="1").stdout
    assert "\x1b[" not in stagewatch(state, "report", FORCE_COLOR="1", NO_COLOR="1").stdout


def test_wrong_configuration_does_not_hide_the_runs(state: Path) -> None:
    """The fault is said, the report comes all the same."""
    (state.parent / "stagewatch.yaml").write_text("pipelines:\n  a:\n    ownr: me\n")
    done = stagewatch(state, "report")
    assert done.returncode == 0
    assert done.stderr.startswith("stagewatch: stagewatch.yaml:3: pipelines.a.ownr: ")
    assert "00000001" in done.stdout


def test_history_of_a_newer_version(state: Path) -> None:
    """What cannot be read is said in one line, not in a traceback."""
    import sqlite3

    link = sqlite3.connect(state / "history.db")
    link.execute("pragma user_version=99")
    link.close()
    done = stagewatch(state, "report")
    assert done.returncode == 1
    assert done.stderr.startswith(f"stagewatch: the history in {state} cannot be read: ")
    assert len(done.stderr.splitlines()) == 1


def test_ship_without_endpoint(state: Path) -> None:
    """Nothing can be sent without an endpoint; what waits for other settings is said."""
    one = run(9)
    store(state, one, [span(one, 5, "a", 0, 1)], pending_for="elsewhere")
    done = stagewatch(state, "ship")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "Nothing is sent from here: OTEL_EXPORTER_OTLP_ENDPOINT is not set.",
        "Pending for other settings (elsewhere): 1 trace.",
    ]
    found = json.loads(stagewatch(state, "ship", "--json").stdout)
    assert (found["destination"], found["pending"]) == ("local", {})
    assert found["elsewhere"] == {"elsewhere": {"traces": 1}}


def test_ship_what_an_outage_left_behind(tmp_path: Path) -> None:
    """Status 1 while the backend is away; 0, and every span delivered, once it is back."""
    state = tmp_path / "state"
    one = run(1)
    with OtlpReceiver("http") as receiver:
        settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
        key = destination(settings).key
        spans = [span(one, n, f"call {n}", 0, 1) for n in range(5, 8)]
        store(state, one, spans, pending_for=key)
        receiver.refuse()
        away = stagewatch(state, "ship", "--timeout", "5", **settings)
        assert away.returncode == 1, away.stderr
        assert "still pending: 3 traces (connection refused)." in away.stdout
        away = stagewatch(state, "ship", "--timeout", "5", "--json", **settings)
        assert json.loads(away.stdout)["reason"] == "connection refused"
        receiver.serve()
        back = stagewatch(state, "ship", "--json", **settings)
        found = json.loads(back.stdout)
        assert (back.returncode, found["pending"], found["elsewhere"]) == (0, {}, {})
        assert found["reason"] is None
        assert found["destination"] == key
        receiver.wait_for(lambda r: len(r.spans) == 3, timeout=10)
        assert {got.name for got in receiver.spans} == {"call 5", "call 6", "call 7"}
        again = stagewatch(state, "ship", **settings)
        assert again.stdout.startswith("Nothing was waiting; all there was is at http")


def test_report_right_after_a_run(tmp_path: Path) -> None:
    """A run that is over is never shown as active, however soon one asks."""
    script = tmp_path / "etl.py"
    script.write_text("import stagewatch\nwith stagewatch.stage('load') as s: s.records(out=7)\n")
    settings = {
        "STAGEWATCH_RECORDER_IDLE": "1s",
        "OTEL_PYTHON_DISTRO": "stagewatch",
        "OTEL_PYTHON_CONFIGURATOR": "stagewatch",
    }
    state = tmp_path / "state"
    subprocess.run(
        [COMMAND.with_name("opentelemetry-instrument"), sys.executable, script],
        env=environment(state, **settings),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    found = json.loads(stagewatch(state, "show", "last", "--json", **settings).stdout)
    run_found = found["run"]
    assert (run_found["pipeline"], run_found["outcome"], run_found["active"]) == (
        "etl",
        "success",
        False,
    )
    assert [(stage["name"], stage["records_out"]) for stage in found["stages"]] == [("load", 7)]
    assert [one["role"] for one in found["spans"]] == ["run", "stage"]


def test_schema(tmp_path: Path) -> None:
    """Editors get a JSON schema."""
    assert "properties" in json.loads(stagewatch(tmp_path, "schema").stdout)


def test_report_does_not_wait_for_nobody(state: Path) -> None:
    """Without recorder and journals there is nothing to wait for."""
    begun = time.monotonic()
    assert stagewatch(state, "report").returncode == 0
    assert time.monotonic() - begun < 10


def test_a_mistake_names_the_help_of_its_command(tmp_path: Path) -> None:
    """What `report` does not know is looked up in the help of `report`."""
    done = stagewatch(tmp_path / "state", "report", "--last", "5")
    assert (done.returncode, done.stdout) == (2, "")
    expected = "unrecognized arguments: --last (try `stagewatch report --help`)"
    assert done.stderr == f"stagewatch: {expected}\n"
