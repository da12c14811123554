"""Finds declared functions the moment their names are bound, and puts wrappers in their place.

A name is bound by an instruction of its module's body. So the body is watched while it runs, from
its first line to the last that can bind a declared name: whatever follows a binding, the first call
included, sees the wrapper. The script's body is watched from the moment the interpreter is ready,
that of a declared module while it is imported; nothing is imported for it.

Why not `builtins.__build_class__` for classes: at that moment class decorators are still to come,
and attrs with slots cannot mend `super()` in methods that were wrapped; and a frame between a
metaclass and the class statement misleads those that look up a fixed number of frames.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import PurePath
from types import FrameType
from typing import Any

from msgspec import Struct

from stagewatch import tracing
from stagewatch.instrumentation._watching import (
    Body,
    BodyWatch,
    ImportWatch,
    body_watch,
    on_initializing,
)
from stagewatch.model import Pipeline
from stagewatch.safety import guarded

SCRIPT = "__main__"
_MISSING = object()
_logger = logging.getLogger(__name__)

Wrap = Callable[[Callable[..., Any], str], Callable[..., Any]]


class Target(Struct, frozen=True):
    """A declared function: where its name is, and the stage it is."""

    module: str
    """`SCRIPT` for one of the script's."""
    path: tuple[str, ...]
    """``("function",)`` or ``("Class", "method")``."""
    stage: str
    said: bool = True
    """False where only a stage was named, which may be a function's name or not."""


def declared_targets(pipeline: Pipeline) -> list[Target]:
    """The functions that *pipeline* declares as stages; names that cannot be one are left out."""
    targets = []
    for stage, declared in pipeline.stages.items():
        module, _, path = (declared.function or stage).rpartition(":")
        parts = tuple(path.split("."))
        if all(part.isidentifier() for part in parts):
            targets.append(Target(module or SCRIPT, parts, stage, declared.function is not None))
    return targets


class Binding:
    """Puts wrappers in the place of *targets*, as their modules come, and takes them away again."""

    def __init__(self, targets: Iterable[Target], wrap: Wrap) -> None:
        self._targets = list(targets)
        self._wrap = wrap
        self._unbound = set(self._targets)
        self._undo: list[Callable[[], None]] = []
        self._script_watch: BodyWatch | None = None
        self._imports = ImportWatch(self._declares, self._module_watch, self._bind_module)

    def start(self) -> None:
        """Bind what is loaded, and from now on what is to come."""
        for name in self._modules():
            self._bind_module(name)
        self._watch_imports()
        start_up = getattr(sys.modules.get("sitecustomize"), "__spec__", None)
        still_starting = getattr(start_up, "_initializing", False)
        if not still_starting or not on_initializing(start_up, self._at_start_up):
            self._watch_script()

    def stop(self) -> None:
        """Put everything back, and look no more."""
        if self._script_watch is not None:
            self._script_watch.stop()
        with suppress(ValueError):
            sys.meta_path.remove(self._imports)
        self._forget_activity()
        self._targets.clear()
        while self._undo:
            with guarded:
                self._undo.pop()()

    def bind_loaded(self) -> None:
        """Bind what the script has bound meanwhile; done with it, leave `tracing.on_activity`."""
        self._bind_script(vars(sys.modules[SCRIPT]))
        if not self._script_lacks():
            self._forget_activity()

    # --- modules --------------------------------------------------------------------------

    def _modules(self) -> set[str]:
        return {target.module for target in self._targets} - {SCRIPT}

    def _watch_imports(self) -> None:
        if self._modules():
            with suppress(ValueError):
                sys.meta_path.remove(self._imports)
            sys.meta_path.insert(0, self._imports)

    def _declares(self, module: str) -> bool:
        return any(target.module == module for target in self._targets)

    def _module_watch(self, name: str) -> BodyWatch:
        def find(frame: FrameType) -> Body | None:
            namespace = frame.f_globals
            if namespace.get("__name__") != name:
                return None
            return Body(frame.f_code, self._names({name}), lambda: self._bind_in({name}, namespace))

        return body_watch(find, lambda complete: None)

    def _bind_module(self, name: str) -> None:
        module = sys.modules.get(name)
        if module is not None:
            self._bind_in({name}, vars(module))

    # --- the script -----------------------------------------------------------------------

    def _at_start_up(self, initializing: bool) -> None:
        if not initializing:
            self._watch_script()

    def _watch_script(self) -> None:
        self._watch_imports()  # again: whoever is in front of us meanwhile hides modules from us
        self.bind_loaded()
        self._script_watch = body_watch(self._find_script, self._script_watched)
        if self._script_lacks():
            tracing.on_activity.append(self.bind_loaded)
        self._script_watch.start()

    def _find_script(self, frame: FrameType) -> Body | None:
        namespace = frame.f_globals
        if namespace.get("__name__") not in (SCRIPT, "__mp_main__"):
            return None
        names = self._names(_names_of_script(namespace))
        body = Body(frame.f_code, names, lambda: self._bind_script(namespace))
        # A child of multiprocessing runs the script from within its own.
        return None if body.last < 0 and _runs_script_later() else body

    def _script_watched(self, complete: bool) -> None:
        for name in self._modules():
            self._bind_module(name)
        if complete:
            self._forget_activity()

    def _forget_activity(self) -> None:
        with suppress(ValueError):
            tracing.on_activity.remove(self.bind_loaded)

    def _script_lacks(self) -> bool:
        names = _names_of_script(vars(sys.modules[SCRIPT]))
        return any(target.module in names for target in self._unbound)

    def _bind_script(self, namespace: dict[str, Any]) -> None:
        self._bind_in(_names_of_script(namespace), namespace)

    # --- binding --------------------------------------------------------------------------

    def _names(self, modules: set[str]) -> set[str]:
        return {target.path[0] for target in self._targets if target.module in modules}

    def _bind_in(self, modules: set[str], namespace: dict[str, Any]) -> None:
        for target in self._targets:
            if target.module in modules and target.path[0] in namespace:
                with guarded:
                    self._bind(target, namespace)

    def _bind(self, target: Target, namespace: dict[str, Any]) -> None:
        first, *rest = target.path
        found = namespace[first]
        if not rest:
            if not isinstance(found, type) and callable(found):
                self._put_in_module(target, namespace, first, found)
            return
        for part in rest[:-1]:
            found = vars(found).get(part) if isinstance(found, type) else None
        if isinstance(found, type):
            self._put_in_class(target, found, rest[-1])

    def _put_in_module(
        self, target: Target, namespace: dict[str, Any], name: str, function: Any
    ) -> None:
        wrapper = self._wrapped(target, function)
        if wrapper is None:
            return
        self._replace(namespace, name, function, wrapper)
        # Pickle looks for a function where it says it is from, and wants to find the same one.
        home = sys.modules.get(getattr(function, "__module__", None) or "")
        if home is not None and vars(home).get(name) is function:
            self._replace(vars(home), name, function, wrapper)

    def _replace(self, namespace: dict[str, Any], name: str, function: Any, wrapper: Any) -> None:
        namespace[name] = wrapper

        def undo() -> None:
            if namespace.get(name) is wrapper:
                namespace[name] = function

        self._undo.append(undo)

    def _put_in_class(self, target: Target, owner: type, name: str) -> None:
        inherited = next((vars(base)[name] for base in owner.__mro__ if name in vars(base)), None)
        wrapper = None if inherited is None else self._wrapped(target, inherited)
        if wrapper is None:
            return
        own = vars(owner).get(name, _MISSING)
        type.__setattr__(owner, name, wrapper)  # a metaclass's own may object

        def undo() -> None:
            if vars(owner).get(name) is wrapper:
                if own is _MISSING:
                    type.__delattr__(owner, name)
                else:
                    type.__setattr__(owner, name, own)

        self._undo.append(undo)

    def _wrapped(self, target: Target, function: Any) -> Any:
        """The wrapper; None if it is one already, or cannot be wrapped."""
        try:
            wrapper = self._wrap(function, target.stage)
        except TypeError as error:
            if target.said and target in self._unbound:
                _logger.warning("stage %s: calls are not recorded: %s", target.stage, error)
            wrapper = function
        self._unbound.discard(target)
        return None if wrapper is function else wrapper


def _runs_script_later() -> bool:
    return "--multiprocessing-fork" in sys.orig_argv or any(
        argument.startswith("from multiprocessing.forkserver import") for argument in sys.orig_argv
    )


def _names_of_script(namespace: dict[str, Any]) -> set[str]:
    """What a declaration may call the module that is run: by ``-m``, by its file, or not at all."""
    spec, path = namespace.get("__spec__"), namespace.get("__file__")
    names = {SCRIPT}
    if spec is not None:
        names.add(spec.name)
    if isinstance(path, str):
        names.add(PurePath(path).stem)
    return names
