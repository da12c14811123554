"""Whose SQL executions are: their events do not say, but those of their jobs do."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from stagewatch.instrumentation.pyspark.action import Action


class _Execution(Struct):
    root: int
    owner: Action | None
    guess: Action | None
    """Whose it is if it has no jobs: of the one action that was under way when it began."""


class Executions:
    """Those under way, with the action each belongs to."""

    def __init__(self) -> None:
        self._open: dict[int, _Execution] = {}

    def start(self, execution: int, root: int, live: Sequence[Action]) -> None:
        """*root*: that it is a part of. *live*: the actions under way."""
        owner = self.owner(root)
        guess = live[0] if len(live) == 1 else None
        self._open[execution] = _Execution(root, None, guess)
        if owner is not None:
            self._give(execution, owner)

    def owner(self, execution: int | None) -> Action | None:
        """Whose it is, as far as its jobs have told."""
        found = self._open.get(execution) if execution is not None else None
        return found.owner if found is not None else None

    def claim(self, root: int, owner: Action | None) -> None:
        """A job of it was started by *owner*, or by nobody we know: then it is no guess either."""
        for number, execution in self._open.items():
            if execution.root == root:
                if owner is not None:
                    self._give(number, owner)
                elif execution.owner is None:
                    execution.guess = None

    def end(self, execution: int) -> Action | None:
        """Whose it was."""
        found = self._open.pop(execution, None)
        if found is None:
            return None
        if found.owner is not None:
            found.owner.executions.discard(execution)
        return found.owner or found.guess

    def _give(self, execution: int, owner: Action) -> None:
        self._open[execution].owner = owner
        owner.executions.add(execution)
