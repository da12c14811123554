"""The declarative patch table: which functions of a library are wrapped, and how to undo it.

A patch is applied when the module that defines the function has just been executed, before any
other module can take the name from it: so every later ``from library import name`` sees the
wrapper. A library that was imported before us is patched in all of its own modules; names that a
user's module had taken from it by then stay what they were.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any

import wrapt
from msgspec import Struct
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from stagewatch.operations import OperationKind, begin, end
from stagewatch.safety import guarded, report
from stagewatch.stage_calls import drop_first_frame

_logger = logging.getLogger(__name__)

Function = Callable[..., Any]
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


UNSEEN = "<stagewatch importlib._bootstrap>"
"""File of every wrapper's code: `warnings.warn` passes over frames with these two words in their
file's name when it counts ``stacklevel``, so that a library's warning still names the user's line.
"""


class Patch(Struct, frozen=True):
    """One function to wrap."""

    module: str
    """Where it is defined: `pandas.core.generic`, not `pandas`."""
    path: str
    """``function`` or ``Class.method``; a name the installed version lacks is passed over."""
    wrap: Callable[[Function], Function]
    """Takes the original, returns a plain function that calls it; see `operation`."""


class _Applied(Struct, frozen=True):
    owner: Any
    name: str
    original: Any
    replacement: Any


class Instrumentor(BaseInstrumentor):  # type: ignore[misc]
    """An OpenTelemetry instrumentor that is nothing but a table of patches.

    Until the library is imported it costs nothing but a place in `sys.meta_path`.
    """

    library: str
    """Import name of the package."""
    requires: tuple[str, ...]
    """Requirements, such as ``pandas >= 2.2``; looked at when the library is imported."""
    _session: _Session | None = None

    def seen_as(self, original: Function) -> str:
        """File of the code of what stands in for *original*."""
        return UNSEEN

    def patches(self) -> tuple[Patch, ...]:
        """The table; asked for just before the library is imported."""
        raise NotImplementedError

    def instrumentation_dependencies(self) -> tuple[str, ...]:
        """What has to be installed for this to do anything."""
        return self.requires

    @property
    def applied(self) -> tuple[str, ...]:
        """``module.path`` of what is wrapped now; grows as the library's modules are imported."""
        if self._session is None:
            return ()
        return tuple(sorted({f"{a.owner.__name__}.{a.name}" for a in self._session.applied}))

    def _check_dependency_conflicts(self) -> None:
        """Not yet: reading what is installed takes milliseconds, in every process."""

    def _instrument(self, **_: Any) -> None:
        self._session = _Session(self)
        self._session.start()

    def _uninstrument(self, **_: Any) -> None:
        if self._session is not None:
            self._session.undo()
            self._session = None


class _Session:
    """The time between `instrument` and `uninstrument`; its hooks do nothing afterwards."""

    def __init__(self, instrumentor: Instrumentor) -> None:
        self.instrumentor = instrumentor
        self.library = instrumentor.library
        self.patches: tuple[Patch, ...] = ()
        self.applied: list[_Applied] = []
        self.begun = self.over = False

    def start(self) -> None:
        if self.library in sys.modules:
            self.begin()
            return
        # wrapt's finder has to come after this one, to see the hooks that `begin` registers.
        on_import(self.library, lambda _: None)
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """The import system looks for *name*; if it is the library, this is the moment."""
        if name == self.library:
            self.begin()

    @guarded
    def begin(self) -> None:
        if self.begun or self.over:
            return
        self.begun = True
        conflict = get_dependency_conflicts(self.instrumentor.requires)
        if conflict is not None:
            _logger.debug("%s is not watched: %s", self.library, conflict)
            return
        self.patches = self.instrumentor.patches()
        for module in dict.fromkeys(patch.module for patch in self.patches):
            with guarded:
                on_import(module, functools.partial(self.apply, late=module in sys.modules))

    def apply(self, module: ModuleType, late: bool) -> None:
        if self.over:
            return
        for patch in self.patches:
            if patch.module == module.__name__:
                with guarded:
                    self._apply(patch, module, late)

    def _apply(self, patch: Patch, module: ModuleType, late: bool) -> None:
        owner: Any = module
        *parents, name = patch.path.split(".")
        for parent in parents:
            owner = vars(owner).get(parent)
            if owner is None:
                return
        original = vars(owner).get(name)
        if original is None:
            return
        replacement = _like(original, functools.partial(self._wrap, patch))
        # `agg` is another name of `aggregate` in the same class, and has to stay so.
        for alias in [key for key, value in vars(owner).items() if value is original]:
            setattr(owner, alias, replacement)
            self.applied.append(_Applied(owner, alias, original, replacement))
        if late and not parents:
            self._rebind(name, original, replacement, f"{self.library}.")

    def _wrap(self, patch: Patch, original: Function) -> Function:
        wrapper = functools.wraps(original)(patch.wrap(original))
        if isinstance(wrapper, FunctionType):
            wrapper.__code__ = wrapper.__code__.replace(
                co_name=original.__name__, co_filename=self.instrumentor.seen_as(original)
            )
        return wrapper

    def _rebind(self, name: str, old: Any, new: Any, prefix: str) -> None:
        for key, module in list(sys.modules.items()):
            if f"{key}.".startswith(prefix) and getattr(module, "__dict__", {}).get(name) is old:
                setattr(module, name, new)

    def undo(self) -> None:
        self.over = True
        with suppress(ValueError):
            sys.meta_path.remove(self)
        for applied in reversed(self.applied):
            with guarded:
                if vars(applied.owner).get(applied.name) is applied.replacement:
                    setattr(applied.owner, applied.name, applied.original)
                if isinstance(applied.owner, ModuleType):
                    self._rebind(applied.name, applied.replacement, applied.original, "")
        self.applied.clear()


def on_import(module: str, hook: Callable[[ModuleType], None]) -> None:
    """Call *hook* with the module once it is executed; at once if it is. Our errors stay ours."""

    def hooked(imported: ModuleType) -> None:
        with guarded:
            hook(imported)

    wrapt.register_post_import_hook(hooked, module)


def _like(original: Any, wrap: Callable[[Function], Function]) -> Any:
    """Wrap what is inside a descriptor, and keep the descriptor."""
    if isinstance(original, staticmethod | classmethod):
        return type(original)(wrap(original.__func__))
    if isinstance(original, property):
        getter = wrap(original.fget) if original.fget else None
        return property(getter, original.fset, original.fdel, original.__doc__)
    if isinstance(original, functools.cached_property):
        found = functools.cached_property(wrap(original.func))
        found.attrname = original.attrname
        return found
    return wrap(original)


def operation(
    choose: Callable[[Arguments, Keywords], OperationKind],
    look: Callable[[Arguments, Keywords, Any], Mapping[str, Any]],
    prepare: Callable[[Keywords], None] | None = None,
) -> Callable[[Function], Function]:
    """A patch for calls that cost much more than being watched.

    *choose* picks the kind before the call; *look* returns the arguments of `tracing.end`
    afterwards, and may give ``result`` to hand out something else than the call returned;
    *prepare* adjusts the keywords for the frame that we add. They may raise: that costs only
    the telemetry.
    """

    def factory(wrapped: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = None
            try:
                try:
                    call = begin(choose(args, kwargs))
                    if prepare is not None:
                        prepare(kwargs)
                except Exception as fault:
                    report(fault)
                result = wrapped(*args, **kwargs)
            except BaseException as error:
                if call is not None:
                    end(call, error)
                drop_first_frame(error)
                raise
            if call is None:
                return result
            seen: dict[str, Any] = {}
            try:
                seen.update(look(args, kwargs, result))
                result = seen.pop("result", result)
            except Exception as fault:
                seen.clear()
                report(fault)
            finally:
                end(call, **seen)
            return result

        return wrapper

    return factory


def beside(
    before: Callable[[Arguments], object] | None = None,
    after: Callable[[Arguments, Any], object] | None = None,
) -> Callable[[Function], Function]:
    """A patch for calls at which something of ours happens, and which are no operations.

    *before* takes the positional arguments; *after* takes them and the result, where the call
    returns. They may raise: that costs only the telemetry.
    """

    def factory(wrapped: Function) -> Function:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if before is not None:
                with guarded:
                    before(args)
            try:
                result = wrapped(*args, **kwargs)
            except BaseException as error:
                drop_first_frame(error)
                raise
            if after is not None:
                with guarded:
                    after(args, result)
            return result

        return wrapper

    return factory


def argument(args: Arguments, kwargs: Keywords, position: int, name: str) -> Any:
    """What the caller gave for a parameter; None if nothing."""
    return args[position] if len(args) > position else kwargs.get(name)
