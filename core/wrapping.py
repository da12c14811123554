"""Functions as stages: the closure that stands in for one.

It is the same kind of function (so `inspect` and asyncio treat it alike), says the same of itself,
takes itself out of tracebacks, and needs nothing of ours where it is shipped by value. What happens
around its calls is `stagewatch.stage_calls`.

One difference shows: the wrapper holds the arguments for the whole call. A temporary that only the
function held, as in ``f(load())``, lives until the call is over, also where the function lets it
go before.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakSet

from stagewatch.safety import guarded
from stagewatch.stage_calls import AROUND, UNSEEN_FILE

_KINDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_SHAPES = {
    inspect.CO_GENERATOR: "generator",
    inspect.CO_COROUTINE: "coroutine",
    inspect.CO_ASYNC_GENERATOR: "async_generator",
}
_CACHED = type(functools.lru_cache(lambda: None))

_wrappers: WeakSet[FunctionType] = WeakSet()
"""All that `wrap` made; weakly, for a decorator on an inner function makes one at every call."""


def wrap(function: Callable[..., Any], stage_name: str) -> Callable[..., Any]:
    """Return what to put in the place of *function*, so that its calls are stages.

    Takes Python functions of every kind, what ``lru_cache`` made of them, ``staticmethod`` and
    ``classmethod``; what is a stage already comes back as it is. Raises TypeError for the rest
    (classes, C functions, objects that a decorator made), which cannot be replaced unnoticed.
    """
    kind: Any = type(function)
    if kind is staticmethod or kind is classmethod:
        inside: Any = function.__func__  # type: ignore[attr-defined]
        wrapped = wrap(inside, stage_name)
        method: Any = function if wrapped is inside else kind(wrapped)
        return method  # type: ignore[no-any-return]
    innermost = _innermost(function)
    if innermost is None:
        return function
    outer = function if type(function) is FunctionType else None
    flags = outer.__code__.co_flags if outer else 0
    if (flags | innermost.__code__.co_flags) & inspect.CO_ITERABLE_COROUTINE:
        raise TypeError(f"{innermost.__qualname__} is a coroutine of types.coroutine")
    shape = _SHAPES.get(flags & _KINDS)
    if shape is None:
        shape = "decorated" if innermost.__code__.co_flags & _KINDS else "call"
        template = _calling(function, _Hook(shape, stage_name))
    else:
        template = _making(function, _Hook(shape, stage_name))
    wrapper = FunctionType(
        _disguised(template.__code__, (outer or innermost).__code__, flags & _KINDS),
        (outer or innermost).__globals__,
        closure=template.__closure__,
    )
    functools.update_wrapper(wrapper, function)
    if outer is not None:
        wrapper.__defaults__ = outer.__defaults__
        wrapper.__kwdefaults__ = outer.__kwdefaults__
    else:
        for name in ("cache_info", "cache_clear"):
            setattr(wrapper, name, getattr(function, name))
    with guarded:  # getfullargspec() does not look behind __wrapped__, but at this
        vars(wrapper).setdefault("__signature__", inspect.signature(function))
    _wrappers.add(wrapper)
    return wrapper


def _innermost(function: Any) -> FunctionType | None:
    """The function behind its decorators; None if one of them is ours."""
    while type(function) is FunctionType or type(function) is _CACHED:
        if function in _wrappers:
            return None
        behind = vars(function).get("__wrapped__")
        if type(behind) is not FunctionType and type(behind) is not _CACHED:
            if type(function) is FunctionType:
                return function
            break
        function = behind
    raise TypeError(f"a {type(function).__qualname__} is not a Python function")


def _disguised(code: CodeType, original: CodeType, kind: int) -> CodeType:
    """Give the wrapper's code the kind, the name and the place of the function's.

    The place matters: joblib.Memory, for one, reads the source there to see if its cache is stale.
    Only of a function that looks for its callers with `stacklevel` is the wrapper hidden instead.
    The kind is a flag alone: the wrapper runs at once and returns what a call of that kind returns.
    """
    hidden = "stacklevel" in original.co_names or "'stacklevel'" in repr(original.co_consts)
    return code.replace(
        co_flags=code.co_flags | kind,
        co_name=original.co_name,
        co_qualname=original.co_qualname,
        co_filename=UNSEEN_FILE if hidden else original.co_filename,
        co_firstlineno=original.co_firstlineno,
        co_linetable=_one_line(len(code.co_code) // 2),
    )


def _one_line(units: int) -> bytes:
    """A location table that puts this many code units, all of them, on the first line."""
    entries = [min(8, units - start) for start in range(0, units, 8)]
    return b"".join(bytes((0x80 | 13 << 3 | length - 1, 0)) for length in entries)


# --- the closures -----------------------------------------------------------------------------
# They use nothing but what they close over: cloudpickle ships them by value. A bare `raise` does
# not put a frame back into a traceback that it was taken out of. The traceback is set as in
# `stage_calls.drop_first_frame`.


def _calling(function: Callable[..., Any], hook: _Hook) -> FunctionType:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        finish = hook(args, kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            finish(error, None)
            BaseException.with_traceback(error, error.__traceback__.tb_next)  # type: ignore[union-attr]
            raise
        return finish(None, result)

    return wrapper  # type: ignore[return-value]


def _making(function: Callable[..., Any], hook: _Hook) -> FunctionType:
    """Of what makes a generator or coroutine; called at once, so that wrong arguments fail here."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            made = function(*args, **kwargs)
        except BaseException as error:
            BaseException.with_traceback(error, error.__traceback__.tb_next)  # type: ignore[union-attr]
            raise
        return hook(made, args, kwargs)

    return wrapper  # type: ignore[return-value]


class _Hook:
    """What a closure calls. Shipped by value to a process without us it does nothing."""

    __slots__ = ("shape", "stage_name")

    def __init__(self, shape: str, stage_name: str) -> None:
        self.shape = shape
        self.stage_name = stage_name

    def __call__(self, *args: Any) -> Any:
        return AROUND[self.shape](self.stage_name, *args)

    def __reduce__(self) -> tuple[Any, ...]:
        making = self.shape in _SHAPES.values()
        nothing = "lambda made, *_: made" if making else "lambda *_: lambda error, result: result"
        return eval, (
            f"getattr(__import__('sys').modules.get({__name__!r}), '_Hook', lambda *_: {nothing})"
            f"({self.shape!r}, {self.stage_name!r})",
        )
