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
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewatch.exporters.state import FILE_SETTINGS
from stagewatch.system import DESCRIPTORS, LINUX

_SHELL: Final = "/bin/sh"
_HANDED: Final = (3, 4, 5)
"""What the recorder gets as descriptors."""
_MESSAGES: Final = _socket.SOCK_SEQPACKET if LINUX else _socket.SOCK_DGRAM
"""Of the deposit; without pidfds nothing is ever left in it."""
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
    pair = _socket.socketpair(_socket.AF_UNIX, _MESSAGES)
    own = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), *(end.detach() for end in pair)]
    # Above the numbers they are to have: a duplicate under another number loses close-on-exec.
    null, *handed = (
        fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 1 + max(_HANDED))
        for descriptor in (own[0], listening, *own[1:])
    )
    for descriptor in own:
        os.close(descriptor)
    try:
        command = _command(room, state)
        pid = os.posix_spawn(
            command[0],
            command,
            recorder_environment(environ),
            file_actions=[
                *((os.POSIX_SPAWN_DUP2, null, standard) for standard in (0, 1, 2)),
                *((os.POSIX_SPAWN_DUP2, *numbers) for numbers in zip(handed, _HANDED, strict=True)),
                *((os.POSIX_SPAWN_CLOSE, number) for number in _inherited() - {0, 1, 2, *_HANDED}),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS_TO_RESET,
        )
    finally:
        for number in (null, *handed):
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


def _command(room: Path, state: Path) -> list[str]:
    python = [sys.executable, "-I", "-c", _MAIN, "\n".join(_import_path())]
    place = os.stat(room / "sock").st_ino
    recorder = [*python, str(state), str(room), str(place), *map(str, _HANDED)]
    if os.path.exists(_SHELL):
        return [_SHELL, "-c", _KEEPER, str(room / "start"), *recorder]
    return [*recorder, "0", "detach"]


def _inherited() -> set[int]:
    """Descriptors that exec would not close."""
    try:
        found: Iterable[int] = map(int, os.listdir(DESCRIPTORS))
    except OSError:  # no /proc
        found = range(os.sysconf("SC_OPEN_MAX"))
    return {number for number in found if _is_inherited(number)}


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:  # it is not open
        return False


def _import_path() -> list[str]:
    """Where our packages come from: an isolated Python has neither PYTHONPATH nor user site."""
    found: dict[str, None] = {}
    for name in ("stagewatch", "opentelemetry", "msgspec", "psutil"):
        for folder in getattr(sys.modules.get(name), "__path__", ()):
            found[os.path.dirname(os.path.abspath(folder))] = None
    return list(found)
