"""Where a job runs: an ordinary directory, little memory, a full disk, a disk that is read-only.

A world is a context manager over the row's directory. What it needs and lacks it says by raising
`Lacking`, in one line that tells how to get it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msgspec import Struct

MEGABYTE = 1 << 20
_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Lacking(Exception):
    """This machine cannot be made into the world of the row."""


class World(Struct, frozen=True):
    """What it means for the job."""

    state: Path
    """Where its state ends up."""
    asked: Path
    """The state directory that it is told."""
    prefix: tuple[str, ...] = ()
    """Put before the job's command."""
    environment: dict[str, str] = {}


@contextmanager
def plain(directory: Path) -> Iterator[World]:
    """Nothing special."""
    yield World(directory / "state", directory / "state")


@contextmanager
def little_memory(directory: Path) -> Iterator[World]:
    """A memory cgroup (v1 or v2) of 200 MB without swap; needs root and a writable one."""
    group = _new_group(directory)
    try:
        enter = ("sh", "-c", 'echo $$ >"$0"/cgroup.procs && exec "$@"', str(group))
        yield World(directory / "state", directory / "state", enter)
    finally:
        _remove_group(group)


@contextmanager
def small_disk(directory: Path) -> Iterator[World]:
    """The state lies on a file system of its own, of 24 MB; needs root."""
    disk = directory / "disk"
    with _mounted(disk, "size=24m"):
        yield World(disk / "state", disk / "state")


@contextmanager
def read_only(directory: Path) -> Iterator[World]:
    """The state directory is on a read-only file system: it moves to the temporary one."""
    disk, temporary = directory / "disk", directory / "tmp"
    temporary.mkdir()
    with _mounted(disk, "ro"):
        elsewhere = temporary / f"stagewatch-{os.getuid()}"
        yield World(elsewhere, disk / "state", environment={"TMPDIR": str(temporary)})


@contextmanager
def _mounted(disk: Path, options: str) -> Iterator[None]:
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "stagewatch-faults", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        raise Lacking("it cannot mount a tmpfs: run as root, in a container with CAP_SYS_ADMIN")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def _new_group(directory: Path) -> Path:
    name = f"stagewatch-faults-{os.getpid()}-{directory.parent.name}-{directory.name}"
    try:
        if (_V1 / "memory.limit_in_bytes").exists():
            group = _V1 / name
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(200 * MEGABYTE))
        else:
            with suppress(OSError):
                (_V2 / "cgroup.subtree_control").write_text("+memory")
            group = _V2 / name
            group.mkdir()
            (group / "memory.max").write_text(str(200 * MEGABYTE))
            with suppress(OSError):
                (group / "memory.swap.max").write_text("0")
    except OSError as error:
        raise Lacking(f"no memory cgroup can be made ({error}): run as root, with one") from None
    return group


def _remove_group(group: Path) -> None:
    for _ in range(100):  # a recorder in it takes its time to leave
        with suppress(OSError):
            group.rmdir()
            return
        time.sleep(0.1)
