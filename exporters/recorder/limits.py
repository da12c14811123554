"""How much memory this process may have, by its limits and those of its cgroup, v1 or v2."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ROOT = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_UNLIMITED: Final = 1 << 62
"""cgroup v1 says "none" with a number about as large."""


def memory_limit() -> int | None:
    """Bytes that this process and those of its cgroup may have; None: no limit is known."""
    found = [limit for limit, _ in _limits()]
    return min(found, default=None)


def memory_left() -> int | None:
    """Bytes until one of these limits is reached, caches aside; None: no limit is known."""
    found = [limit - used for limit, used in _limits()]
    return min(found, default=None)


def _limits() -> Iterator[tuple[int, int]]:
    """Each limit, with how much of it is used."""
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        yield address_space, _own_pages() * os.sysconf("SC_PAGE_SIZE")
    for directory, limit_file, usage_file in _cgroups():
        limit = _number(directory / limit_file)
        if limit is not None and limit < _UNLIMITED:
            used = _number(directory / usage_file) or 0
            yield limit, used - _cache(directory)


def _cgroups() -> Iterator[tuple[Path, str, str]]:
    """Directories of the cgroups this process is in, upwards; in a container often the root."""
    for line in _text(_MEMBERSHIP).splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            root, files = _ROOT, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = _ROOT / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        directory = root / place.lstrip("/")
        while directory != root and root in directory.parents:
            yield directory, *files
            directory = directory.parent
        yield root, *files


def _cache(directory: Path) -> int:
    """Bytes of files, which the kernel gives back before anybody runs out of memory."""
    lines = _text(directory / "memory.stat").splitlines()
    figures = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    prefix = "total_" if "total_cache" in figures else ""  # v1: with the cgroups below
    found = (figures.get(f"{prefix}{kind}_file", "") for kind in ("active", "inactive"))
    return sum(int(value) for value in found if value.isdecimal())


def _own_pages() -> int:
    words = _text(Path("/proc/self/statm")).split()
    return int(words[0]) if words else 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return ""
