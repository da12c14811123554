"""The patch table: applied where a function is defined, undone exactly, invisible otherwise."""

import importlib
import inspect
import pickle
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stagewatch import safety
from stagewatch.instrumentation._base import Instrumentor, Patch, beside, operation
from stagewatch.operations import OperationKind

_CORE = '''
import dataclasses
import warnings

def double(x, *, times=2):
    """Twice."""
    return x * times

def fail(x):
    raise ValueError(f"no {x}")

@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    x: int

def fail_frozen(x):
    raise Frozen(x)

def warn():
    warnings.warn("old", FutureWarning, stacklevel=_outside())

def _outside():
    import os, sys
    level, frame = 0, sys._getframe()
    while frame.f_code.co_filename.startswith(os.path.dirname(__file__)):
        level, frame = level + 1, frame.f_back
    return level

class Thing:
    def method(self): return "method"
    other_name = method
    @classmethod
    def made(cls): return cls
    @staticmethod
    def free(): return "free"
    @property
    def value(self): return 7
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package ``patched_library`` whose top takes its names from its core."""
    package = tmp_path / "patched_library"
    package.mkdir()
    (package / "core.py").write_text(_CORE)
    (package / "__init__.py").write_text(
        "from patched_library.core import double, fail, fail_frozen, warn, Thing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "patched_library"
    for name in [name for name in sys.modules if name.startswith("patched_library")]:
        del sys.modules[name]


def _counting(calls: list[str]) -> Callable[[Any], Any]:
    def factory(wrapped: Any) -> Any:
        kind = OperationKind("patched_library.call")

        def choose(args: Any, kwargs: Any) -> OperationKind:
            calls.append(wrapped.__name__)
            return kind

        return operation(choose, lambda args, kwargs, result: {})(wrapped)

    return factory


@pytest.fixture
def instrumentor() -> Iterator[tuple[Instrumentor, list[str]]]:
    """One with a patch per function of the package, and the list of its calls."""
    calls: list[str] = []
    functions = ("double", "fail", "fail_frozen", "warn")
    paths = (*functions, "Thing.method", "Thing.made", "Thing.free", "Thing.value")

    class Ours(Instrumentor):
        library = "patched_library"
        requires = ("pytest",)

        def patches(self) -> tuple[Patch, ...]:
            return tuple(Patch("patched_library.core", p, _counting(calls)) for p in paths)

    found = Ours()
    yield found, calls
    if found.is_instrumented_by_opentelemetry:
        found.uninstrument()


def test_every_name_sees_the_wrapper_from_the_import_on(library: str, instrumentor: Any) -> None:
    """What the package takes from its core while it is imported is wrapped already."""
    ours, calls = instrumentor
    ours.instrument()
    package = importlib.import_module(library)
    assert package.double is sys.modules["patched_library.core"].double
    thing = package.Thing()
    assert (package.double(4), thing.method(), thing.other_name()) == (8, "method", "method")
    assert (thing.made(), thing.free(), thing.value) == (package.Thing, "free", 7)
    assert calls == ["double", "method", "method", "made", "free", "value"]
    assert len(ours.applied) == 9


def test_a_library_imported_before_is_patched_in_all_its_modules(
    library: str, instrumentor: Any
) -> None:
    """Both names of a function are the wrapper, and after `uninstrument` the original."""
    ours, calls = instrumentor
    package = importlib.import_module(library)
    core = sys.modules["patched_library.core"]
    before = {**vars(core), **vars(package), **dict(vars(package.Thing))}
    ours.instrument()
    assert package.double is core.double
    assert package.double(1) == 2
    assert calls == ["double"]
    ours.uninstrument()
    assert {**vars(core), **vars(package), **dict(vars(package.Thing))} == before
    assert package.double(1) == 2
    assert calls == ["double"]


def test_uninstrument_restores_what_users_took(library: str, instrumentor: Any) -> None:
    """A module that imported the wrapper by name has the original afterwards."""
    ours, _ = instrumentor
    ours.instrument()
    package = importlib.import_module(library)
    user = type(sys)("user_of_patched_library")
    user.double = package.double  # type: ignore[attr-defined]
    sys.modules[user.__name__] = user
    try:
        ours.uninstrument()
        assert user.double is package.double is sys.modules["patched_library.core"].double
        assert not hasattr(user.double, "__wrapped__")
    finally:
        del sys.modules[user.__name__]


def test_uninstrumented_before_the_import_nothing_happens(library: str, instrumentor: Any) -> None:
    """The hook is still there, and does nothing."""
    ours, calls = instrumentor
    ours.instrument()
    ours.uninstrument()
    package = importlib.import_module(library)
    assert not hasattr(package.double, "__wrapped__")
    package.double(1)
    assert calls == []


def test_instrumented_again_calls_count_once(library: str, instrumentor: Any) -> None:
    """Two rounds before the import leave one wrapper."""
    ours, calls = instrumentor
    ours.instrument()
    ours.uninstrument()
    ours.instrument()
    importlib.import_module(library).double(1)
    assert calls == ["double"]


@pytest.mark.internal_errors
def test_a_failing_patch_does_not_stop_the_others(library: str) -> None:
    """It is swallowed and counted; the library's import succeeds."""

    def broken(wrapped: Any) -> Any:
        raise RuntimeError("broken patch")

    class Ours(Instrumentor):
        library = "patched_library"
        requires = ("pytest",)

        def patches(self) -> tuple[Patch, ...]:
            return (
                Patch("patched_library.core", "double", broken),
                Patch("patched_library.core", "no_such_name", broken),
                Patch("patched_library.core", "NoClass.method", broken),
                Patch("patched_library.core", "fail", _counting([])),
            )

    swallowed = safety.swallowed
    ours = Ours()
    ours.instrument()
    try:
        package = importlib.import_module(library)
        assert ours.applied == ("patched_library.core.fail",)
        assert package.double(2) == 4
        assert safety.swallowed == swallowed + 1
    finally:
        ours.uninstrument()


@pytest.mark.internal_errors
def test_an_error_of_ours_costs_only_the_telemetry(library: str, recorded: Any) -> None:
    """A look at the result that raises changes neither the result nor the next call."""

    class Ours(Instrumentor):
        library = "patched_library"
        requires = ("pytest",)

        def patches(self) -> tuple[Patch, ...]:
            raises = operation(lambda a, k: OperationKind("patched.x"), lambda a, k, r: {}[r])
            return (Patch("patched_library.core", "double", raises),)

    ours = Ours()
    ours.instrument()
    try:
        package = importlib.import_module(library)
        assert (package.double(2), package.double(3)) == (4, 6)
    finally:
        ours.uninstrument()


def test_functions_look_as_before(library: str, instrumentor: Any) -> None:
    """Signature, names, documentation, pickling and identity."""
    ours, _ = instrumentor
    package = importlib.import_module(library)
    seen = [_looks(package.double), _looks(package.Thing.method), type(vars(package.Thing)["made"])]
    ours.instrument()
    assert seen == [
        _looks(package.double),
        _looks(package.Thing.method),
        type(vars(package.Thing)["made"]),
    ]
    assert pickle.loads(pickle.dumps(package.double)) is package.double
    assert package.Thing.method is package.Thing.other_name


def _looks(function: Any) -> tuple[Any, ...]:
    return (
        inspect.signature(function),
        function.__name__,
        function.__qualname__,
        function.__module__,
        function.__doc__,
        type(function),
        inspect.getsource(function),
    )


def test_errors_have_no_frame_of_ours(library: str, instrumentor: Any) -> None:
    """Type, message and the functions of the traceback, of the library's and of the call's."""
    ours, _ = instrumentor
    package = importlib.import_module(library)
    calls = [(package.fail, 1), (package.fail,), (package.fail_frozen, 1)]
    before = [_failure(*call) for call in calls]
    ours.instrument()
    assert [_failure(getattr(package, call.__name__), *args) for call, *args in calls] == before


@pytest.mark.internal_errors
def test_what_happens_beside_a_call(library: str) -> None:
    """Before it with its arguments, after it with its result; neither in a traceback, nor in the
    way when it fails itself."""
    seen: list[Any] = []

    def before(args: Any) -> None:
        seen.append(args)
        _ = args[1]

    def after(args: Any, result: Any) -> None:
        seen.append((args, result))

    class Ours(Instrumentor):
        library = "patched_library"
        requires = ("pytest",)

        def patches(self) -> tuple[Patch, ...]:
            return tuple(
                Patch("patched_library.core", name, beside(before, after))
                for name in ("double", "fail", "fail_frozen")
            )

    package = importlib.import_module(library)
    failures = [_failure(call, 1) for call in (package.fail, package.fail_frozen)]
    ours = Ours()
    ours.instrument()
    try:
        assert package.double(4) == 8
        assert [_failure(call, 1) for call in (package.fail, package.fail_frozen)] == failures
    finally:
        ours.uninstrument()
    assert seen == [(4,), ((4,), 8), (1,), (1,)]


def _failure(function: Any, *args: Any) -> Any:
    try:
        function(*args)
    except Exception as error:
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        return type(error), str(error), frames, error.__context__, error.__cause__
    raise AssertionError("it did not fail")


def test_warnings_name_the_users_line(library: str, instrumentor: Any) -> None:
    """The library looks for the first frame outside its folder, and finds this file."""
    ours, _ = instrumentor
    ours.instrument()
    package = importlib.import_module(library)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        package.warn()
    assert [warning.filename for warning in caught] == [__file__]


def test_an_unimported_library_costs_nothing() -> None:
    """Instrumenting imports neither pandas nor requests nor upstream's instrumentor."""
    script = (
        "import sys\n"
        "from stagewatch.instrumentation.pandas import PandasInstrumentor\n"
        "from stagewatch.instrumentation.requests import RequestsInstrumentor\n"
        "PandasInstrumentor().instrument(); RequestsInstrumentor().instrument()\n"
        "heavy = {'pandas', 'numpy', 'requests', 'urllib3', 'opentelemetry.sdk',"
        " 'opentelemetry.instrumentation.requests'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_library_of_another_version_is_left_alone(library: str) -> None:
    """What it requires is looked at when the library is imported."""

    class Ours(Instrumentor):
        library = "patched_library"
        requires = ("pytest < 1",)

        def patches(self) -> tuple[Patch, ...]:
            raise AssertionError("nobody asked for the table")

    before = list(sys.meta_path)
    ours = Ours()
    ours.instrument()
    try:
        assert not hasattr(importlib.import_module(library).double, "__wrapped__")
        assert ours.applied == ()
    finally:
        ours.uninstrument()
    assert [finder for finder in sys.meta_path if finder not in before] == []
