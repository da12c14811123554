# The annotations below are the table of parameters: they are read when a job starts, so they are
# real objects and not strings (no `from __future__ import annotations`).
"""``stagewatch.yaml`` and ``STAGEWATCH_*`` into one frozen `Config`.

Environment beats file beats default. A wrong value is one line that says where, what and what was
expected; nothing of a wrong file is used.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, field, structs

from stagewatch.model import Match, Pipeline
from stagewatch.values import KINDS

FILE_NAME = "stagewatch.yaml"
_STATE_DIR = Path("$XDG_STATE_HOME/stagewatch")


def _setting(kind: str, description: str, source: str = "file") -> Meta:
    return Meta(description=description, extra={"kind": kind, "source": source})


class Settings(Struct, frozen=True, kw_only=True):
    """What can be set for all pipelines of a file, each also by a variable."""

    config: Annotated[
        Path | None,
        _setting(
            "path",
            "Configuration file; else `stagewatch.yaml` in the working directory or above it.",
            "environment",
        ),
    ] = None
    state_dir: Annotated[
        Path,
        _setting(
            "path",
            "Where journals and history are kept; `~/.local/state/stagewatch` without XDG.",
        ),
    ] = _STATE_DIR
    pipeline: Annotated[
        str | None,
        _setting(
            "text", "Name of the pipeline this process runs; else it is found.", "environment"
        ),
    ] = None
    scheduled_time: Annotated[
        int | None,
        _setting(
            "time",
            "Time this run was due: ISO 8601 (UTC without offset) or seconds since the epoch.",
            "environment",
        ),
    ] = None
    attempt: Annotated[
        int, _setting("attempt", "Which attempt of its slot this run is.", "environment")
    ] = 1
    exit_wait: Annotated[
        float,
        _setting("duration", "Longest wait at exit, where nothing outlives the job (PID 1)."),
    ] = 1.0
    detail_ratio: Annotated[
        float, _setting("ratio", "Share of the details of a successful run that is sent.")
    ] = 0.05
    detail_cap: Annotated[int, _setting("count", "Most details sent of one trace.")] = 10_000
    span_threshold: Annotated[
        float, _setting("duration", "Cheap calls that take as long become spans of their own.")
    ] = 0.01
    exception_messages: Annotated[
        bool, _setting("switch", "Export exception messages as they are; they may hold data.")
    ] = False
    spark_executors: Annotated[
        bool, _setting("switch", "Record the tasks of Spark that run Python, on its executors.")
    ] = False
    journal_max_bytes: Annotated[
        int, _setting("size", "Largest journal of one process; what exceeds it is counted.")
    ] = 256 * 2**20
    recorder_idle: Annotated[
        float, _setting("duration", "How long the recorder stays when nothing runs.")
    ] = 30.0
    watch_interval: Annotated[
        float, _setting("duration", "How often the recorder looks at running jobs.")
    ] = 1.0
    stuck_after: Annotated[
        float, _setting("duration", "How long a run may show no sign of life; then it is stuck.")
    ] = 600.0
    stuck_stack: Annotated[
        bool, _setting("switch", "Take the Python stack of a stuck run, if py-spy is installed.")
    ] = False
    retention_details: Annotated[
        float, _setting("duration", "Age at which details leave the history.")
    ] = 30 * 86400.0
    retention_runs: Annotated[
        float, _setting("duration", "Age at which runs leave the history.")
    ] = 400 * 86400.0
    retention_bytes: Annotated[
        int, _setting("size", "Size of the history beyond which its oldest details leave.")
    ] = 10**9


class File(Struct, frozen=True):
    """What `stagewatch` knows of your pipelines."""

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    """By name."""
    settings: Settings = Settings()
    """What `STAGEWATCH_*` can set too; the environment wins."""


class Config(Struct, frozen=True):
    """All that was declared, for one process."""

    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    """By name, in the file's order."""
    settings: Settings = Settings()
    file: Path | None = None
    """The file all this came from; None without one, or if it was wrong and so not used."""

    def pipeline_for(
        self,
        script: str | None = None,
        module: str | None = None,
        *,
        dag: str | None = None,
        spark_app: str | None = None,
    ) -> Pipeline:
        """The pipeline a process is a run of; one inferred from its name if none was declared.

        `script` is the path Python was given (``sys.argv[0]``, relative to the working directory),
        `module` the name after ``-m``. First ``STAGEWATCH_PIPELINE``, then what a pipeline
        declares under ``match``, then a pipeline of the same name.
        """
        names = _names(script, module, dag, spark_app)
        if self.settings.pipeline is not None:
            names = [self.settings.pipeline]
        else:
            for pipeline in self.pipelines.values():
                if _fits(pipeline.match, script, module, dag, spark_app):
                    return pipeline
        for name in names:
            if name in self.pipelines:
                return self.pipelines[name]
        # A file name may hold bytes that are no text, which could not be recorded.
        return Pipeline(name=names[0].encode(errors="replace").decode())


class ConfigError(ValueError):
    """Everything that is wrong with the configuration."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(faults)
        self.faults = tuple(faults)
        """One line each."""

    def __str__(self) -> str:
        return "\n".join(self.faults)


def is_disabled(environ: Mapping[str, str]) -> bool:
    """Whether the user wants nothing of us at all in a process."""
    return environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


class Parameter(Struct, frozen=True):
    """One row of the table of settings."""

    name: str
    """As under ``settings:`` in the file."""
    variable: str
    kind: str
    """Key into `stagewatch.values.KINDS`."""
    default: str
    """As one would write it; empty if there is none."""
    description: str
    in_file: bool
    """False for what concerns one process: the environment alone sets it."""

    def text(self, settings: Settings) -> str:
        """Its value there, as one would write it."""
        return _written(self.kind, getattr(settings, self.name))


def load(environ: Mapping[str, str], directory: Path) -> Config:
    """Configuration of a process that was started in `directory`.

    Raises ConfigError with all faults of environment and file.
    """
    config, error = load_or_default(environ, directory)
    if error:
        raise error
    return config


def load_or_default(
    environ: Mapping[str, str], directory: Path
) -> tuple[Config, ConfigError | None]:
    """As `load`, for a job: what is right, defaults for the rest, and what is wrong."""
    values, faults = _from_environment(environ)
    explicit = values.get("config")
    path = (directory / explicit) if explicit else _find(directory)
    found = None
    if path:
        found, wrong = _read(path, "STAGEWATCH_CONFIG" if explicit else None, directory)
        faults += wrong
    file = found or File()
    settings = structs.replace(file.settings, **values) if values else file.settings
    base = directory if "state_dir" in values or path is None else path.parent
    settings = structs.replace(settings, state_dir=_state_dir(settings.state_dir, base, environ))
    error = ConfigError(faults) if faults else None
    return Config(file.pipelines, settings, path if found else None), error


def parameters() -> list[Parameter]:
    """The table of settings: the README, ``doctor`` and the environment all follow it."""
    return [
        Parameter(
            name,
            _variable(name),
            meta.extra["kind"],
            _written(meta.extra["kind"], default),
            meta.description,
            meta.extra["source"] == "file",
        )
        for (name, meta), default in zip(
            _metas().items(), Settings.__struct_defaults__, strict=True
        )
    ]


def schema() -> dict[str, Any]:
    """JSON schema of ``stagewatch.yaml``, for editors."""
    from stagewatch import declaration

    return declaration.schema(File, FILE_NAME)


def _metas() -> dict[str, Any]:
    return {name: hint.__metadata__[0] for name, hint in Settings.__annotations__.items()}


def _variable(name: str) -> str:
    return f"STAGEWATCH_{name.upper()}"


def _written(kind: str, value: Any) -> str:
    return "" if value is None else KINDS[kind].write(value)


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    faults = []
    for name, meta in _metas().items():
        # As in OpenTelemetry's specification, empty means unset.
        if text := environ.get(_variable(name), "").strip():
            try:
                values[name] = KINDS[meta.extra["kind"]].parse(text)
            except ValueError as error:
                faults.append(f"{_variable(name)}: {error}")
    return values, faults


def _find(directory: Path) -> Path | None:
    # Strings: this runs in every job, and a Path for each level costs more than the look-up.
    level = os.path.abspath(directory)
    while True:
        if os.path.isfile(candidate := os.path.join(level, FILE_NAME)):
            return Path(candidate)
        level, last = os.path.dirname(level), level
        if level == last:
            return None


def _read(path: Path, variable: str | None, directory: Path) -> tuple[File | None, list[str]]:
    label = min(str(path), os.path.relpath(path, directory), key=len)
    try:
        # A pipe would keep the job waiting, or take its input from it.
        if path.exists() and not path.is_file():
            raise ValueError("not a regular file")
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        where = f'{variable}: "{label}"' if variable else f"{label}:"
        return None, [f"{where} cannot be read: {reason}"]
    from stagewatch import declaration

    return declaration.read(text, label, File)


def _state_dir(declared: Path, base: Path, environ: Mapping[str, str]) -> Path:
    if declared is _STATE_DIR:
        # The XDG base directory specification: relative paths are invalid and to be ignored.
        xdg = environ.get("XDG_STATE_HOME", "")
        home = xdg if os.path.isabs(xdg) else os.path.join(_home(environ), ".local", "state")
        return Path(home, "stagewatch")
    if declared.parts[0] == "~":
        return Path(_home(environ), *declared.parts[1:])
    return base / declared


def _home(environ: Mapping[str, str]) -> str:
    return environ.get("HOME") or os.path.expanduser("~")


def _fits(match: Match, script: str | None, *others: str | None) -> bool:
    if match.script and script and _absolute(script).match(match.script):
        return True
    declared = (match.module, match.dag, match.spark_app)
    if not any(declared):
        return False
    from fnmatch import fnmatchcase

    pairs = zip(declared, others, strict=True)
    return any(fnmatchcase(name, pattern) for pattern, name in pairs if pattern and name)


def _absolute(script: str) -> Path:
    try:
        return Path(os.path.abspath(script))
    except OSError:  # the working directory is gone
        return Path(script)


def _names(
    script: str | None, module: str | None, dag: str | None, spark_app: str | None
) -> list[str]:
    """What the pipeline may be called, the most telling first."""
    names = [name for name in (dag, spark_app) if name]
    if module:
        module = module.removesuffix(".__main__")
        names += [module, module.rpartition(".")[2]]
    if script and script not in ("-c", "-"):
        path = _absolute(script)
        names.append(path.parent.name if path.stem == "__main__" else path.stem)
    return [*filter(None, names), "python"]


if __name__ == "__main__":
    import json

    print(json.dumps(schema(), indent=2, ensure_ascii=False))
