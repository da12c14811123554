"""The thin parent of ``stagewatch run``: waits for the command, passes signals on, reaps, leaves
word of how it ended, and ends likewise.

It stays as long as the command does, so it imports little and holds nothing of what it was given.

Signals. One for the whole process group (Ctrl-C, ``kill -- -PGID``, what ``timeout`` does) or for
all of a systemd unit reaches the command without us; one for this process alone has to be passed
on. The kernel does not tell which it was, and the sender's group says nothing (a script that kills
its child is in the same group). So another process of the group, which blocks all signals, is a
witness: what is pending there came for everybody.

macOS cannot be asked for a death without reaping, nor for signals without waiting, nor for what is
pending elsewhere: there handlers note signals, and the witness is a Python that is asked itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

from stagewatch.exporters.recorder.watching import exits
from stagewatch.system import DESCRIPTORS, LINUX, PEAK_UNIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from resource import struct_rusage
    from typing import NoReturn

_ALL = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}
_STOPS = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
_EVERYBODY_SECONDS = 0.02
"""In which a signal for many reaches all of them: it is sent to one after the other."""
_UPTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_WITNESSES = "/bin/cat", "/usr/bin/cat"
_PR_SET_DUMPABLE = 4
_PASSED_ON = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
)
"""On macOS. Those that stop, stop us there as they do the rest of the group."""
_WITNESS = """
import os, signal
while os.read(0, 1):
    seen = signal.sigpending()
    for number in seen: signal.sigwait([number])
    os.write(1, bytes([0, *seen]))
"""


def run(become: Callable[[Child], NoReturn]) -> NoReturn:
    """Let a child *become* the command, and end as it does."""
    reads, writes = os.pipe()
    ready, is_ready = os.pipe()
    child = Child(writes, ready)
    try:
        pid = os.fork()
    except OSError:
        pid = 0  # no process can be had: then nobody waits, and the command runs all the same
    if pid == 0:
        os.close(reads)
        os.close(is_ready)
        try:
            become(child)
        finally:
            os._exit(126)
    try:
        os.close(writes)
        os.close(ready)
        _let_go_of_all_but(reads, is_ready)
        witness = _Witness() if LINUX else _AskedWitness()
        os.close(is_ready)
        _attend(pid, reads, witness)
    except Exception:  # ours: then without signals and word, but to the true end
        with suppress(OSError):
            os.close(is_ready)
        _end_as(os.waitpid(pid, 0)[1])


def _attend(pid: int, reads: int, witness: _Witness | _AskedWitness) -> NoReturn:
    usage = None
    if isinstance(witness, _Witness):
        status = _wait(pid, witness)
    else:
        status, usage = _wait_and_reap(pid, witness)
    at = time.time_ns(), time.clock_gettime_ns(_UPTIME)
    word = os.read(reads, 1 << 16)
    if word:
        room, ticks, seconds, cpu, memory = word.split(b"\0")
        process = os.fsdecode(room), pid, int(ticks)
        if usage is None:
            exits.leave(*process, status, *at)
            _, _, usage = os.wait4(pid, 0)
        peak = usage.ru_maxrss * PEAK_UNIT if usage.ru_maxrss > int(memory) else 0
        used = max(usage.ru_utime + usage.ru_stime - float(cpu), 0.0)
        exits.leave(*process, status, *at, used, peak)
        if float(seconds):
            _see_off(os.fsdecode(room), float(seconds))
    _end_as(status)


class Child:
    """The process that becomes the command, seen from itself."""

    def __init__(self, tell: int, ready: int) -> None:
        self._tell = tell
        self._ready = ready
        self._children = signal.getsignal(signal.SIGCHLD)
        if self._children is signal.SIG_IGN:  # then there would be nothing to wait for
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)

    def tell(self, room: str, ticks: int, seconds: float, cpu_before: float | None) -> None:
        """Tell the parent where to leave word of the end of this process, started at *ticks*.

        *seconds*: how long it may wait until everything is sent, 0 if it need not. *cpu_before*:
        what this process had used when it opened the run, None if the command does that: what it
        has used since is not the command's.
        """
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        used, memory = 0.0, 0
        if cpu_before is not None:
            used = max(usage.ru_utime + usage.ru_stime - cpu_before, 0.0)
            memory = usage.ru_maxrss
        os.write(self._tell, os.fsencode(f"{room}\0{ticks}\0{seconds}\0{used}\0{memory}"))

    def restore_signals(self) -> None:
        """Handlers and mask as they were before this program; what came meanwhile is delivered.

        First waits until the parent attends to signals.
        """
        os.read(self._ready, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them
            signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._children is signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)


def _let_go_of_all_but(*kept: int) -> None:
    """Who reads what the command writes is done when the command closes it, not when we do."""
    null = os.open(os.devnull, os.O_RDWR)
    for standard in {0, 1, 2} - {*kept, null}:
        os.dup2(null, standard)
    try:
        held = [int(name) for name in os.listdir(DESCRIPTORS)]
    except OSError:
        return
    for descriptor in set(held) - {0, 1, 2, *kept}:
        try:
            os.close(descriptor)
        except OSError:  # that of the listing
            continue


def _wait(child: int, witness: _Witness) -> int:
    """Until *child* is dead, but not reaped. Returns how it ended, as wait(2) gives it."""
    stopped_by = 0
    is_to_stop = False
    while True:
        received = _receive()
        status = _reap_others(child, witness)
        if status is not None:
            witness.end()
            return status
        news = received - {signal.SIGCHLD}
        for number in news - witness.saw() if news else ():
            os.kill(child, number)
        stopped_by = _stopped_by(child, stopped_by)
        is_to_stop = signal.SIGCONT not in news and (is_to_stop or bool(news & _STOPS))
        if is_to_stop and stopped_by:
            _stop(stopped_by)
            is_to_stop, stopped_by = False, 0


def _wait_and_reap(child: int, witness: _AskedWitness) -> tuple[int, struct_rusage]:
    """Until *child* is dead: on macOS. Returns how it ended, and what it used."""
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    for noted in (*_PASSED_ON, signal.SIGCHLD):
        signal.signal(noted, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)
    seen: set[int] = set()
    while True:
        dead, status, usage = os.wait4(child, os.WNOHANG)
        if dead:
            signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
            return status, usage
        received = set(os.read(told, 1 << 10)) - {signal.SIGCHLD}
        if received:
            time.sleep(_EVERYBODY_SECONDS)
            seen |= witness.saw()
        for number in received - seen:
            os.kill(child, number)
        seen -= received


def _receive() -> set[int]:
    """Wait for signals; more than SIGCHLD: until those sent to many have reached all of them."""
    received = {int(signal.sigwait(_ALL))} | _pending()
    if received != {signal.SIGCHLD}:
        if signal.sigtimedwait({signal.SIGCHLD}, _EVERYBODY_SECONDS):
            received.add(signal.SIGCHLD)
        received |= _pending()
    return received


def _pending() -> set[int]:
    found = set()
    while info := signal.sigtimedwait(_ALL, 0):
        found.add(info.si_signo)
    return found


def _reap_others(child: int, witness: _Witness) -> int | None:
    """Reap orphans, of which PID 1 gets all. Returns the status of *child* if it is dead."""
    while info := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if info.si_pid == child:
            if info.si_code == os.CLD_EXITED:
                return info.si_status << 8
            return info.si_status | (0x80 if info.si_code == os.CLD_DUMPED else 0)
        os.waitpid(info.si_pid, 0)
        witness.is_reaped(info.si_pid)
    return None


def _stopped_by(child: int, before: int) -> int:
    """The signal by which *child* is stopped, 0 if it is not; *before*, if there is no news."""
    what = os.WSTOPPED | os.WCONTINUED | os.WNOHANG
    with suppress(ChildProcessError):  # it died just now, and SIGCHLD says so
        while info := os.waitid(os.P_PID, child, what):
            before = info.si_status if info.si_code == os.CLD_STOPPED else 0
    return before


def _stop(number: int) -> None:
    """Stop as the command did, so that the shell sees it; returns when we are continued."""
    os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)


class _Witness:
    """A process of our group with which all signals stay pending. It ends when we do."""

    def __init__(self) -> None:
        self._pid = 0
        self._start()

    def saw(self) -> set[int]:
        """The signals that it was sent too, since it was last asked."""
        try:
            with open(f"/proc/{self._pid}/status", "rb") as file:
                pending = int(file.read().partition(b"ShdPnd:")[2].split(None, 1)[0], 16)
        except (OSError, IndexError, ValueError):
            return set()
        if pending:
            self.end()
            self._start()
        return {number for number in _ALL if pending >> number - 1 & 1}

    def is_reaped(self, pid: int) -> None:
        """Process *pid* is dead, perhaps this one."""
        if pid == self._pid:
            self._pid = 0
            os.close(self._holds)
            self._start()

    def end(self) -> None:
        """It is not needed any more."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._holds)
            self._pid = 0

    def _start(self) -> None:
        # Not a fork: `pkill -f "stagewatch run"` would find that too.
        reads, self._holds = os.pipe()
        for path in _WITNESSES:
            try:
                self._pid = os.posix_spawn(
                    path, ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reads, 0)]
                )
                break
            except OSError:
                continue
        else:
            os.close(self._holds)
        os.close(reads)


class _AskedWitness:
    """The same where nobody else sees what is pending with a process. It ends when we do."""

    def __init__(self) -> None:
        asked, self._asks = os.pipe()
        self._answers, answered = os.pipe()
        onto = ((os.POSIX_SPAWN_DUP2, asked, 0), (os.POSIX_SPAWN_DUP2, answered, 1))
        command = [sys.executable, "-I", "-S", "-c", _WITNESS]
        with suppress(OSError):
            os.posix_spawn(sys.executable, command, {}, file_actions=onto)
        os.close(asked)
        os.close(answered)

    def saw(self) -> set[int]:
        """The signals that it was sent too, since it was last asked."""
        try:
            os.write(self._asks, b"?")
            return set(os.read(self._answers, 1 + len(_ALL)))
        except OSError:  # it is not there
            return set()


def _see_off(room: str, seconds: float) -> None:
    """Everything here ends with us: let the recorder take in all there is, send it, and end.

    For at most *seconds*, until the first refusal; where no recorder is, it is done here.
    """
    from pathlib import Path

    from stagewatch.exporters.recorder import run_in_process, start
    from stagewatch.safety import guarded

    until = time.monotonic() + seconds
    place = Path(room)
    with guarded:
        if start.ask_to_take_in(place, seconds):
            start.end_recorder(place, max(until - time.monotonic(), 0.0))
        else:
            left = max(until - time.monotonic(), 0.0)
            run_in_process(place.parents[1], place, os.environ, left)


def _end_as(status: int) -> NoReturn:
    """Exit, or die, as the command did."""
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    if os.getpid() != 1:  # which no signal of its own kills
        _leave_no_core()
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os._exit(128 + number)


def _leave_no_core() -> None:
    if not LINUX:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        return
    # A limit of 0 would not stop a core that the system pipes into a program.
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
