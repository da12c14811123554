"""``stagewatch.stage``: what users write who name a stage themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stagewatch.safety import guarded, report
from stagewatch.tracing import OpenStage, current_stage, enter
from stagewatch.wrapping import wrap


def stage(name: str | Callable[..., Any] | None = None) -> Any:
    """A stage as a block or around a function.

    ``with stage("load") as s: s.records(out=n, rejected=m)``, ``@stage`` (named after the
    function) or ``@stage("load")``. Without an SDK it does nothing.
    """
    if callable(name):
        return _Stage(getattr(name, "__name__", None))(name)
    return _Stage(name)


class _Stage:
    """Context manager and decorator; one object may serve many calls, nested ones too, in
    several threads and tasks at once."""

    def __init__(self, name: str | None) -> None:
        self._name = name
        self._open: list[OpenStage] = []

    def __enter__(self) -> OpenStage:
        opened = enter(self._name or "stage")
        self._open.append(opened)
        return opened

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: object
    ) -> None:
        with guarded:
            # The current one is of this thread and task, and the innermost. It is none of ours
            # only where the block ends elsewhere than it began, as that of a generator may.
            current = current_stage()
            opened = current if current in self._open else self._open[-1]
            self._open.remove(opened)
            opened.leave(error)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return wrap(function, self._name or str(getattr(function, "__name__", "stage")))
        except Exception as error:  # a class, a partial: it works as it did, and is no stage
            report(error)
            return function
