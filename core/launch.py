"""``stagewatch run -- CMD…``: what to run, and how its run is opened.

A Python command goes through ``opentelemetry-instrument`` and opens its run itself. Of any other
the process that becomes the command opens it first, and leaves nothing of ours in the command: so
the recorder watches the command itself, as it does any job. All of this happens in the child;
`stagewatch.parent` waits.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from errno import ENOEXEC

from stagewatch import parent
from stagewatch.system import LINUX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, NoReturn

    from stagewatch.config import Config
    from stagewatch.opened import Opened

_WRAPPER = "opentelemetry-instrument"
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
_SPARK_SUBMIT = "spark-submit"
_SPARK_PYTHONS = ("PYSPARK_DRIVER_PYTHON", "PYSPARK_PYTHON")
_FIRST_LINE = 256
"""Bytes of a script that the kernel looks at."""


def main(arguments: Sequence[str]) -> int:
    """Run a command and end as it does; returns 2 if there is none."""
    command = list(arguments)
    if command[:1] == ["--"]:
        del command[0]
    elif command and command[0].startswith("-"):
        return _misunderstood(f"unknown option {command[0]}")
    if not command:
        return _misunderstood("no command to run")
    waits = os.getpid(), os.getppid()
    parent.run(lambda child: _become(command, child, waits))


def _misunderstood(what: str) -> int:
    _say(f"{what} (try `stagewatch run --help`)")
    return 2


def _say(line: str) -> None:
    os.write(2, os.fsencode(f"stagewatch: {line}\n"))


# --- in the child -------------------------------------------------------------------------------


def _become(command: list[str], child: parent.Child, waits: tuple[int, int]) -> NoReturn:
    """Open the run, or see to it that the command does, and be the command.

    *waits*: pids of the process that waits for this one, and of its parent.
    """
    from stagewatch.config import is_disabled
    from stagewatch.safety import guarded

    _undo_locale()
    path = _find(command[0])
    wrapper = None
    if not is_disabled(os.environ):
        wrapper = _wrapper(command, path)
        # Spark may fail before there is a driver to open a run; the driver joins this one.
        opens_run = wrapper is None or os.path.basename(command[0]) == _SPARK_SUBMIT
        with guarded:
            _prepare(command, path, child, waits, opens_run=opens_run)
    if wrapper is not None and os.path.basename(command[0]) != _WRAPPER:
        os.environ.setdefault("OTEL_PYTHON_DISTRO", "stagewatch")
        os.environ.setdefault("OTEL_PYTHON_CONFIGURATOR", "stagewatch")
        # Without the dashes it takes the command's options for shortened ones of its own.
        path, command = wrapper, [_WRAPPER, "--", *command]
    child.restore_signals()
    _execute(path, command)


def _prepare(
    command: list[str], path: str | None, child: parent.Child, waits: tuple[int, int],
    *, opens_run: bool,
) -> None:  # fmt: skip
    """What is to be known and opened before. *opens_run*: the command does not do so itself."""
    from stagewatch.exporters.journal import start_ticks
    from stagewatch.exporters.recorder import start
    from stagewatch.exporters.recorder.watching import exits

    opened = None
    ticks = start_ticks()
    if is_last := start.ends_with(waits):
        os.environ[start.PARENT_VARIABLE] = f"{waits[0]}.{start_ticks(waits[0])}"
    if opens_run:
        opened = _open_run(command, path)
        if opened is None:
            return
        room, settings = opened.room, opened.settings
        is_last = is_last or bool(opened.alone)
        _count_overhead(opened)
    else:
        found = _configuration()
        room, settings = _room(found), found.settings
    if opens_run or not LINUX:  # where the command is reaped before its parent can leave word
        exits.promise(room, os.getpid(), ticks, waits[0], start_ticks(waits[0]))
    cpu_before = opened.cpu_before if opened is not None else None
    child.tell(str(room), ticks, settings.exit_wait if is_last else 0.0, cpu_before)


def _open_run(command: list[str], path: str | None) -> Opened | None:
    from stagewatch import opening, program, surroundings

    prepared = surroundings.prepare(program.command(command, path))
    if prepared is None:
        return None
    resource = _resource(prepared.pipeline.name)
    return opening.open_in_journal(prepared, opening.span_without_sdk, resource)


def _count_overhead(opened: Opened) -> None:
    import time

    from stagewatch.exporters.page import Words

    opened.journal.page.set(Words.OVERHEAD, time.process_time_ns())


def _resource(pipeline: str) -> dict[str, Any]:
    """The user's resource, as the SDK reads it; the service is the pipeline if it has no name."""
    from urllib.parse import unquote

    from stagewatch import semconv

    pairs = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")
    items = (pair.partition("=") for pair in pairs if "=" in pair)
    found = {name.strip(): unquote(value.strip()) for name, _, value in items}
    named = os.environ.get("OTEL_SERVICE_NAME", "").strip()
    return {
        semconv.SERVICE_NAME: pipeline,
        **found,
        **({semconv.SERVICE_NAME: named} if named else {}),
    }


def _configuration() -> Config:
    from pathlib import Path

    from stagewatch.config import load_or_default

    try:
        directory = Path.cwd()
    except OSError:
        directory = Path("/")
    return load_or_default(os.environ, directory)[0]


def _room(config: Config) -> Path:
    import logging

    from stagewatch.exporters import state

    # What is wrong with the directory the job itself will say.
    logging.getLogger("stagewatch").addHandler(logging.NullHandler())
    return state.place(config.settings.state_dir, os.environ)[1]


# --- what the command is ------------------------------------------------------------------------


def _find(name: str) -> str | None:
    """Where a command is, as execvp(3) looks for it; a file that cannot be executed if no other."""
    if "/" in name:
        return name
    unfit = None
    for folder in os.get_exec_path():
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            if os.access(path, os.X_OK):
                return path
            unfit = unfit or path
    return unfit


def _wrapper(command: list[str], path: str | None) -> str | None:
    """The ``opentelemetry-instrument`` that a command is to be started with, or is itself."""
    if path is None:
        return None
    interpreter, options = _interpreter(path, command[1:])
    if interpreter is None or _ignores_environment(options):
        return None
    folders = [os.path.dirname(os.path.abspath(interpreter))]
    if os.path.abspath(interpreter) == sys.executable:  # its scripts may lie elsewhere
        folders.append(os.path.dirname(os.path.abspath(sys.argv[0])))
    for folder in folders:
        if all(os.access(os.path.join(folder, name), os.X_OK) for name in (_WRAPPER, "stagewatch")):
            return os.path.join(folder, _WRAPPER)
    _say(f"{interpreter} has no stagewatch installed: of this run only the command itself is seen")
    return None


def _interpreter(path: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The Python that runs a command, and what it is given; None if it is none."""
    if is_python(path):
        return path, arguments
    if os.path.basename(path) == _SPARK_SUBMIT:
        if not any(argument.endswith(".py") for argument in arguments):
            return None, []
        driver = (os.environ.get(name) for name in _SPARK_PYTHONS)
        return _find(next(filter(None, driver), "python3")), []
    if os.path.basename(path) == _WRAPPER:
        return path, []
    if not path.endswith(".py"):
        return None, []
    try:
        with open(path, "rb") as file:
            line = file.read(_FIRST_LINE).split(b"\n")[0]
    except OSError:
        return None, []
    if not line.startswith(b"#!"):
        return None, []
    words = os.fsdecode(line[2:]).split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if word != "-S"]
        words[:1] = [_find(words[0]) or ""] if words else []
    if not words or not is_python(words[0]):
        return None, []
    return words[0], words[1:]


def is_python(path: str) -> bool:
    """Whether a file is called as an interpreter of Python is: ``python``, ``python3.11``."""
    rest = os.path.basename(path).removeprefix("python")
    return rest != os.path.basename(path) and all(
        part.isdigit() for part in rest.split(".") if part
    )


def _ignores_environment(options: list[str]) -> bool:
    """Whether Python is told (``-I``, ``-E``, ``-S``) not to load what would instrument it."""
    for option in options:
        if not option.startswith("-") or option in ("-", "-c", "-m"):
            return False
        if option[1:].isalpha() and set(option[1:]) & set("IES"):
            return True
    return False


# --- exec ---------------------------------------------------------------------------------------


def _undo_locale() -> None:
    """In the C locale Python sets a variable (PEP 538): the command is to find what we found."""
    if "LC_CTYPE" in os.environ:
        try:
            with open("/proc/self/environ", "rb") as file:
                found = file.read().split(b"\0")
        except OSError:
            return
        if not any(entry.startswith(b"LC_CTYPE=") for entry in found):
            del os.environ["LC_CTYPE"]


def _execute(path: str | None, command: list[str]) -> NoReturn:
    if path is None:
        _say(f"{command[0]}: command not found")
        os._exit(_NOT_FOUND)
    try:
        try:
            os.execv(path, command)
        except OSError as error:
            if error.errno != ENOEXEC:
                raise
            os.execv("/bin/sh", ["/bin/sh", path, *command[1:]])  # as execvp(3) and shells do
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError) and not os.path.exists(path)
        _say(
            f"{command[0]}: {'no such file' if is_missing else f'cannot be run: {error.strerror}'}"
        )
        os._exit(_NOT_FOUND if is_missing else _NOT_EXECUTABLE)
    except ValueError as error:  # a null byte
        _say(f"{command[0]!r}: cannot be run: {error}")
        os._exit(_NOT_EXECUTABLE)
