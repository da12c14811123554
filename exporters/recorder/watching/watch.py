"""Watches processes, takes in their journals, and closes what the dead left.

Nothing here knows what records mean; that is the intake's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from selectors import EVENT_READ, BaseSelector
from typing import Final, Protocol

from msgspec import structs

from stagewatch import safety
from stagewatch.config import Settings
from stagewatch.exporters.journal import boot_id, host_id, pid_namespace
from stagewatch.exporters.life import is_held
from stagewatch.exporters.page import PageReader
from stagewatch.exporters.recorder.deposit import Deposit
from stagewatch.exporters.recorder.door import Caller, is_key
from stagewatch.exporters.recorder.watching import exits, kernel
from stagewatch.exporters.recorder.watching.follow import Follower, Taker, remove_files
from stagewatch.exporters.recorder.watching.observer import Observer, Process, Seen
from stagewatch.exporters.recorder.watching.outcome import Death
from stagewatch.exporters.recorder.watching.shortage import Shortage
from stagewatch.exporters.recorder.watching.vitals import Sighting, Vitals
from stagewatch.measures import SECOND, uptime
from stagewatch.records import ProcessStarted

_ORPHAN_SECONDS: Final = 60.0


class Intake(Taker, Protocol):
    """What becomes of the records: see `stagewatch.exporters.recorder.ingest`."""

    def over(self) -> Collection[str]: ...

    def tick(self, sightings: Mapping[str, Sighting], now: int) -> None: ...

    def note(self, now: int) -> None: ...

    def is_busy(self) -> bool: ...

    def is_outdated(self) -> bool: ...

    def stop(self, timeout: float) -> None: ...

    def headers(self, environ: dict[str, str]) -> None: ...


class Watch:
    """The processes of one room. Only for who holds the room's life."""

    def __init__(
        self,
        room: Path,
        intake: Intake,
        selector: BaseSelector,
        settings: Settings | None = None,
        deposit: Deposit | None = None,
    ) -> None:
        self.followers: dict[str, Follower] = {}
        self._room = room
        self._intake = intake
        self._selector = selector
        self._by_pidfd: dict[int, Follower] = {}
        self._foreign: set[str] = set()
        self._dead: dict[str, Death] = {}
        self._observer = Observer(settings or Settings(), kernel.reader())
        self._shortage = Shortage()
        self._deposit = deposit
        self._host = host_id()
        self._boot = boot_id()
        self._namespace = pid_namespace()

    def greet(self, caller: Caller) -> None:
        """Follow a process that says that it exists."""
        if caller.headers:
            self._intake.headers(caller.headers)
        if not caller.key:
            return
        follower = self._follow(caller.key)
        if follower is None or follower.pidfd is not None:
            if caller.pidfd is not None:
                os.close(caller.pidfd)
        elif caller.pidfd is not None:
            self._dead.pop(caller.key, None)  # dead it may be, but with this it is known how
            self._watch(follower, caller.pidfd)

    def find(self, keys: Sequence[str]) -> None:
        """Follow the processes of journals that were seen on disk, and judge them.

        Greet once more before `bury`: who is found dead may have called in between.
        """
        for key in keys:
            follower = self._follow(key)
            if follower is not None and follower.pidfd is None and key not in self._dead:
                self._judge(follower)

    def read(self, *, everything: bool = False) -> int:
        """Take in what is new, and close whose run is over; about how many bytes that were."""
        size = 0
        reading = []
        for follower in self.followers.values():
            if follower.key not in self._dead:
                news = follower.news()
                size += news
                if news or everything:
                    reading.append(follower)
        for follower in self._read_together(reading):
            follower.read()
        self._close_over()
        return size

    def _close_over(self) -> None:
        """Close the journals of runs that are over although their process lives."""
        for key in self._intake.over():
            follower = self.followers.get(key)
            if follower is not None and key not in self._dead and follower.close(Death()):
                self._forget(follower)

    def _read_together(self, followers: Iterable[Follower]) -> list[Follower]:
        """Take in the beginning of what is new, in one transaction; returns who has more."""
        offers = [(follower, follower.offer()) for follower in followers]
        more = [follower for follower, offer in offers if offer is None]
        offered = [(follower, offer) for follower, offer in offers if offer is not None]
        try:
            self._intake.take(*(offer.part for _, offer in offered))
        except Exception:  # each by itself: then it is clear whose fault it is
            return [follower for follower, _ in offers]
        return more + [follower for follower, offer in offered if not follower.took(offer)]

    def died(self, *pidfds: int) -> None:
        """Of the dead: close all journals their processes wrote, before and after an exec."""
        deaths: dict[Process, Death] = {}
        for pidfd in pidfds:
            follower = self._by_pidfd[pidfd]
            process = Process(follower.pid, follower.ticks)
            if process not in deaths:
                vitals = self._observer.farewell(process)
                status = kernel.wait_status(pidfd, *process)
                deaths[process] = self._told(process, _death(status, vitals))
        self._certify(deaths)
        self.bury()

    def end_ours(self, ticks: int) -> None:
        """This very process ends, and nobody outlives it: its journals say all there is."""
        self._mark_dead({Process(os.getpid(), ticks): Death()})
        self.bury()

    def bury(self) -> None:
        """Close the journals of the dead; what cannot be closed now is tried again later."""
        if self._dead:
            self.read()  # a worker may be dead before the start of its run was read
        dead = [self.followers[key] for key in self._dead if key in self.followers]
        read = [follower for follower in dead if follower.read(final=True)]
        # Who opened a run goes last: with it the run is closed.
        for follower in sorted(read, key=lambda follower: follower.opens_run):
            if follower.close(self._dead[follower.key]):
                self._forget(follower)

    def sightings(self) -> dict[str, Sighting]:
        """The processes that are watched, as they are now.

        Of one that called exec the vitals stand with its last journal alone: so they add up. One
        that has several runs has used as much for each.
        """
        journals_of: dict[Process, list[Follower]] = {}
        for follower in self.followers.values():
            if follower.page is not None and follower.key not in self._dead:
                process = Process(follower.pid, follower.ticks)
                journals_of.setdefault(process, []).append(follower)
        pages = {
            process: [follower.page for follower in written if follower.page is not None]
            for process, written in journals_of.items()
        }
        seen = self._observer.look(pages)
        self._shortage.look(pages)
        found = {}
        for process, written in journals_of.items():
            what = seen.get(process, Seen())
            last = {_run(follower): follower for follower in sorted(written, key=_began)}
            for follower, page in zip(written, pages[process], strict=True):
                is_last = follower is last[_run(follower)]
                found[follower.key] = _sighting(page, what, is_last=is_last)
        return found

    def ages(self) -> dict[str, float]:
        """Seconds for which those have lived that opened a run and go on with it."""
        return {
            follower.key: _age(follower.started)
            for follower in self.followers.values()
            if follower.started is not None and follower.opens_run
            if follower.key not in self._dead
        }

    def is_pidfd(self, descriptor: int) -> bool:
        """Whether this descriptor is one of a process that is watched."""
        return descriptor in self._by_pidfd

    def close(self) -> None:
        """Let go of everything; the files stay for the next recorder."""
        for follower in list(self.followers.values()):
            follower.forget()
            self._forget(follower)
        self._observer.close()

    def _certify(self, deaths: Mapping[Process, Death]) -> None:
        self._mark_dead(self._shortage.judge(deaths, self._oom_kills))

    def _oom_kills(self, process: Process) -> Mapping[str, int]:
        """The counters at its start."""
        return next(
            (
                follower.started.oom_kills
                for follower in self.followers.values()
                if (follower.pid, follower.ticks) == process and follower.started is not None
            ),
            {},
        )

    def _mark_dead(self, deaths: Mapping[Process, Death]) -> None:
        """All journals they wrote, those that nobody has found yet, too."""
        keys = dict.fromkeys(self.followers)  # whose files somebody may have deleted
        with safety.guarded:
            keys |= dict.fromkeys(journals(self._room))
        for key in keys:
            death = deaths.get(_process(key))
            if death is not None and self._follow(key) is not None:
                self._dead[key] = death
                self._release(self.followers[key])

    def _follow(self, key: str) -> Follower | None:
        if key in self.followers:
            return self.followers[key]
        if key in self._foreign:
            return None
        try:
            follower = Follower(self._room, key, self._intake)
        except Exception as error:
            if not isinstance(error, FileNotFoundError):
                safety.report(error)
            return None
        if follower.is_closed:
            follower.forget()
            return None
        started = follower.started
        if started is not None and not self._is_ours(started):
            self._foreign.add(key)
            follower.forget()
            return None
        self.followers[key] = follower
        return follower

    def _watch(self, follower: Follower, pidfd: int) -> None:
        follower.pidfd = pidfd
        self._by_pidfd[pidfd] = follower
        self._selector.register(pidfd, EVENT_READ)
        if self._deposit is not None:
            self._deposit.put(follower.key, pidfd)

    def _judge(self, follower: Follower) -> None:
        """Nobody handed us this process: it may be long gone, and its pid another's."""
        started, process = follower.started, Process(follower.pid, follower.ticks)
        if started is not None and self._is_of_another_boot(started) and not follower.is_held():
            death = Death(at=follower.last_sign(), lost_host=True)
            self._dead[follower.key] = self._told(process, death, _is_gone)
        elif follower.pid_namespace not in (self._namespace, None):
            if follower.is_held() is False:
                death = Death(at=follower.last_sign())
                self._dead[follower.key] = self._told(process, death, _may_live)
        elif follower.ticks and kernel.tells():
            self._judge_by_pid(follower)
        else:
            self._judge_by_page(follower)

    def _judge_by_pid(self, follower: Follower) -> None:
        pidfd = kernel.open_pidfd(follower.pid, follower.ticks)
        if pidfd is not None:
            self._watch(follower, pidfd)
        elif kernel.is_running(follower.pid, follower.ticks) or (
            follower.started is None and not follower.is_older(_ORPHAN_SECONDS)
        ):
            return  # perhaps another host's, which has not said so yet
        else:
            self._find_dead(follower)

    def _find_dead(self, follower: Follower) -> None:
        """There is no pidfd to ask, but perhaps nobody has waited for the process yet."""
        process = Process(follower.pid, follower.ticks)
        status = kernel.zombie_status(*process)
        if status is None and not self._observer.knows(process):
            self._dead[follower.key] = self._told(process, Death(at=follower.last_sign()))
        else:
            vitals = self._observer.farewell(process)
            self._certify({process: self._told(process, _death(status, vitals))})

    def _told(
        self,
        process: Process,
        death: Death,
        is_running: Callable[[int, int], bool] = kernel.is_running,
    ) -> Death:
        """With what its parent left word of, where that is `stagewatch run`; *is_running*: it is
        worth while to wait for a parent that has promised it."""
        found = exits.read(self._room, *process, is_running)
        if found is None:
            return death
        vitals = death.vitals or Vitals()
        if found.usage is not None:
            cpu, memory = found.usage
            peak = memory or vitals.memory_peak
            vitals = structs.replace(vitals, cpu_seconds=cpu, memory_peak=peak)
        status = found.status if death.wait_status is None else death.wait_status
        return structs.replace(
            death, wait_status=status, at=found.at, uptime=found.uptime, vitals=vitals
        )

    def _judge_by_page(self, follower: Follower) -> None:
        # Without /proc (or psutil) nobody knows whose a pid is, unless its process holds the page.
        pidfd = kernel.open_any_pidfd(follower.pid)
        is_held = follower.is_held()
        if is_held and pidfd is not None:
            self._watch(follower, pidfd)
            return
        if pidfd is not None:
            os.close(pidfd)
        if is_held is False or (is_held is None and pidfd is None):
            process = Process(follower.pid, follower.ticks)
            self._dead[follower.key] = self._told(process, Death(at=follower.last_sign()))

    def _is_ours(self, started: ProcessStarted) -> bool:
        # Containers have ids of their own, but share the boot of their host.
        return started.host_id == self._host or started.boot_id == self._boot != ""

    def _is_of_another_boot(self, started: ProcessStarted) -> bool:
        return "" != started.boot_id != self._boot != ""

    def _forget(self, follower: Follower) -> None:
        self._dead.pop(follower.key, None)
        self.followers.pop(follower.key, None)
        self._release(follower)

    def _release(self, follower: Follower) -> None:
        # Of a dead process a pidfd stays readable, and who polls it runs hot.
        if follower.pidfd is not None:
            self._selector.unregister(follower.pidfd)
            del self._by_pidfd[follower.pidfd]
            os.close(follower.pidfd)
            follower.pidfd = None
            if self._deposit is not None:
                self._deposit.tidy(lambda key: key in self.followers)


def _is_gone(pid: int, ticks: int) -> bool:
    """With its boot."""
    return False


def _may_live(pid: int, ticks: int) -> bool:
    """In a PID namespace that cannot be looked into."""
    return True


def _death(status: int | None, vitals: Vitals | None) -> Death:
    """One that is seen now."""
    return Death(status, time.time_ns(), vitals=vitals, uptime=uptime())


def _age(started: ProcessStarted) -> float:
    if started.uptime:
        return (uptime() - started.uptime) / SECOND
    return (time.time_ns() - started.start) / SECOND


def _run(follower: Follower) -> str:
    return follower.started.run_id if follower.started is not None else ""


def _began(follower: Follower) -> int:
    return follower.started.start if follower.started is not None else 0


def _sighting(page: PageReader, seen: Seen, *, is_last: bool) -> Sighting:
    vitals = seen.vitals if is_last else None
    return Sighting(page, vitals, seen.is_still, seen.waits_for, seen.stack)


def journals(room: Path) -> list[str]:
    """Keys of the journals in *room*; sweeps away what processes left that wrote none."""
    names = os.listdir(room)
    found = [name.removesuffix(".0.journal") for name in names if name.endswith(".0.journal")]
    keys = dict.fromkeys(key for key in found if is_key(key))
    processes = {_process(key) for key in keys}
    for name in names:
        key = name.removesuffix(".page")
        process = exits.process(name)
        if key != name and is_key(key) and key not in keys:
            if _is_orphan(room / name, *_process(key)):
                remove_files(room, key)
        elif process and process not in processes and _is_orphan(room / name, *process):
            (room / name).unlink(missing_ok=True)
    return list(keys)


def _process(key: str) -> Process:
    pid, ticks, _ = key.split(".")
    return Process(int(pid), int(ticks))


def _is_orphan(path: Path, pid: int, ticks: int) -> bool:
    try:
        old = time.time() - path.stat().st_mtime > _ORPHAN_SECONDS
    except OSError:
        return False
    return old and not kernel.is_running(pid, ticks) and not _is_held(path)


def _is_held(page: Path) -> bool:
    try:
        return is_held(page)
    except OSError:
        return False
