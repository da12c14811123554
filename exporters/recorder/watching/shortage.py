"""Who was killed for want of memory, judged by the kernel's counters (decision 11)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection, Mapping

import msgspec

from stagewatch.exporters.journal import oom_count, oom_kills
from stagewatch.exporters.recorder.watching.observer import Process
from stagewatch.exporters.recorder.watching.outcome import Death


class Shortage:
    """The counters of the watched processes, as they were at the last looks.

    A process dies some time after it was counted, and a look may come in between: so it is the
    look before the last one that counts.
    """

    def __init__(self) -> None:
        self._places: dict[Process, str | None] = {}
        self._before: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def look(self, watched: Collection[Process]) -> None:
        """Read the counters of *watched*, one for all who share it."""
        for process in watched:
            if process not in self._places:
                self._places[process] = next(iter(oom_kills(process.pid)), None)
        self._places = {process: self._places[process] for process in watched}
        self._before = self._counts
        counts = {place: oom_count(place) for place in set(self._places.values()) if place}
        self._counts = {place: count for place, count in counts.items() if count is not None}

    def judge(
        self,
        deaths: Mapping[Process, Death],
        at_start: Callable[[Process], Mapping[str, int]],
    ) -> dict[Process, Death]:
        """*deaths*, all seen at one moment, with who was killed for want of memory.

        *at_start*: the counters as the process found them. Who shares a counter with another who
        was killed in the same moment is not told apart from it.
        """
        judged = dict(deaths)
        suspects: dict[str, list[Process]] = {}
        for process, death in deaths.items():
            if _was_killed(death.wait_status):
                counters = at_start(process)
                place = self._places.get(process) or next(iter(counters), None)
                if place is not None:
                    self._before.setdefault(place, counters.get(place, self._counts.get(place, 0)))
                    suspects.setdefault(place, []).append(process)
        for place, killed in suspects.items():
            count = oom_count(place)
            if count is None:
                continue
            if count > self._before[place] and len(killed) == 1:
                process = killed[0]
                judged[process] = msgspec.structs.replace(judged[process], oom_killed=True)
            self._before[place] = self._counts[place] = count
        return judged


def _was_killed(status: int | None) -> bool:
    return status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
