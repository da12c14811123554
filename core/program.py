"""What this process is: which program it runs, on which host, as whose child."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module

from msgspec import Struct

from stagewatch.exporters.journal import start_ticks

_TAKES_VALUE = {"-W", "-X", "--check-hash-based-pycs"}
_HELPERS = (
    "multiprocessing.resource_tracker",
    "pyspark.daemon",
    "pyspark.worker",  # where Spark forks none
    "pyspark.sql.worker.",
    "pyspark.sql.streaming.",
    "pyspark.sql.connect.streaming.worker.",
    "pyspark.util import spark_connect_mode",  # of the `pyspark` shell, before it starts
)
_HELPER_SCRIPT = "find_spark_home.py"
"""Of ``spark-submit`` and ``pyspark``, which look for their Spark."""


class Program(Struct, frozen=True):
    """What Python was told to run."""

    script: str | None = None
    module: str | None = None
    is_helper: bool = False
    """A process that a library keeps for itself: it is no run and belongs to none."""


def program(orig_argv: Sequence[str]) -> Program:
    """Read ``sys.orig_argv``: ``sys.argv`` is not set yet when instrumentation starts."""
    rest = list(orig_argv[1:])
    while rest:
        argument = rest.pop(0)
        if argument in _TAKES_VALUE:
            rest = rest[1:]
        elif argument.startswith("-m") or (
            argument[1:2] != "-" and argument.endswith("m") and _is_flags(argument)
        ):
            module = (
                argument[2:]
                if argument.startswith("-m") and len(argument) > 2
                else rest[0]
                if rest
                else ""
            )
            return Program(module=module, is_helper=module.startswith(_HELPERS))
        elif _is_flags(argument) and "c" in argument:
            command = rest[0] if rest else ""
            return Program(is_helper=any(name in command for name in _HELPERS))
        elif not argument.startswith("-"):
            is_helper = os.path.basename(argument) == _HELPER_SCRIPT
            return Program(script=argument, is_helper=is_helper)
    return Program()


_SHELLS = {"sh", "ash", "bash", "dash", "ksh", "zsh"}
_SPARK_SUBMIT = "spark-submit"
_SUBMIT_FLAGS = {"--supervise", "--verbose", "-v"}
"""Options of ``spark-submit`` that take no value."""


def command(arguments: Sequence[str], path: str | None) -> Program:
    """What a command line runs: Python's script or module, the script of a shell or of Spark, else
    the command.

    *path*: where the command is, None if nowhere.
    """
    name = os.path.basename(arguments[0])
    if name.startswith("python"):
        return program(arguments)
    script = None
    if name in _SHELLS:
        script = _shell_script(arguments)
    elif name == _SPARK_SUBMIT:
        script = _submitted(arguments)
    return Program(script=script or path or arguments[0])


def _shell_script(arguments: Sequence[str]) -> str | None:
    rest = list(arguments[1:])
    while rest:
        option = rest.pop(0)
        if option[:1] not in ("-", "+"):
            return option
        if option == "--":
            return rest[0] if rest else None
        if option[:2] != "--" and "c" in option:
            return None
        if option[:2] != "--" and option.endswith("o"):
            rest = rest[1:]
    return None


def _submitted(arguments: Sequence[str]) -> str | None:
    """The Python script among the arguments of ``spark-submit``."""
    rest = list(arguments[1:])
    while rest:
        option = rest.pop(0)
        if not option.startswith("-"):
            return option if option.endswith(".py") else None
        if option not in _SUBMIT_FLAGS and "=" not in option:
            rest = rest[1:]
    return None


def _is_flags(argument: str) -> bool:
    return argument.startswith("-") and not argument.startswith("--") and argument[1:].isalpha()


def is_within() -> bool:
    """Whether this interpreter is one within another: a sub-interpreter."""
    for name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13, before
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() != interpreters.get_main())
    return False


class ParentRun(Struct, frozen=True):
    """The run that ``STAGEWATCH_RUN`` names: whose children join it."""

    run_id: str
    pid: int
    """Of the process that opened it."""
    ticks: int
    trace_id: str
    span_id: str
    sampled: bool
    pipeline: str
    clock: int = 0
    """`stagewatch.clock.offset` there; 0 if unknown."""

    def to_environment(self) -> str:
        """As it stands in ``STAGEWATCH_RUN``."""
        return ".".join(
            (
                self.run_id,
                str(self.pid),
                str(self.ticks),
                self.trace_id,
                self.span_id,
                "1" if self.sampled else "0",
                str(self.clock),
                self.pipeline,
            )
        )

    @property
    def is_alive(self) -> bool:
        """Whether the process that opened the run still is; a run ends with it."""
        try:
            if not self.ticks:  # it had no /proc to say more
                os.kill(self.pid, 0)
                return True
            return start_ticks(self.pid) == self.ticks
        except (OSError, ValueError, IndexError):
            return False

    @property
    def is_ours(self) -> bool:
        """Whether this very process opened it, before an ``exec``."""
        return self.pid == os.getpid() and self.is_alive


def parent_run(value: str | None) -> ParentRun | None:
    """Read ``STAGEWATCH_RUN``; None if it is unset or not ours."""
    parts = (value or "").split(".", 7)
    try:
        run_id, pid, ticks, trace_id, span_id, sampled, clock, pipeline = parts
        if (
            len(run_id) == len(bytes.fromhex(trace_id)) * 2 == 32
            and len(bytes.fromhex(span_id)) == 8
        ):
            return ParentRun(
                run_id,
                int(pid),
                int(ticks),
                trace_id,
                span_id,
                sampled == "1",
                pipeline,
                int(clock),
            )
    except ValueError:
        pass
    return None
