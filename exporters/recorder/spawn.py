"""How a recorder's process comes into being: its command, its environment, its keeper.

Not with `subprocess`, whose import takes longer than all of this. posix_spawn(3) forks like
vfork, in a time that does not depend on the size of the job.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewatch.exporters.state import FILE_SETTINGS

_SHELL: Final = "/bin/sh"
# The shell stays and replaces a killed recorder; $0 is the file whose time says since when. Later
# ones come more slowly: where memory is short the recorder is the first to be killed, every time.
_KEEPER: Final = (
    'cd /; (n=0; while :; do : >"$0"; "$@" $n; [ $? -gt 128 ] && [ $n -lt 20 ] || exit 0;'
    " n=$((n+1)); sleep $((n/4)).1; done) &"
)
_MAIN: Final = (
    "import sys; sys.path += [p for p in sys.argv.pop(1).split(chr(10)) if p not in sys.path];"
    "from stagewatch.exporters.recorder.__main__ import main; main()"
)
_NOT_FOR_THE_RECORDER: Final = (
    "STAGEWATCH_RUN",
    "STAGEWATCH_PARENT",
    "TRACEPARENT",
    "TRACESTATE",
    "LD_PRELOAD",
)
_SIGNALS_TO_RESET: Final = (
    signal.SIGPIPE,
    signal.SIGCHLD,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
)


def spawn(room: Path, state: Path, listening: int, environ: Mapping[str, str]) -> None:
    """Start keeper and recorder of *room*: a session of their own, not our children, with nothing
    open but the null device, the socket *listening*, which is ``ROOM/sock``, and a pair of sockets
    for the `Deposit`. Raises OSError.
    """
    if not sys.executable:
        raise FileNotFoundError("no Python to run the recorder with: sys.executable is empty")
    pair = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    # Not 0, 1 or 2: a job that was started without them may have got such a number.
    handed = [
        fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
        for descriptor in (listening, pair[0].fileno(), pair[1].fileno())
    ]
    for end in pair:
        end.close()
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        command = _command(room, state, handed)
        numbers = _open_descriptors() - {0, 1, 2, *handed}
        pid = os.posix_spawn(
            command[0],
            command,
            recorder_environment(environ),
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, null, standard) for standard in (0, 1, 2)),
                # Onto itself: takes close-on-exec off.
                *((os.POSIX_SPAWN_DUP2, number, number) for number in handed),
                *((os.POSIX_SPAWN_CLOSE, number) for number in numbers),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS_TO_RESET,
        )
    finally:
        os.close(null)
        for number in handed:
            os.close(number)
    status = 0
    with suppress(ChildProcessError):
        _, status = os.waitpid(pid, 0)  # it has put the keeper into the background and is gone
    if status:
        raise OSError(f"{command[0]} ended with wait status {status}")


def recorder_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """*environ* without what would instrument the recorder or make it part of a run."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(("PYTHON", "OTEL_PYTHON_")) and name not in _NOT_FOR_THE_RECORDER
    }
    for name, value in kept.items():
        if name.startswith("OTEL_EXPORTER_OTLP_") and name.endswith(FILE_SETTINGS) and value:
            kept[name] = os.path.abspath(value)  # the recorder lives in another directory
    kept["MALLOC_ARENA_MAX"] = "1"
    return kept


def _command(room: Path, state: Path, handed: list[int]) -> list[str]:
    python = [sys.executable, "-I", "-c", _MAIN, "\n".join(_import_path())]
    place = os.stat(room / "sock").st_ino
    recorder = [*python, str(state), str(room), str(place), *map(str, handed)]
    if os.path.exists(_SHELL):
        return [_SHELL, "-c", _KEEPER, str(room / "start"), *recorder]
    return [*recorder, "0", "detach"]


def _open_descriptors() -> set[int]:
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}
    except OSError:  # no /proc
        return {number for number in range(os.sysconf("SC_OPEN_MAX")) if _is_open(number)}


def _is_open(number: int) -> bool:
    try:
        fcntl.fcntl(number, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _import_path() -> list[str]:
    """Where our packages come from: an isolated Python has neither PYTHONPATH nor user site."""
    found: dict[str, None] = {}
    for name in ("stagewatch", "opentelemetry", "msgspec"):
        for folder in getattr(sys.modules.get(name), "__path__", ()):
            found[os.path.dirname(os.path.abspath(folder))] = None
    return list(found)
