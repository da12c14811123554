"""A process is seen to live, from wherever, and by nobody else's doing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stagewatch.exporters import life
from tests.jobs import wait_for

HOLDER = """
import os, sys
from pathlib import Path
from stagewatch.exporters import life
assert life.hold(Path(sys.argv[1]))
{then}
print(os.getpid(), flush=True); sys.stdin.readline()
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page"
    path.write_bytes(bytes(8192))
    return path


def holder(page: Path, then: str = "", *prefix: str) -> subprocess.Popen[bytes]:
    """A process that holds *page*, and then does *then*."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", HOLDER.format(then=then), str(page)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_ends_with_the_process(page: Path) -> None:
    """A living process holds its page, a killed one does not."""
    assert not life.is_held(page)
    process = holder(page)
    assert life.is_held(page)
    process.kill()
    process.communicate()
    assert not life.is_held(page)


def test_no_descriptor(page: Path) -> None:
    """Closing all descriptors, and reading the page, take nothing away."""
    process = holder(page, "os.closerange(3, 100); open(sys.argv[1]).close()")
    assert life.is_held(page)
    process.communicate(b"\n")


def test_forked_child_holds_nothing(page: Path) -> None:
    """The parent is dead when it is, whatever children it leaves."""
    process = holder(page, "child = os.fork()\nif not child: os.read(0, 1); os._exit(0)")
    assert life.is_held(page)
    process.kill()
    process.wait()
    assert not life.is_held(page)
    process.communicate()


def test_ends_with_exec(page: Path) -> None:
    """After an exec the process is another program, with a page of its own or none."""
    process = holder(page, "os.execv('/bin/sh', ['sh', '-c', 'echo; read x'])")
    assert not life.is_held(page)
    process.communicate(b"\n")


def test_seen_from_another_namespace(page: Path) -> None:
    """A process of a PID namespace of its own is seen from this one."""
    if os.geteuid():
        pytest.skip("only root may make a PID namespace")
    process = holder(page, "", "unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    assert life.is_held(page)
    process.kill()
    process.communicate()
    wait_for(lambda: not life.is_held(page))


def test_cannot_be_done(tmp_path: Path) -> None:
    """Where there is no file there is no lock, and who asks is told."""
    assert not life.hold(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        life.is_held(tmp_path / "none")
