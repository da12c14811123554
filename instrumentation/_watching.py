"""Watches the bodies of modules run, line by line, for as long as they can bind a wanted name.

Python 3.11 does it with a trace function, for which all code of the thread pays while it is set. So
it is set while the body itself runs, and absent during the calls that the body makes, imports among
them: the trace function goes when such a call begins, and an object that dies with the call's frame
brings it back. From 3.12 on `sys.monitoring` watches the one code object, and nobody else pays.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from opcode import EXTENDED_ARG, opmap
from types import CodeType, FrameType, ModuleType
from typing import Any

from stagewatch.safety import guarded
from stagewatch.stage_calls import drop_first_frame

EVENTS = 100_000
"""Lines and calls that a trace function may see: about 0.1 s of its own time."""

_STORES = {opmap["STORE_NAME"], opmap["STORE_GLOBAL"]}
_LOOPS = {number for name, number in opmap.items() if "JUMP_BACKWARD" in name}
_PROGRAM = "_stagewatch_on_initializing"


class Body:
    """The body of a module under way."""

    __slots__ = ("last", "stores", "_bind", "_line", "_lines")

    def __init__(self, code: CodeType, names: set[str], bind: Callable[[], None]) -> None:
        self.last, self.stores = bindings(code, names)
        self._bind = bind
        self._line: int | None = None
        self._lines = {
            line
            for start, end, line in code.co_lines()
            if any(start <= store < end for store in self.stores)
        }

    def bind(self) -> None:
        """Wrap what has been bound."""
        with guarded:
            self._bind()

    def step(self, offset: int, line: int) -> bool:
        """Wrap what the line before has bound; False: from *offset* on nothing is to come."""
        if self._line in self._lines:
            self.bind()
        self._line = line
        return offset <= self.last


def bindings(code: CodeType, names: set[str]) -> tuple[int, set[int]]:
    """Offsets of the instructions of *code* that can bind one of *names*, after that of the last.

    The last (-1: there is none) is the end of the loop, where a loop is around a binding.
    """
    last, stores, extended = -1, set(), 0
    if names.isdisjoint(code.co_names):
        return last, set()
    raw = code.co_code
    for offset in range(0, len(raw), 2):
        operation, argument = raw[offset], raw[offset + 1] | extended
        extended = argument << 8 if operation == EXTENDED_ARG else 0
        if operation in _STORES:
            if code.co_names[argument] in names:
                last = offset
                stores.add(offset)
        elif operation in _LOOPS and offset + 2 - 2 * argument <= last:
            last = offset
    return last, stores


FindBody = Callable[[FrameType], "Body | None"]
"""Asked for every body that starts; None goes on waiting."""


class TraceWatch:
    """Waits for a body to start in this thread, and watches it, with a trace function."""

    def __init__(self, find: FindBody, ended: Callable[[bool], None]) -> None:
        self._find = find
        self._ended = ended
        self._body: Body | None = None
        self._frame: FrameType | None = None
        self._left = EVENTS
        self._call, self._line = self._on_call, self._on_line
        self._thread = threading.get_ident()
        self.running = False

    def start(self) -> bool:
        """False if the place is taken."""
        self.running = sys.gettrace() is None
        self.wake()
        return self.running

    def stop(self) -> None:
        self.running = False
        self._frame = None
        if sys.gettrace() is self._call:
            sys.settrace(None)

    def wake(self) -> None:
        """Set the trace function again, if its place is free. Call nothing after: it is traced."""
        if self.running and sys.gettrace() is None and threading.get_ident() == self._thread:
            sys.settrace(self._call)

    def _finish(self, complete: bool = True) -> None:
        if self.running:
            self.stop()
            with guarded:
                self._ended(complete)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self._frame is not None:
            return self._sleep(frame)
        if frame.f_code.co_name == "<module>":
            with guarded:
                self._body = self._find(frame)
            if self._body is not None:
                if self._body.last < 0:
                    return self._finish()
                self._frame = frame
                return self._on_body
        return self._on_line(frame, event, argument)

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        # Of code before the body. Lines count too: a loop without calls is as slow when traced.
        return self._line if self._spend() else None

    def _on_body(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not self.running or self._body is None or not self._spend():
            return None
        if not self._body.step(frame.f_lasti, frame.f_lineno) or event == "return":
            return self._finish()
        return self._on_body

    def _spend(self) -> bool:
        self._left -= 1
        if self._left < 0:
            self._finish(complete=False)
        return self.running

    def _sleep(self, frame: FrameType) -> Any:
        """Be gone until the call that the body makes is over."""
        called: FrameType | None = frame
        while called is not None and called.f_back is not self._frame:
            called = called.f_back
        if not self._spend() or called is None:
            return None
        if not isinstance(called.f_trace, _Alarm):
            called.f_trace = _Alarm(self)
        sys.settrace(None)
        return None


class _Alarm:
    """Held by a frame alone; brings the trace function back when the frame is done."""

    __slots__ = ("_watch",)

    def __init__(self, watch: TraceWatch) -> None:
        self._watch = watch

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None: ...

    def __del__(self) -> None:
        try:  # noqa: SIM105  nothing may run after wake(), not even an __exit__
            self._watch.wake()
        except Exception:  # at the interpreter's end even `sys` may be gone
            pass


class MonitoringWatch:
    """The same with `sys.monitoring`, in whatever thread.

    It is told of every instruction of the body once, and again only of those behind a binding.
    """

    def __init__(self, find: FindBody, ended: Callable[[bool], None]) -> None:
        self._find = find
        self._ended = ended
        self._body: Body | None = None
        self._code: CodeType | None = None
        self._tool = -1
        self.running = False

    def start(self) -> bool:
        """False if no tool id is free."""
        monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        for tool in (4, 3):
            if monitoring.get_tool(tool) is None:
                monitoring.use_tool_id(tool, "stagewatch")
                self._monitoring, self._tool, self.running = monitoring, tool, True
                monitoring.register_callback(tool, monitoring.events.PY_START, self._on_start)
                monitoring.set_events(tool, monitoring.events.PY_START)
                break
        return self.running

    def stop(self) -> None:
        if not self.running:
            return
        self.running = False
        monitoring, events = self._monitoring, self._monitoring.events
        monitoring.set_events(self._tool, 0)
        if self._code is not None:
            monitoring.set_local_events(self._tool, self._code, 0)
        for event in (events.PY_START, events.INSTRUCTION):
            monitoring.register_callback(self._tool, event, None)
        monitoring.free_tool_id(self._tool)

    def _finish(self) -> None:
        with guarded:
            if self.running:
                if self._body is not None:
                    self._body.bind()
                self.stop()
                self._ended(True)

    def _on_start(self, code: CodeType, offset: int) -> Any:
        if code.co_name != "<module>":
            return self._monitoring.DISABLE
        with guarded:
            self._body = self._find(sys._getframe(1))
            if self._body is not None:
                self._watch(code)
        return None

    def _watch(self, code: CodeType) -> None:
        if self._body is None or self._body.last < 0:
            return self._finish()
        monitoring, events, tool = self._monitoring, self._monitoring.events, self._tool
        self._code = code
        monitoring.set_events(tool, 0)
        monitoring.register_callback(tool, events.INSTRUCTION, self._on_instruction)
        monitoring.set_local_events(tool, code, events.INSTRUCTION)

    def _on_instruction(self, code: CodeType, offset: int) -> Any:
        body = self._body
        if body is None or offset > body.last:
            self._finish()
            return None
        if offset - 2 not in body.stores:
            return self._monitoring.DISABLE
        body.bind()
        return None


BodyWatch = TraceWatch | MonitoringWatch


def body_watch(find: FindBody, ended: Callable[[bool], None]) -> BodyWatch:
    """*ended* is called when it ends by itself: True if all is bound, False if too dear."""
    return (TraceWatch if sys.version_info < (3, 12) else MonitoringWatch)(find, ended)


# --- imports ----------------------------------------------------------------------------------


class _WatchedSpec(ModuleSpec):
    """Tells when its module starts and ends to load, without a frame of ours around its body.

    A loader of ours would stand in tracebacks, and between a module that warns and its importer.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        if name == "_initializing":
            program = vars(self).get(_PROGRAM)
            if program is not None:
                with guarded:
                    program(value)
                if not value:
                    vars(self).pop(_PROGRAM, None)
                    self.__class__ = ModuleSpec  # type: ignore[assignment]


_WatchedSpec.__name__ = _WatchedSpec.__qualname__ = "ModuleSpec"  # as its repr() says


def on_initializing(spec: ModuleSpec | None, program: Callable[[bool], None]) -> bool:
    """Have *program* called with True when the module starts to load and with False at the end.

    False if this cannot be: there is no spec, or it is of a foreign class.
    """
    if type(spec) is not ModuleSpec:
        return False
    spec.__class__ = _WatchedSpec
    vars(spec)[_PROGRAM] = program
    return True


class ImportWatch:
    """A finder in front of the others that finds nothing itself, but watches what they found."""

    def __init__(
        self,
        wanted: Callable[[str], bool],
        body: Callable[[str], BodyWatch],
        loaded: Callable[[str], None],
    ) -> None:
        self._wanted = wanted
        self._body = body
        self._loaded = loaded

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not self._wanted(name):
            return None
        try:
            spec = self._ask_others(name, path, target)
        except BaseException as error:
            drop_first_frame(error)
            drop_first_frame(error)  # that of `_ask_others`
            raise
        if spec is not None:
            on_initializing(spec, self._program(name))
        return spec

    def _ask_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find is not None else None
            if spec is not None:
                return spec
        return None

    def _program(self, name: str) -> Callable[[bool], None]:
        body: BodyWatch | None = None

        def program(initializing: bool) -> None:
            nonlocal body
            if initializing:
                body = self._body(name)
                body.start()
            else:
                if body is not None:
                    body.stop()
                self._loaded(name)

        return program
