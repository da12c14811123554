"""Configuration: every fault with its exact line, precedence, matching, and the editors' schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import stagewatch
from stagewatch import config, values
from stagewatch.config import ConfigError
from stagewatch.model import (
    DeclaredDataset,
    DeclaredStage,
    Escalation,
    Match,
    Pipeline,
    Schedule,
    Sla,
)

FULL = """\
settings:
  exit_wait: 2s
  detail_ratio: 0.5
  journal_max_bytes: 64 MiB
  exception_messages: on
pipelines:
  sales:
    owner: data-team
    version: 1.10
    match: {script: jobs/etl.py, dag: sales_daily}
    schedule:
      cron: "30 6 * * 1-5"
      timezone: Europe/Berlin
    sla:
      deadline: 45m
      max_duration: PT1H30M
      start_grace: 90
      max_age: 2d
      escalation:
        - {after: 0, severity: warning}
        - {after: 1h30m, severity: critical}
    stages:
      extract: {function: extract, expected_records: 1000}
      transform:
        function: jobs.steps:Transform.run
        max_error_ratio: 0.01
        min_throughput: 2.5
        max_duration: 10m
      load: {function: Loader.load}
    datasets:
      orders: {uri: "file:///data/orders*.parquet", timestamp_column: at, freshness: 1d}
    labels: {tier: 1, country: no}
  bare:
"""


def write(directory: Path, text: str) -> None:
    """The file of these tests."""
    (directory / "stagewatch.yaml").write_text(text, encoding="utf-8")


def faults_of(directory: Path, text: str) -> list[str]:
    """What `load` says of a file."""
    write(directory, text)
    with pytest.raises(ConfigError) as caught:
        config.load({}, directory)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return list(caught.value.faults)


# --- what a right file becomes ------------------------------------------------------------------


def test_a_full_file(tmp_path: Path) -> None:
    """All that can be declared, compared whole; scalars are read as the type asks."""
    write(tmp_path, FULL)

    loaded = config.load({"HOME": "/home/me"}, tmp_path)

    sales = Pipeline(
        name="sales",
        owner="data-team",
        version="1.10",
        match=Match(script="jobs/etl.py", dag="sales_daily"),
        schedule=Schedule(cron="30 6 * * 1-5", timezone="Europe/Berlin"),
        sla=Sla(
            deadline=2700.0,
            max_duration=5400.0,
            start_grace=90.0,
            max_age=172800.0,
            escalation=(Escalation(0.0, "warning"), Escalation(5400.0, "critical")),
        ),
        stages={
            "extract": DeclaredStage(function="extract", expected_records=1000),
            "transform": DeclaredStage(
                function="jobs.steps:Transform.run",
                max_error_ratio=0.01,
                min_throughput=2.5,
                max_duration=600.0,
            ),
            "load": DeclaredStage(function="Loader.load"),
        },
        datasets={
            "orders": DeclaredDataset(
                uri="file:///data/orders*.parquet", timestamp_column="at", freshness=86400.0
            )
        },
        labels={"tier": "1", "country": "no"},
    )
    assert loaded.pipelines == {"sales": sales, "bare": Pipeline(name="bare")}
    assert loaded.settings == config.Settings(
        state_dir=Path("/home/me/.local/state/stagewatch"),
        exit_wait=2.0,
        detail_ratio=0.5,
        journal_max_bytes=64 * 2**20,
        exception_messages=True,
    )
    assert loaded.file == tmp_path / "stagewatch.yaml"


def test_anchors_aliases_and_merge_keys(tmp_path: Path) -> None:
    """What is shared is written once; an own key wins and is no duplicate."""
    write(
        tmp_path,
        """\
pipelines:
  a:
    sla: &sla {deadline: 1h, max_duration: 2h}
  b:
    sla: &mine
      <<: *sla
      deadline: 5m
  c:
    sla: *mine
""",
    )

    pipelines = config.load({}, tmp_path).pipelines

    assert pipelines["b"].sla == Sla(deadline=300.0, max_duration=7200.0)
    assert pipelines["c"].sla == pipelines["b"].sla


@pytest.mark.parametrize("text", ["", "# nothing\n", "pipelines:\n", "{}\n"])
def test_an_empty_file_declares_nothing(tmp_path: Path, text: str) -> None:
    """It is a file, and not a fault."""
    write(tmp_path, text)

    loaded = config.load({}, tmp_path)

    assert loaded.pipelines == {}
    assert loaded.file == tmp_path / "stagewatch.yaml"


# --- faults -------------------------------------------------------------------------------------

LEAVES = [
    ("sla: {deadline: 45x}", 'sla.deadline: "45x" is not a duration (45m, 1h30m, PT45M)'),
    ("sla: {deadline: 1:30}", 'sla.deadline: "1:30" is not a duration (45m, 1h30m, PT45M)'),
    ("sla: {deadline: -5}", 'sla.deadline: "-5" is not a duration (45m, 1h30m, PT45M)'),
    ("sla: {deadline: [5]}", "sla.deadline: a list is not a value"),
    ("sla: {deadline: {m: 5}}", "sla.deadline: a mapping is not a value"),
    ("sla: 45m", 'sla: "45m" is not a mapping (key: value)'),
    ("sla: [45m]", "sla: a list is not a mapping (key: value)"),
    ("sla: {escalation: 5m}", 'sla.escalation: "5m" is not a list (- …)'),
    ("sla: {escalation: [{after: 5m}]}", "sla.escalation[0].severity: is missing"),
    ("sla: {escalation: [5m]}", 'sla.escalation[0]: "5m" is not a mapping (key: value)'),
    ("onwer: me", "onwer: unknown key (did you mean owner?)"),
    (
        "xyz: me",
        "xyz: unknown key (known are owner, version, match, schedule, sla, stages, datasets,"
        " labels)",
    ),
    (
        "name: other",
        "name: unknown key (known are owner, version, match, schedule, sla,"
        " stages, datasets, labels)",
    ),
    ('owner: ""', 'owner: "" is empty'),
    ("schedule: {timezone: UTC}", "schedule.cron: is missing"),
    ("schedule: {cron: }", "schedule.cron: nothing is not a value"),
    (
        'schedule: {cron: "0 25 * * *"}',
        'schedule.cron: "0 25 * * *" is not a cron line ("30 6 * * 1-5"): Bad hour',
    ),
    (
        'schedule: {cron: "0 0 6 * * *"}',
        'schedule.cron: "0 0 6 * * *" is not a cron line ("30 6 * * 1-5"): Wrong number of fields',
    ),
    (
        'schedule: {cron: "0 6 31 2 *"}',
        'schedule.cron: "0 6 31 2 *" is not a cron line ("30 6 * * 1-5"): Bad day-of-month',
    ),
    (
        'schedule: {cron: "0 6 * * *", timezone: Europe/Berln}',
        'schedule.timezone: "Europe/Berln" is not a time zone (did you mean Europe/Berlin?)',
    ),
    (
        'schedule: {cron: "0 6 * * *", timezone: ../etc/passwd}',
        'schedule.timezone: "../etc/passwd" is not a time zone (Europe/Berlin, UTC)',
    ),
    (
        "stages: {load: {function: a-b}}",
        'stages.load.function: "a-b" is not a function'
        " (transform, Loader.load, package.module:Class.method)",
    ),
    (
        "stages: {load: {max_error_ratio: 1.5}}",
        'stages.load.max_error_ratio: "1.5" is not a ratio (0 … 1)',
    ),
    (
        "stages: {load: {expected_records: 1e3}}",
        'stages.load.expected_records: "1e3" is not a whole number (0, 1, 1000)',
    ),
    (
        "stages: {load: {min_throughput: fast}}",
        'stages.load.min_throughput: "fast" is not a number (0, 1.5, 1000)',
    ),
    ('stages: {"": {}}', "stages.: a name is empty"),
    ("datasets: {orders: {freshness: 1d}}", "datasets.orders.uri: is missing"),
    ("match: {script: /}", 'match.script: "/" is not a name or glob (etl.py, jobs/etl_*.py)'),
    ("labels: {tier: [1]}", "labels.tier: a list is not a value"),
    ("labels: {[1]: 2}", "labels: a list is not a key"),
]


@pytest.mark.parametrize(("line", "expected"), LEAVES, ids=[line for line, _ in LEAVES])
def test_each_fault_is_one_line(tmp_path: Path, line: str, expected: str) -> None:
    """File, line, path, what is there and what was expected."""
    text = f"pipelines:\n  sales:\n    {line}\n"

    assert faults_of(tmp_path, text) == [f"stagewatch.yaml:3: pipelines.sales.{expected}"]


def test_a_directory_of_zones_is_no_zone(tmp_path: Path) -> None:
    """The database has a folder of that name, which fails in its own way."""
    text = "pipelines: {a: {schedule: {cron: 0 6 * * *, timezone: Europe}}}\n"
    line = 'stagewatch.yaml:1: pipelines.a.schedule.timezone: "Europe" is not a time zone ('

    (fault,) = faults_of(tmp_path, text)

    assert fault.startswith(line)


def test_all_faults_at_once(tmp_path: Path) -> None:
    """One look at the messages is enough to mend the file."""
    text = """\
pipelines:
  sales:
    owner: me
    sla:
      deadline: 45x
    stage: early
    owner: you
  other: {}
  other: {}
setings: {}
"""

    assert faults_of(tmp_path, text) == [
        'stagewatch.yaml:5: pipelines.sales.sla.deadline: "45x" is not a duration'
        " (45m, 1h30m, PT45M)",
        "stagewatch.yaml:6: pipelines.sales.stage: unknown key (did you mean stages?)",
        "stagewatch.yaml:7: pipelines.sales.owner: declared twice (first in line 3)",
        "stagewatch.yaml:9: pipelines.other: declared twice (first in line 8)",
        "stagewatch.yaml:10: setings: unknown key (did you mean settings?)",
    ]


def test_settings_of_one_process_do_not_belong_in_the_file(tmp_path: Path) -> None:
    """A scheduled time in a file would be the same for all runs."""
    assert faults_of(tmp_path, "settings:\n  scheduled_time: 5\n  exit_wait: long\n") == [
        "stagewatch.yaml:2: settings.scheduled_time: belongs to one process:"
        " set STAGEWATCH_SCHEDULED_TIME instead",
        'stagewatch.yaml:3: settings.exit_wait: "long" is not a duration (45m, 1h30m, PT45M)',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: b: c\n", ":1: not YAML: mapping values are not allowed in this context"),
        ("\n\na: [1\n", ":4: not YAML: did not find expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", ":2: not YAML: but found another document"),
        ("- a\n", ":1: a list is not a mapping (key: value)"),
        ("pipelines: *gone\n", ":1: not YAML: found undefined alias"),
        ("pipelines:\n  a:\n    <<: 5\n", None),
        ("a: \0\n", None),
        ("pipelines: " + "[" * 6000, ":1: nested too deeply"),
    ],
)
def test_what_is_no_yaml(tmp_path: Path, text: str, expected: str | None) -> None:
    """The parser's complaint becomes one line of ours, whatever it is."""
    faults = faults_of(tmp_path, text)

    assert len(faults) == 1 and "\n" not in faults[0]
    assert faults[0].startswith("stagewatch.yaml:")
    assert expected is None or faults == [f"stagewatch.yaml{expected}"]


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are a fault too."""
    (tmp_path / "stagewatch.yaml").write_bytes(b"pipelines: \xff\xfe\x00")
    with pytest.raises(ConfigError) as caught:
        config.load({}, tmp_path)

    assert len(caught.value.faults) == 1
    assert caught.value.faults[0].startswith("stagewatch.yaml:1: not YAML: ")


VARIABLES = [
    ("DETAIL_RATIO", "2", '"2" is not a ratio (0 … 1)'),
    ("DETAIL_RATIO", "nan", '"nan" is not a ratio (0 … 1)'),
    ("DETAIL_CAP", "many", '"many" is not a whole number (0, 1, 1000)'),
    ("EXIT_WAIT", "1 week", '"1 week" is not a duration (45m, 1h30m, PT45M)'),
    ("ATTEMPT", "0", '"0" is not an attempt (1, 2, …)'),
    ("EXCEPTION_MESSAGES", "maybe", '"maybe" is not a switch (0 or 1)'),
    ("RETENTION_BYTES", "1 Gb", '"1 Gb" is not a size (1048576, 256MB, 256 MiB)'),
    ("SCHEDULED_TIME", "noon", '"noon" is not a time (2026-03-01T06:00:00Z, 1772344800)'),
    ("SCHEDULED_TIME", "1969-01-01", '"1969-01-01" is a time before 1970'),
    ("STATE_DIR", "a\0b", '"a\\x00b" is not a path'),
    ("DETAIL_CAP", "x\ny" + "z" * 99, f'"x\\x0ay{"z" * 73}…" is not a whole number (0, 1, 1000)'),
]


@pytest.mark.parametrize(("variable", "text", "expected"), VARIABLES)
def test_each_wrong_variable_is_one_line(
    tmp_path: Path, variable: str, text: str, expected: str
) -> None:
    """Variable, what it holds and what was expected; the others still count."""
    environ = {f"STAGEWATCH_{variable}": text, "STAGEWATCH_PIPELINE": "sales"}

    loaded, error = config.load_or_default(environ, tmp_path)

    assert error is not None
    assert error.faults == (f"STAGEWATCH_{variable}: {expected}",)
    name = variable.lower()
    if name != "state_dir":
        assert getattr(loaded.settings, name) == getattr(config.Settings(), name)
    assert loaded.settings.pipeline == "sales"


def test_a_job_goes_on_with_defaults(tmp_path: Path) -> None:
    """Nothing of a wrong file is used, the environment is, and the faults are told."""
    write(tmp_path, "settings: {exit_wait: 9s}\npipelines: {a: {sla: {deadline: x}}, b: {}}\n")

    loaded, error = config.load_or_default({"STAGEWATCH_DETAIL_CAP": "7"}, tmp_path)

    assert error is not None
    assert error.faults == (
        'stagewatch.yaml:2: pipelines.a.sla.deadline: "x" is not a duration (45m, 1h30m, PT45M)',
    )
    assert (loaded.pipelines, loaded.file) == ({}, None)
    assert (loaded.settings.exit_wait, loaded.settings.detail_cap) == (1.0, 7)


# --- where the file and the settings come from --------------------------------------------------


def test_the_file_is_looked_for_upwards(tmp_path: Path) -> None:
    """The nearest one counts, and messages say where it is."""
    below = tmp_path / "jobs" / "daily"
    below.mkdir(parents=True)
    write(tmp_path, "pipelines: {top: {}}\n")

    assert list(config.load({}, below).pipelines) == ["top"]
    write(tmp_path / "jobs", "pipelines: {near: {x: 1}}\n")
    with pytest.raises(ConfigError, match=r"^\.\./stagewatch\.yaml:1: pipelines\.near\.x: "):
        config.load({}, below)


def test_the_variable_names_the_file(tmp_path: Path) -> None:
    """`STAGEWATCH_CONFIG` wins over a file nearby, and is relative to the directory."""
    write(tmp_path, "pipelines: {near: {}}\n")
    (tmp_path / "other.yaml").write_text("pipelines: {other: {}}\n")

    assert list(config.load({"STAGEWATCH_CONFIG": "other.yaml"}, tmp_path).pipelines) == ["other"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("gone.yaml", "No such file or directory"), ("folder", "not a regular file")],
)
def test_a_named_file_that_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    """The variable is named, since that is what has to be mended."""
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConfigError) as caught:
        config.load({"STAGEWATCH_CONFIG": name}, tmp_path)

    assert caught.value.faults == (f'STAGEWATCH_CONFIG: "{name}" cannot be read: {reason}',)


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    """A job must not wait for its configuration, or lose its input to it."""
    os.mkfifo(tmp_path / "pipe")

    _, error = config.load_or_default({"STAGEWATCH_CONFIG": "pipe"}, tmp_path)

    assert str(error) == 'STAGEWATCH_CONFIG: "pipe" cannot be read: not a regular file'


def test_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Setting by setting."""
    write(tmp_path, "settings: {exit_wait: 2s, recorder_idle: 2s}\n")

    settings = config.load({"STAGEWATCH_EXIT_WAIT": "3s"}, tmp_path).settings

    assert (settings.exit_wait, settings.recorder_idle, settings.span_threshold) == (3.0, 2.0, 0.01)


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    """As in OpenTelemetry."""
    assert config.load({"STAGEWATCH_EXIT_WAIT": " "}, tmp_path).settings.exit_wait == 1.0


@pytest.mark.parametrize(
    ("environ", "file", "expected"),
    [
        ({"HOME": "/h"}, None, "/h/.local/state/stagewatch"),
        ({"HOME": "/h", "XDG_STATE_HOME": "/x"}, None, "/x/stagewatch"),
        ({"HOME": "/h", "XDG_STATE_HOME": "rel"}, None, "/h/.local/state/stagewatch"),
        ({"STAGEWATCH_STATE_DIR": "/s"}, "/f", "/s"),
        ({"STAGEWATCH_STATE_DIR": "s"}, "/f", "DIR/s"),
        ({}, "/f", "/f"),
        ({}, "f", "ABOVE/f"),
        ({"HOME": "/h"}, "~/f", "/h/f"),
    ],
)
def test_state_directory(
    tmp_path: Path, environ: dict[str, str], file: str | None, expected: str
) -> None:
    """Always absolute: a job may change its directory later."""
    directory = tmp_path / "jobs"
    directory.mkdir()
    if file:
        write(tmp_path, f"settings: {{state_dir: {file}}}\n")
    expected = expected.replace("DIR", str(directory)).replace("ABOVE", str(tmp_path))

    assert config.load(environ, directory).settings.state_dir == Path(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01T06:00:00Z", 1772344800 * 10**9),
        ("2026-03-01T07:00:00.000001+01:00", 1772344800 * 10**9 + 1000),
        ("2026-03-01 06:00", 1772344800 * 10**9),
        ("1772344800", 1772344800 * 10**9),
        ("1772344800.123456789", 1772344800 * 10**9 + 123456789),
    ],
)
def test_scheduled_time(tmp_path: Path, text: str, expected: int) -> None:
    """Exact nanoseconds of both ways to write it."""
    settings = config.load({"STAGEWATCH_SCHEDULED_TIME": text}, tmp_path).settings

    assert settings.scheduled_time == expected
    assert values.KINDS["time"].parse(values.KINDS["time"].write(expected)) == (
        expected // 1000 * 1000
    )


# --- durations and sizes ------------------------------------------------------------------------


@given(st.integers(0, 10**13))
def test_durations_round_trip(milliseconds: int) -> None:
    """What is written is read back, in its short form and as plain seconds."""
    seconds = milliseconds / 1000

    assert values.duration(values.duration_text(seconds)) == seconds
    assert values.duration(f"{milliseconds // 1000}") == milliseconds // 1000


@given(*(st.integers(0, 999) for _ in range(4)))
def test_both_forms_of_a_duration_agree(d: int, h: int, m: int, s: int) -> None:
    """ISO 8601 and the short form, with and without spaces."""
    short = values.duration(f"{d}d{h}h{m}m{s}s")

    assert (
        short == values.duration(f"P{d}DT{h}H{m}M{s}S") == values.duration(f"{d}d {h}h {m}m {s}s")
    )
    assert short == d * 86400 + h * 3600 + m * 60 + s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45m", 2700), ("1h30m", 5400), ("90s", 90), ("2d", 172800), ("PT45M", 2700), ("P1W", 604800)]
    + [("10ms", 0.01), ("0.3s", 0.3), ("1.5", 1.5), ("0", 0), ("1.5h", 5400), ("PT0.5S", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    """The forms we promise."""
    assert values.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "P", "PT", "P1DT", "45M", "1m1h", "h", "1e3", "inf", "٣s"]
)
def test_no_durations(text: str) -> None:
    """What only looks like one is refused, and so not guessed."""
    with pytest.raises(ValueError, match="is not a duration"):
        values.duration(text)


@given(st.integers(0, 2**60))
def test_sizes_round_trip(number: int) -> None:
    """The way we write a size is one we read."""
    assert values.size(values.size_text(number)) == number


def test_sizes() -> None:
    """Decimal and binary units are different things."""
    assert values.size("256MB") == 256_000_000
    assert values.size("256 MiB") == 2**28
    assert values.size("1.5kB") == 1500


# --- which pipeline a process is ----------------------------------------------------------------

DECLARED = """\
pipelines:
  sales: {match: {script: jobs/etl.py}}
  hourly: {match: {script: "hourly_*.py", module: "acme.*.hourly", dag: "hourly_*"}}
  stream: {match: {spark_app: clicks}}
  named: {}
"""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"script": "/srv/jobs/etl.py"}, "sales"),
        ({"script": "/srv/other/etl.py"}, "etl"),
        ({"script": "hourly_eu.py"}, "hourly"),
        ({"module": "acme.eu.hourly", "script": "/site/acme/eu/hourly.py"}, "hourly"),
        ({"dag": "hourly_eu"}, "hourly"),
        ({"dag": "weekly"}, "weekly"),
        ({"spark_app": "clicks", "script": "run.py"}, "stream"),
        ({"script": "/x/named.py"}, "named"),
        ({"module": "acme.named"}, "named"),
        ({"module": "acme.named.__main__"}, "named"),
        ({"module": "acme.jobs"}, "acme.jobs"),
        ({"script": "/venv/bin/dbt"}, "dbt"),
        ({"script": "/x/zipped/__main__.py"}, "zipped"),
        ({"script": "-c"}, "python"),
        ({}, "python"),
    ],
)
def test_pipeline_for(tmp_path: Path, found: dict[str, str], expected: str) -> None:
    """Declared match, then declared name, then the process's own name."""
    write(tmp_path, DECLARED)
    loaded = config.load({}, tmp_path)

    pipeline = loaded.pipeline_for(**found)

    assert pipeline == loaded.pipelines.get(expected, Pipeline(name=expected))


def test_a_name_that_is_no_text_can_be_recorded() -> None:
    """Linux file names are bytes; the journal takes text."""
    name = config.Config().pipeline_for(os.fsdecode(b"/jobs/caf\xe9.py")).name

    assert msgspec.msgpack.decode(msgspec.msgpack.encode(name)) == "caf?"


def test_a_wrong_variable_leaves_the_file_alone(tmp_path: Path) -> None:
    """A fault in one place costs nothing in the other."""
    write(tmp_path, DECLARED)

    loaded, error = config.load_or_default({"STAGEWATCH_ATTEMPT": "first"}, tmp_path)

    assert error is not None and len(error.faults) == 1
    assert "sales" in loaded.pipelines
    assert loaded.file == tmp_path / "stagewatch.yaml"


def test_a_script_whose_directory_is_gone(tmp_path: Path) -> None:
    """A job may run where nothing is any more."""
    code = (
        "import os, tempfile; from stagewatch.config import Config; d = tempfile.mkdtemp();"
        "os.chdir(d); os.rmdir(d); print(Config().pipeline_for('jobs/etl.py').name)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert (ran.stdout.strip(), ran.stderr) == ("etl", "")


def test_a_relative_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cd jobs && python etl.py` is the same script."""
    write(tmp_path, DECLARED)
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path / "jobs")

    assert config.load({}, tmp_path).pipeline_for("etl.py").name == "sales"


@pytest.mark.parametrize("name", ["hourly", "undeclared"])
def test_the_variable_names_the_pipeline(tmp_path: Path, name: str) -> None:
    """`STAGEWATCH_PIPELINE` wins over every match, declared or not."""
    write(tmp_path, DECLARED)
    loaded = config.load({"STAGEWATCH_PIPELINE": name}, tmp_path)

    assert loaded.pipeline_for("jobs/etl.py").name == name


# --- the table and the schema -------------------------------------------------------------------


def test_the_table_of_parameters() -> None:
    """Every setting is a row with variable, default and description; defaults are readable back."""
    rows = {row.name: row for row in config.parameters()}

    assert list(rows) == [f.name for f in msgspec.structs.fields(config.Settings)]
    assert all(row.description.endswith(".") for row in rows.values())
    assert rows["span_threshold"].default == "10ms"
    assert rows["retention_bytes"].default == "1GB"
    assert rows["journal_max_bytes"].default == "256MiB"
    assert rows["detail_ratio"].default == "0.05"
    assert rows["exception_messages"].default == "0"
    assert rows["retention_details"].variable == "STAGEWATCH_RETENTION_DETAILS"
    assert not rows["scheduled_time"].in_file
    for row in rows.values():
        if row.default:
            parsed = values.KINDS[row.kind].parse(row.default)
            assert parsed == getattr(config.Settings(), row.name)
        assert row.text(config.Settings()) == row.default


def schema_faults(text: str) -> list[str]:
    """What an editor would underline, by the schema that is checked in."""
    schema = json.loads(checked_in())
    jsonschema.Draft202012Validator.check_schema(schema)
    found = jsonschema.Draft202012Validator(schema).iter_errors(yaml.safe_load(text))
    return [".".join(str(part) for part in error.absolute_path) for error in found]


def checked_in() -> str:
    """The schema beside the code."""
    package = Path(stagewatch.__file__).resolve().parent
    return (package / "stagewatch.schema.json").read_text(encoding="utf-8")


def test_the_schema_is_current() -> None:
    """`python -m stagewatch.config > core/stagewatch.schema.json` makes it so."""
    printed = subprocess.run(
        [sys.executable, "-m", "stagewatch.config"], capture_output=True, text=True, timeout=60
    )

    assert (printed.returncode, printed.stderr) == (0, "")
    assert checked_in() == printed.stdout


@pytest.mark.parametrize("text", [FULL, DECLARED])
def test_the_schema_takes_good_files(text: str) -> None:
    """What we load, an editor accepts (a null entry is not underlined either way)."""
    assert schema_faults(text) == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("pipelines: {a: {sla: {deadline: 45x}}}", "pipelines.a.sla.deadline"),
        ("pipelines: {a: {sla: {deadline: -1}}}", "pipelines.a.sla.deadline"),
        ("pipelines: {a: {onwer: me}}", "pipelines.a"),
        ("pipelines: {a: {name: me}}", "pipelines.a"),
        ("pipelines: {a: {schedule: {timezone: UTC}}}", "pipelines.a.schedule"),
        ('pipelines: {a: {schedule: {cron: "0 6 * *"}}}', "pipelines.a.schedule.cron"),
        (
            "pipelines: {a: {stages: {l: {max_error_ratio: 2}}}}",
            "pipelines.a.stages.l.max_error_ratio",
        ),
        ("pipelines: {a: {stages: {l: {function: a b}}}}", "pipelines.a.stages.l.function"),
        ("settings: {journal_max_bytes: 1 Gb}", "settings.journal_max_bytes"),
        ("settings: {attempt: 2}", "settings"),
    ],
)
def test_the_schema_refuses_bad_files(text: str, path: str) -> None:
    """What an editor underlines is what `load` refuses."""
    assert schema_faults(text) == [path]


def test_the_schema_describes_every_field() -> None:
    """An editor shows what a key means."""

    def bare(node: Any, path: str) -> list[str]:
        if not isinstance(node, dict):
            return []
        missing = [
            f"{path}.{name}"
            for name, field in node.get("properties", {}).items()
            if not field.get("description")
        ]
        inside = {**node.get("properties", {}), "*": node.get("additionalProperties")}
        inside["[]"] = node.get("items")
        return missing + [m for name, n in inside.items() for m in bare(n, f"{path}.{name}")]

    assert bare(config.schema(), "") == []


# --- what a job without a file pays -------------------------------------------------------------


def test_without_a_file_nothing_heavy_is_imported(tmp_path: Path) -> None:
    """YAML, cron and time zones cost milliseconds that a job without a file does not pay."""
    code = (
        "import os, sys, pathlib; from stagewatch import config;"
        "config.load(os.environ, pathlib.Path.cwd()).pipeline_for('etl.py');"
        "print(sorted({'yaml', 'cronsim', 'zoneinfo', 'difflib', 'json',"
        " 'stagewatch.declaration', 'stagewatch.measures'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )

    assert (ran.stdout.strip(), ran.stderr) == ("[]", "")
