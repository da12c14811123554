"""When a recorder was last seen in its room: how long nobody watched, where one comes too late.

A killed recorder is replaced by its keeper, at once. Where both are dead the next start takes over
whatever lives by then; what happened to it in between, nobody knows.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from stagewatch import measures
from stagewatch.exporters.journal import boot_id
from stagewatch.measures import SECOND

SHORTEST_GAP: Final = 5.0
"""Seconds; a recorder that is replaced leaves a shorter one."""


class Presence:
    """Of the recorder of *room*. OSError where its sign cannot be left."""

    def __init__(self, room: Path) -> None:
        self._boot = boot_id()
        self._file = os.open(room / "seen", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def absence(self) -> float:
        """Seconds since a recorder was last here, in this boot; 0 if none ever was.

        By the clock since boot: the wall clock may have been set.
        """
        boot, _, at = os.pread(self._file, 256, 0).decode("ascii", "replace").partition(" ")
        if boot != self._boot or not at.strip().isdecimal():
            return 0.0
        return max(0.0, (measures.uptime() - int(at)) / SECOND)

    def show(self) -> None:
        """Leave a sign."""
        with suppress(OSError):
            os.pwrite(self._file, f"{self._boot} {measures.uptime():<20}".encode(), 0)
