"""What memory a process may have: the least of its limits, in both versions of cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagewatch.exporters.recorder import limits

MB = 1 << 20


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where cgroups are mounted."""
    monkeypatch.setattr(limits, "_ROOT", tmp_path)
    monkeypatch.setattr(limits, "_MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def group(directory: Path, **files: str | int) -> None:
    """A cgroup with these files; ``__`` stands for a dot."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(f"{content}\n")


def test_version_2(root: Path) -> None:
    """The tightest of the cgroups above counts; pages of files can be had back."""
    (root / "membership").write_text("0::/pod/job\n")
    stat = f"anon 1\nactive_file {10 * MB}\ninactive_file {5 * MB}"
    group(root / "pod/job", memory__max="max", memory__current=30 * MB, memory__stat=stat)
    group(root / "pod", memory__max=64 * MB, memory__current=40 * MB, memory__stat=stat)
    assert limits.memory_limit() == 64 * MB
    assert limits.memory_left() == 64 * MB - 25 * MB


def test_version_1(root: Path) -> None:
    """Figures of the cgroups below are in those with ``total_``."""
    (root / "membership").write_text("5:cpu,memory:/job\n0::/\n")
    stat = f"cache {MB}\nactive_file 0\ntotal_cache {MB}\ntotal_active_file {8 * MB}"
    group(
        root / "memory/job",
        memory__limit_in_bytes=100 * MB,
        memory__usage_in_bytes=50 * MB,
        memory__stat=stat,
    )
    group(root / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=1)
    assert limits.memory_limit() == 100 * MB
    assert limits.memory_left() == 58 * MB


def test_in_a_container(root: Path) -> None:
    """What is a path of the host's there is the root here."""
    (root / "membership").write_text("0::/../../kubepods/job\n")
    group(root, memory__max=32 * MB, memory__current=MB)
    assert limits.memory_limit() == 32 * MB


def test_nothing_is_known(root: Path) -> None:
    """No cgroups, or no limits: no figure, and no error."""
    assert limits.memory_limit() is None
    (root / "membership").write_text("0::/\n")
    group(root, memory__max="max")
    assert limits.memory_left() is None
    group(root, memory__max=MB, memory__stat="nonsense\nactive_file many")
    assert limits.memory_left() == MB
