"""What happens around the calls of a function that is a stage, for every kind of function.

A generator or coroutine is stood for by a driver of the same type. It is the stage from its first
step to its end, and hands on every step, `send`, `throw` and `close` as ``yield from`` would.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, Protocol

from stagewatch.safety import guarded, report
from stagewatch.tracing import OpenStage, enter

UNSEEN_FILE = "<stagewatch (passed over like importlib._bootstrap)>"
"""`warnings` and `logging` pass over the import system's frames when they look for a caller, and
know them by these two words. So a frame from this file does not change who is warned."""


def drop_first_frame(error: BaseException) -> None:
    """Take the frame that caught *error* out of its traceback; re-raise with a bare ``raise``."""
    tb = error.__traceback__
    if tb is not None:
        # Neither assigned nor through the error's own method: its class may forbid or override it.
        BaseException.with_traceback(error, tb.tb_next)


def _rows(values: Iterable[Any]) -> int | None:
    """Rows of the DataFrames among *values*, None if there is none."""
    try:
        frame = getattr(sys.modules.get("pandas"), "DataFrame", None)
        # The type, not isinstance(): that asks a lazy proxy for its __class__, and wakes it.
        if frame is not None:
            counts = [len(value) for value in values if issubclass(type(value), frame)]
            return sum(counts) if counts else None
    except Exception as error:
        report(error)
    return None


class _Stage:
    """One call that is a stage: opened by the first `go_on`, with rows in and out."""

    __slots__ = ("_name", "_opened", "_rows_in", "_rows_out")

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._name = name
        self._opened: OpenStage | None = None
        self._rows_in = _rows((*args, *kwargs.values()))
        self._rows_out: int | None = None

    def go_on(self) -> None:
        with guarded:
            if self._opened is None:
                self._opened = enter(self._name)
            else:
                self._opened.resume()

    def pause(self, result: Any = None) -> None:
        """The frame has stopped and gave *result* away."""
        with guarded:
            if self._opened is not None:
                self._opened.suspend()
            self._count(result)

    def end(self, error: BaseException | None, result: Any = None) -> None:
        with guarded:
            opened, self._opened = self._opened, None
            if opened is not None:
                self._count(result)
                # Being closed before the end is not failing.
                failure = None if isinstance(error, GeneratorExit) else error
                opened.leave(failure, frame_rows_in=self._rows_in, frame_rows_out=self._rows_out)

    def _count(self, result: Any) -> None:
        rows = _rows((result,))
        if rows is not None:
            self._rows_out = (self._rows_out or 0) + rows


# --- calls ------------------------------------------------------------------------------------

_Finish = Callable[[BaseException | None, Any], Any]


def _around_call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Finish:
    stage = _Stage(name, args, kwargs)
    stage.go_on()

    def finish(error: BaseException | None, result: Any) -> Any:
        stage.end(error, result)
        return result

    return finish


def _around_decorated(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Finish:
    """Of a plain function around a generator or coroutine function: it may run it, or return it."""
    stage = _Stage(name, args, kwargs)
    stage.go_on()

    def finish(error: BaseException | None, result: Any) -> Any:
        if error is None and _is_fresh(result):
            stage.pause()
            return driver(stage, result)
        stage.end(error, result)
        return result

    return finish


def _is_fresh(made: Any) -> bool:
    if type(made) is GeneratorType:
        return inspect.getgeneratorstate(made) == inspect.GEN_CREATED
    if type(made) is CoroutineType:
        return inspect.getcoroutinestate(made) == inspect.CORO_CREATED
    return type(made) is AsyncGeneratorType and made.ag_frame is not None


def _around_made(name: str, made: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return driver(_Stage(name, args, kwargs), made)


AROUND: dict[str, Callable[..., Any]] = {
    "call": _around_call,
    "decorated": _around_decorated,
    "generator": _around_made,
    "coroutine": _around_made,
    "async_generator": _around_made,
}
"""By the shape of a function, what its wrapper calls with the stage's name. The first two take the
arguments and return what takes error and result at the end; the others take what the function made
first, and return its driver."""


# --- drivers ----------------------------------------------------------------------------------


class Watched(Protocol):
    """What a driver tells of the generator or coroutine it stands for."""

    def go_on(self) -> None:
        """Its frame is about to run."""

    def pause(self, result: Any = None) -> None:
        """The frame has stopped and gave *result* away."""

    def end(self, error: BaseException | None, result: Any = None) -> None:
        """It is over, perhaps before its first step."""


def driver(stage: Watched, made: Any) -> Any:
    """A generator or coroutine that stands for *made*, and tells *stage* what happens to it."""
    standing: Any
    if type(made) is GeneratorType:
        standing = _generate(_Started(stage, None), made)
    elif type(made) is CoroutineType:
        standing = _await(_Started(stage, made))
    else:
        standing = _generate_async(_Started(stage, None), made)
    standing.__name__, standing.__qualname__ = made.__name__, made.__qualname__
    return standing


class _Started:
    """Tidies up after a driver that is dropped before its first step.

    A forgotten await is to be warned of once, so the coroutine behind the driver is closed; and the
    stage of a decorated function, open since the call, ends.
    """

    __slots__ = ("_coroutine", "_stage")

    def __init__(self, stage: Watched, coroutine: Coroutine[Any, Any, Any] | None) -> None:
        self._stage: Watched | None = stage
        self._coroutine = coroutine

    def now(self) -> tuple[Watched, Any]:
        stage, coroutine = self._stage, self._coroutine
        assert stage is not None
        self._stage = self._coroutine = None
        stage.go_on()
        return stage, coroutine

    def __del__(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()
        if self._stage is not None:
            self._stage.end(None)


def _generate(
    started: _Started, generator: GeneratorType[Any, Any, Any]
) -> Generator[Any, Any, Any]:
    stage, _ = started.now()
    step: Callable[[Any], Any] = generator.send
    value: Any = None
    given: list[Any] = []  # popped as it is yielded: the consumer's item is not kept alive here
    while True:
        try:
            given.append(step(value))
        except StopIteration as end:
            stage.end(None)
            return end.value
        except BaseException as error:
            stage.end(error)
            drop_first_frame(error)
            raise
        value = None
        stage.pause(given[0])
        try:
            value = yield given.pop()
            step = generator.send
        except BaseException as error:  # close() too: it is GeneratorExit, thrown in here
            drop_first_frame(error)
            step, value = generator.throw, error
        stage.go_on()


async def _generate_async(
    started: _Started, generator: AsyncGeneratorType[Any, Any]
) -> AsyncGenerator[Any, Any]:
    stage, _ = started.now()
    step: Callable[[Any], Any] = functools.partial(_first_step, generator)
    value: Any = None
    given: list[Any] = []
    while True:
        try:
            given.append(await step(value))
        except StopAsyncIteration:
            stage.end(None)
            return
        except BaseException as error:
            stage.end(error)
            drop_first_frame(error)
            raise
        value = None
        stage.pause(given[0])
        try:
            value = yield given.pop()
            step = generator.asend
        except BaseException as error:
            drop_first_frame(error)
            step, value = generator.athrow, error
        stage.go_on()


def _first_step(generator: AsyncGeneratorType[Any, Any], value: Any) -> Any:
    """Start it unknown to the event loop, which would close it beside the driver at its end."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        return generator.asend(value)
    finally:
        sys.set_asyncgen_hooks(*hooks)


async def _await(started: _Started) -> Any:
    stage, coroutine = started.now()
    try:
        result = await coroutine
    except BaseException as error:
        stage.end(error)
        drop_first_frame(error)
        raise
    stage.end(None, result)
    return result


for _function in (_generate, _generate_async, _await):
    _function.__code__ = _function.__code__.replace(co_filename=UNSEEN_FILE)
