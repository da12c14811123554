"""What is seen of a process from outside: its CPU, memory and I/O, without a word from itself."""

from __future__ import annotations

from msgspec import Struct

from stagewatch.exporters.page import PageReader


class Vitals(Struct, frozen=True):
    """One process and those of its descendants that journal nothing themselves, so far.

    A figure that could not be read is None.
    """

    cpu_seconds: float | None = None
    """User and system, of children that were waited for, too."""
    memory: int | None = None
    """Resident bytes now."""
    memory_peak: int | None = None
    """Resident bytes, of the process itself."""
    read_bytes: int | None = None
    written_bytes: int | None = None
    threads: int | None = None
    processes: int = 1


class Sighting(Struct, frozen=True):
    """One living process at one look."""

    page: PageReader
    vitals: Vitals | None = None
    is_still: bool = False
    """No CPU, no I/O and no record for the time that ``STAGEWATCH_STUCK_AFTER`` names."""
    waits_for: str | None = None
    """Why a process that is still may be well: ``operation``, ``socket``, ``child`` or
    ``unreadable``; None: nothing says why, it is stuck."""
    stack: str | None = None
    """Of its Python threads, once it is stuck and where the user asked for it."""
