"""Which processes descend from those that are watched."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

Parents = Callable[[Mapping[int, int]], dict[int, int]]


class Kinship:
    """Who belongs to whom, by one look at all processes that all watched ones share."""

    def __init__(self, parents: Parents) -> None:
        self._read_parents = parents
        self._parents: dict[int, int] = {}
        self._families: dict[int, list[int]] = {}
        self._watched_parent: dict[int, int] = {}

    def find(self, watched: Collection[int]) -> None:
        """Look again, for the descendants of *watched*."""
        self._parents = self._read_parents(self._parents)
        self._families, self._watched_parent = {}, {}
        heads = {pid: pid for pid in watched}
        for pid in self._parents:
            head = self._head(self._parents[pid], heads)
            if head and pid in watched:
                self._watched_parent[pid] = head
            elif head:
                self._families.setdefault(head, []).append(pid)

    def family(self, pid: int) -> list[int]:
        """Descendants of the watched *pid* that are not watched, nor have a closer ancestor who
        is."""
        return self._families.get(pid, [])

    def watched_parent(self, pid: int) -> int | None:
        """The closest ancestor of the watched *pid* who is watched, too."""
        return self._watched_parent.get(pid)

    def _head(self, pid: int, heads: dict[int, int]) -> int:
        """The closest watched ancestor, *pid* itself included; 0 if there is none."""
        way: list[int] = []
        while pid and pid not in heads and len(way) <= len(self._parents):
            way.append(pid)
            pid = self._parents.get(pid, 0)
        head = heads.get(pid, 0)
        for passed in way:
            heads[passed] = head
        return head
