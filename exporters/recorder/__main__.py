"""``STATE ROOM INODE SOCKET DEPOSIT DEPOSIT STARTS``: the arguments that `spawn` gives."""

from __future__ import annotations

import gc
import logging
import os
import resource
import selectors
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from stagewatch import safety
from stagewatch.exporters.recorder.deposit import Deposit
from stagewatch.exporters.recorder.door import Door
from stagewatch.exporters.recorder.loop import Recorder
from stagewatch.exporters.recorder.watching.watch import Watch
from stagewatch.exporters.state import remember_settings
from stagewatch.safety import guarded
from stagewatch.system import LINUX

_FLUSH_SECONDS: Final = 5.0
_LOG_BYTES: Final = 1 << 18
_MOST_FILES: Final = 1 << 30 if LINUX else 10240
"""More macOS does not grant, whatever its limit says."""


def main() -> None:
    """Be the recorder of a room until nobody needs it; exits, but by a signal, with status 0."""
    state, room = Path(sys.argv[1]), Path(sys.argv[2])
    place, listening, *deposit = (int(argument) for argument in sys.argv[3:7])
    if "detach" in sys.argv and os.fork():
        os._exit(0)
    _settle(state)
    try:
        _record(state, room, listening, place, Deposit(*deposit))
    except Exception as error:
        safety.report(error)
    os._exit(0)  # threads of the exporters may hang in a dead network


def _record(state: Path, room: Path, listening: int, place: int, deposit: Deposit) -> None:
    selector = selectors.DefaultSelector()
    door = Door(room, selector)
    callers = door.take_over(listening, place)
    if callers is None:
        return
    left = deposit.left()
    for caller in callers:  # at once: until the rest is loaded we may be killed, too
        if caller.key and caller.pidfd is not None:
            deposit.put(caller.key, caller.pidfd)
    # Only who is the recorder loads the rest, and opens the history.
    from stagewatch.config import load_or_default
    from stagewatch.exporters.recorder.ingest import Intake, open_intake
    from stagewatch.exporters.recorder.patience import open_patiently
    from stagewatch.exporters.recorder.upkeep import Upkeep

    settings = load_or_default(os.environ, Path("/"))[0].settings

    def opening() -> Intake:
        remember_settings(room, os.environ)
        return open_intake(state, room, os.environ)

    signal.signal(signal.SIGTERM, _end)
    intake = open_patiently(opening, room, door, selector, deposit, callers, settings.recorder_idle)
    if intake is None:
        return
    watch = Watch(room, intake, selector, settings, deposit)
    upkeep = Upkeep(state, room, os.environ, intake, watch)
    recorder = Recorder(room, intake, door, watch, selector, upkeep.do)

    def stop(*_: object) -> None:
        recorder.is_stopped = True

    # Who waits for our end waits for the flush, not for a nap that a signal does not end.
    woken, wakes = socket.socketpair()
    wakes.setblocking(False)
    selector.register(woken, selectors.EVENT_READ)
    signal.set_wakeup_fd(wakes.fileno())
    signal.signal(signal.SIGTERM, stop)
    gc.collect()
    gc.freeze()
    try:
        recorder.run([*left, *callers], settings)
    finally:
        watch.close()
        intake.stop(_FLUSH_SECONDS)
        door.close()  # last: the next recorder begins where this one ended


def _end(*_: object) -> NoReturn:
    sys.exit()


def _settle(state: Path) -> None:
    """Be a good neighbour: deaf to the terminal, first to go when memory runs out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.umask(0o077)
    with guarded:
        _log_into(state / "recorder.log")
    with guarded, suppress(FileNotFoundError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        with guarded:
            _, most = resource.getrlimit(limit)
            allowed = min(most, _MOST_FILES) if limit == resource.RLIMIT_NOFILE else most
            resource.setrlimit(limit, (allowed, most))


def _log_into(path: Path) -> None:
    """Our own lines only: what exporters log may quote a backend's answer."""
    if path.exists() and path.stat().st_size > _LOG_BYTES:
        path.rename(path.with_suffix(".log.1"))
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)sZ %(process)d %(message)s"))
    logging.Formatter.converter = time.gmtime
    logger = logging.getLogger("stagewatch")
    logger.addHandler(handler)
    logger.propagate = False
    logging.getLogger().addHandler(logging.NullHandler())


if __name__ == "__main__":
    main()
