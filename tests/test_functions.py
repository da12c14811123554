"""Declared functions are stages, and nobody else can tell."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import gc
import inspect
import io
import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import traceback
import types
import warnings
import weakref
from pathlib import Path
from typing import Any

import pandas
import pytest

from stagewatch import safety, stage_calls, stages, tracing, wrapping
from stagewatch.instrumentation import functions
from stagewatch.instrumentation._binding import SCRIPT, Binding, Target, declared_targets
from stagewatch.instrumentation._watching import ImportWatch, bindings
from stagewatch.model import DeclaredStage, Pipeline
from stagewatch.records import StageEnded

SCRIPTS = Path(__file__).parent / "functions_scripts"


class Seen(list):
    """What was done to stages, in order; a test compares all of it."""

    def enter(self, name: str) -> _Stage:
        self.append(("enter", name))
        return _Stage(self, name)


class _Stage:
    def __init__(self, seen: Seen, name: str) -> None:
        self.seen, self.name = seen, name

    def suspend(self) -> None:
        self.seen.append(("suspend", self.name))

    def resume(self) -> None:
        self.seen.append(("resume", self.name))

    def leave(self, error=None, *, frame_rows_in=None, frame_rows_out=None) -> None:
        self.seen.append(("leave", self.name, error, frame_rows_in, frame_rows_out))


@pytest.fixture
def seen(monkeypatch):
    """Stages are noted instead of recorded; an error of ours fails the test."""
    notes, swallowed = Seen(), safety.swallowed
    monkeypatch.setattr(stage_calls, "enter", notes.enter)
    yield notes
    assert safety.swallowed == swallowed


def staged(function: Any) -> Any:
    return wrapping.wrap(function, "s")


def plain(a: int, /, b: int = 2, *rest: int, c: int, d: int = 4, **more: int) -> tuple:
    """Doc."""
    return a, b, rest, c, d, more


def generating(n):
    """Yields, takes what is sent, and returns."""
    got = []
    for i in range(n):
        got.append((yield i))
    return got


async def awaiting(n):
    await asyncio.sleep(0)
    return n


async def generating_async(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


EVERY_KIND = [plain, generating, awaiting, generating_async]


# --- what a function says of itself -----------------------------------------------------------


@pytest.mark.parametrize("function", EVERY_KIND)
def test_a_wrapped_function_says_the_same_of_itself(function):
    """Kind, signature, source, names, defaults, annotations and place are those of the function."""
    wrapper = staged(function)
    for ask in (
        inspect.isfunction,
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
        inspect.signature,
        inspect.getfullargspec,
        inspect.getsource,
        inspect.getsourcelines,
        inspect.getfile,
        inspect.getsourcefile,
        inspect.getmodule,
        inspect.getdoc,
        inspect.unwrap,
    ):
        assert ask(wrapper) == ask(function), ask
    for name in ("name", "qualname", "module", "doc", "defaults", "kwdefaults", "annotations"):
        assert getattr(wrapper, f"__{name}__") == getattr(function, f"__{name}__"), name
    assert wrapper.__globals__ is function.__globals__
    for name in ("co_name", "co_qualname", "co_filename", "co_firstlineno"):
        assert getattr(wrapper.__code__, name) == getattr(function.__code__, name), name


def test_arguments_and_results_pass_unchanged(seen):
    """Positional, keyword, default and variable arguments arrive as they were given."""
    wrapper = staged(plain)
    assert wrapper(1, c=3) == plain(1, c=3)
    assert wrapper(1, 5, 6, 7, c=3, d=8, e=9) == plain(1, 5, 6, 7, c=3, d=8, e=9)
    assert wrapper(1, c=3, a=0, self=1, args=2, kwargs=3) == (
        plain(1, c=3, a=0, self=1, args=2, kwargs=3)
    )


def test_a_function_is_wrapped_once():
    """What is a stage already, also behind decorators that say so, is not made one again."""
    wrapper = staged(plain)
    assert wrapping.wrap(wrapper, "other") is wrapper

    @functools.wraps(wrapper)
    def decorated():
        return wrapper(1, c=1)

    assert wrapping.wrap(decorated, "other") is decorated
    static = staticmethod(wrapper)
    assert wrapping.wrap(static, "other") is static


@pytest.mark.parametrize("thing", [len, int, functools.partial(plain, 1), object()])
def test_what_is_no_python_function_is_refused(thing):
    """Replacing it would show, so it is left alone."""
    with pytest.raises(TypeError, match="is not a Python function"):
        staged(thing)


# --- calls ------------------------------------------------------------------------------------


def test_every_call_is_a_stage(seen):
    """It is opened before and ended after, also by recursion."""

    def count(n):
        seen.append(n)
        return n and again(n - 1)

    again = staged(count)
    again(1)
    end = ("leave", "s", None, None, None)
    assert seen == [("enter", "s"), 1, ("enter", "s"), 0, end, end]


def test_rows_are_those_of_frames(seen):
    """DataFrame arguments add up, Series and frames inside others do not count."""
    frame = pandas.DataFrame({"a": range(3)})
    wrapper = staged(lambda *a, **k: a[0].head(2))
    wrapper(frame, frame["a"], [frame], other=frame)
    assert seen[1] == ("leave", "s", None, 6, 2)


def test_a_lazy_argument_stays_asleep(seen):
    """Nothing asks an argument for its class."""

    class Lazy:
        @property
        def __class__(self):
            raise AssertionError("woken")

    staged(lambda x: None)(Lazy())


def fail(n):
    raise KeyError(n)


def handle(function, *args):
    """The traceback that *function* leaves, as text, with all its context."""
    try:
        try:
            raise OSError("before")
        except OSError:
            function(*args)
    except Exception as error:
        return [
            (frame.name, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)
        ], [
            repr(error),
            repr(error.__context__),
            repr(error.__cause__),
            error.__suppress_context__,
        ]


def run(coroutine_function):
    """A plain function that awaits it with the same frames every time."""

    async def main(*args):
        return await coroutine_function(*args)

    def call(*args):
        coroutine = main(*args)
        while True:
            try:
                coroutine.send(None)
            except StopIteration as end:
                return end.value

    return call


def failing_generator(n):
    yield n
    raise KeyError(n)


async def failing_coroutine(n):
    await asyncio.sleep(0)
    raise KeyError(n)


async def failing_async_generator(n):
    yield n
    raise KeyError(n)


def exhaust(function):
    return lambda *args: list(function(*args))


def exhaust_async(function):
    async def items(*args):
        return [item async for item in function(*args)]

    return run(items)


@pytest.mark.parametrize(
    ("use", "function"),
    [
        (lambda function: function, fail),
        (exhaust, failing_generator),
        (run, failing_coroutine),
        (exhaust_async, failing_async_generator),
    ],
)
@pytest.mark.parametrize("arguments", [(1,), (), (1, 2)])
def test_tracebacks_are_the_same(seen, use, function, arguments):
    """A failure inside, and a call that does not fit: no frame of ours, and the same context."""
    assert handle(use(staged(function)), *arguments) == handle(use(function), *arguments)
    if len(arguments) == 1:
        assert isinstance(seen[-1][2], KeyError)


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Says no to whoever writes its traceback; only the interpreter does not ask."""

    n: int

    def with_traceback(self, tb):
        raise AssertionError("not for others")


def fail_frozen(n):
    raise Frozen(n)


def frozen_generator(n):
    try:
        yield n
    finally:
        raise Frozen(n)


async def frozen_coroutine(n):
    raise Frozen(n)


async def frozen_async_generator(n):
    yield n
    raise Frozen(n)


def throwing(function):
    """A failure thrown into the generator comes out of it."""

    def use(*args):
        generator = function(*args)
        next(generator)
        generator.throw(Frozen(2))

    return use


@pytest.mark.parametrize(
    ("use", "function"),
    [
        (lambda function: function, fail_frozen),
        (exhaust, frozen_generator),
        (throwing, frozen_generator),
        (throwing, generating),
        (run, frozen_coroutine),
        (exhaust_async, frozen_async_generator),
    ],
)
def test_a_frozen_exception_comes_through(seen, use, function):
    """A frame is taken out of its traceback without asking the exception."""
    ours = handle(use(staged(function)), 1)
    assert ours == handle(use(function), 1)
    assert "Frozen" in ours[1][0]


def test_a_frozen_exception_of_a_finder_comes_through(monkeypatch):
    """Nor is it asked where an import is watched."""

    class Finder:
        def find_spec(self, *_):
            raise Frozen(1)

    watch = ImportWatch(lambda name: True, lambda name: None, lambda name: None)
    monkeypatch.setattr(sys, "meta_path", [watch, Finder()])
    with pytest.raises(Frozen) as caught:
        __import__("nowhere_to_be_found")
    assert [entry.name for entry in caught.traceback][-1] == "find_spec"
    assert not [entry for entry in caught.traceback if "_watching" in str(entry.path)]


def test_a_dropped_wrapper_is_freed():
    """`@stage` on an inner function, call by call, keeps nothing of it."""

    def outer():
        rows = Seen()

        @stages.stage
        def inner():
            return rows

        return weakref.ref(inner), weakref.ref(rows)

    references = outer()
    gc.collect()
    assert [reference() for reference in references] == [None, None]


@pytest.mark.parametrize("function", EVERY_KIND[1:])
def test_a_call_that_does_not_fit_fails_at_once(seen, function):
    """Not at the first step, when nobody expects it any more."""
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        staged(function)()
    assert seen == []


def test_methods_of_every_kind(seen):
    """Instance, class and static methods get what they got before."""

    class Base:
        def own(self):
            return self

    class Loader(Base):
        def own(self):
            return super().own()

        @classmethod
        def klass(cls):
            return cls

        @staticmethod
        def static(x):
            return x

    for name in ("own", "klass", "static"):
        setattr(Loader, name, staged(vars(Loader)[name]))
    loader = Loader()
    assert (loader.own(), loader.klass(), Loader.static(3)) == (loader, Loader, 3)
    assert [type(vars(Loader)[name]) for name in ("klass", "static")] == [classmethod, staticmethod]
    assert len(seen) == 6


def test_a_cached_function_stays_one(seen):
    """Its cache can be asked and cleared; hits are calls too."""
    wrapper = staged(functools.lru_cache(maxsize=2)(lambda x: [x]))
    assert wrapper(1) is wrapper(1)
    assert wrapper.cache_info().hits == 1
    wrapper.cache_clear()
    assert wrapper.cache_info().currsize == 0
    assert len(seen) == 4


def test_a_warning_reaches_the_same_caller(seen):
    """`stacklevel` counts frames; ours is none of them."""

    def old():
        warnings.warn("old", DeprecationWarning, stacklevel=2)

    def old_generator():
        yield helper()

    def helper():
        warnings.warn("old", DeprecationWarning, stacklevel=3)

    for call in (staged(old), lambda: next(staged(old_generator)())):
        with pytest.warns(DeprecationWarning) as caught:
            call()
        assert caught[0].filename == __file__


# --- generators and coroutines -----------------------------------------------------------------


def test_a_generator_is_the_stage_from_first_next_to_its_end(seen):
    """It is current only while its frame runs; its value is kept, its frames are rows out."""
    frame = pandas.DataFrame({"a": range(3)})

    def chunks(source):
        seen.append("runs")
        got = yield source
        seen.append(got)
        return "end"

    generator = staged(chunks)(frame)
    assert seen == []
    assert next(generator) is frame
    with pytest.raises(StopIteration) as end:
        generator.send("sent")
    assert end.value.value == "end"
    assert seen == [
        ("enter", "s"),
        "runs",
        ("suspend", "s"),
        ("resume", "s"),
        "sent",
        ("leave", "s", None, 3, 3),
    ]


@pytest.mark.parametrize("delegate", [False, True])
def test_a_generator_takes_what_is_done_to_it(seen, delegate):
    """send, throw and close do what they do to the bare generator, in every order."""

    def stubborn():
        got = []
        while len(got) < 6:
            try:
                got.append((yield len(got)))
            except ValueError as error:
                got.append(error.args)
            except KeyError:
                return "left"
            finally:
                got.append("finally")
        raise OSError("too much")

    def delegating(function):
        return lambda: (lambda inner: (yield from inner))(function())

    def script(generator, steps):
        log = []
        for name, *args in steps:
            try:
                log.append(getattr(generator, name)(*args))
            except BaseException as error:
                log.append(repr(error))
        return log

    for steps in (
        [("send", None), ("send", 1), ("throw", ValueError(2)), ("send", 3), ("send", 4)],
        [("send", 1), ("send", None), ("throw", KeyError(1)), ("send", None)],
        [("throw", ValueError(1)), ("send", None)],
        [("close",), ("send", None)],
        [("send", None), ("close",), ("close",), ("throw", ValueError(1))],
        [("send", None), ("throw", StopIteration(1)), ("send", None)],
        [("send", None), ("throw", GeneratorExit()), ("send", None)],
    ):
        wrapper = staged(stubborn)
        ours, bare = (delegating(f)() if delegate else f() for f in (wrapper, stubborn))
        assert script(ours, steps) == script(bare, steps), steps


def test_an_ignored_close_is_reported_as_ever(seen):
    """A generator that yields when it is closed is told so."""

    def ignoring():
        while True:
            with contextlib.suppress(GeneratorExit):
                yield 1

    generator = staged(ignoring)()
    next(generator)
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        generator.close()
    with pytest.raises(KeyError):
        generator.throw(KeyError())


def test_a_dropped_generator_ends_its_stage(seen):
    """Closing is no failure; one that never started was no stage."""
    unstarted = staged(generating)(3)
    del unstarted
    assert seen == []
    started = staged(generating)(3)
    next(started)
    del started
    gc.collect()
    assert seen[-1] == ("leave", "s", None, None, None)


def test_a_generator_does_not_keep_what_it_gave_away(seen):
    """A consumer that drops a chunk frees it before the next one is made."""

    class Chunk:
        alive = 0

        def __init__(self):
            Chunk.alive += 1

        def __del__(self):
            Chunk.alive -= 1

    def chunks():
        yield Chunk()
        seen.append(Chunk.alive)
        yield Chunk()

    for chunk in staged(chunks)():
        del chunk
        assert Chunk.alive == 0
    assert 0 in seen


def test_a_coroutine_is_the_stage_until_it_returns(seen):
    """In tasks too; asyncio takes it for what it is."""
    wrapper = staged(awaiting)

    async def main():
        return [await wrapper(1), *await asyncio.gather(wrapper(2), wrapper(3))]

    assert asyncio.run(main()) == [1, 2, 3]
    assert [note[0] for note in seen].count("leave") == 3
    coroutine = wrapper(1)
    assert (type(coroutine), coroutine.__qualname__) == (types.CoroutineType, "awaiting")
    coroutine.close()


def test_a_cancelled_coroutine_fails_with_the_cancellation(seen):
    """The error is handed to the stage, and goes on."""

    async def main():
        task = asyncio.create_task(staged(asyncio.sleep)(60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert isinstance(seen[-1][2], asyncio.CancelledError)


def test_a_forgotten_await_is_warned_of_once(seen):
    """Not a second time for the coroutine behind ours."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        staged(awaiting)(1)
        gc.collect()
    assert [str(w.message) for w in caught] == ["coroutine 'awaiting' was never awaited"]
    assert seen == []


def test_an_async_generator_takes_what_is_done_to_it(seen):
    """asend, athrow and aclose reach it, and its loop finds nothing left to close."""

    async def answering():
        got = None
        try:
            while True:
                try:
                    got = yield got
                except ValueError as error:
                    got = error.args
        finally:
            await asyncio.sleep(0)

    async def main(function):
        generator = function()
        log = [await generator.asend(None), await generator.asend(1)]
        log.append(await generator.athrow(ValueError(2)))
        await generator.aclose()
        log += [item async for item in generator]
        left = function()
        await left.asend(None)  # its loop closes it
        return log

    complaints: list[dict] = []

    async def watched(function):
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        return await main(function)

    assert asyncio.run(watched(staged(answering))) == asyncio.run(watched(answering))
    assert complaints == []
    assert [note[0] for note in seen].count("leave") == 2


def test_a_plain_decorator_around_a_coroutine_or_generator(seen):
    """The stage lasts until what it returned has ended, or until it has run it itself."""

    def passing(function):
        return functools.wraps(function)(lambda *args: function(*args))

    def running(function):
        return functools.wraps(function)(lambda *args: asyncio.run(function(*args)))

    assert staged(running(awaiting))(4) == 4
    assert asyncio.run(staged(passing(awaiting))(5)) == 5
    assert list(staged(passing(generating))(1)) == [0]
    dropped = staged(passing(generating))(1)
    del dropped
    assert [note[0] for note in seen if note[0] in ("enter", "leave")] == ["enter", "leave"] * 4


# --- shipping ---------------------------------------------------------------------------------


def test_shipped_by_value_it_runs_bare_where_we_are_not():
    """What the closures hold turns into something of Python's own."""
    for shape, call in (
        ("call", lambda hook: hook((), {})(None, 7)),
        ("generator", lambda hook: hook(7, (), {})),
    ):
        data = pickle.dumps(wrapping._Hook(shape, "s"))
        back = pickle.loads(data)
        assert (type(back), back.shape, back.stage_name) == (wrapping._Hook, shape, "s")
        code = f"import pickle, sys; h = pickle.loads({data!r}); print(({_source(call)})(h))"
        bare = subprocess.run(
            [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30
        )
        assert (bare.stdout, bare.stderr) == ("7\n", "")


def _source(call) -> str:
    text = inspect.getsource(call).strip()
    return text[text.index("lambda") : text.rindex(")")]


# --- binding ----------------------------------------------------------------------------------


def test_targets_of_a_pipeline():
    """With a module, without, a method, and a stage that is only named."""
    stages = {
        "extract": DeclaredStage(function="jobs.steps:extract"),
        "load": DeclaredStage(function="Loader.load"),
        "transform": DeclaredStage(),
        "not a name": DeclaredStage(),
    }
    assert declared_targets(Pipeline("p", stages=stages)) == [
        Target("jobs.steps", ("extract",), "extract"),
        Target(SCRIPT, ("Loader", "load"), "load"),
        Target(SCRIPT, ("transform",), "transform", said=False),
    ]


@pytest.mark.parametrize(
    ("source", "last", "lines"),
    [
        ("x = 1", None, set()),
        ("def f(): pass\nx = 1", 1, {1}),
        ("if x:\n  def f(): pass\nelse:\n  from m import f\nx = 1", 4, {2, 4}),
        ("for i in x:\n  def f(): pass\n  g(\n)\ny = 1", 3, {2}),
        ("x = 1\n" * 9 + "".join(f"x{i} = 1\n" for i in range(300)) + "f = x\ny = 1", 310, {310}),
    ],
)
def test_where_a_body_can_bind_a_name(source, last, lines):
    """Found in the code itself: branches, loops and wide arguments included."""
    code = compile(source, "s", "exec")
    end, stores = bindings(code, {"f"})

    def line(offset):
        return next((n for start, stop, n in code.co_lines() if start <= offset < stop), None)

    assert (line(end), {line(offset) for offset in stores}) == (last, lines)


def fresh_module(monkeypatch, name, source):
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(source, vars(module))
    return module


def test_loaded_modules_are_bound_at_once_and_put_back(seen, monkeypatch):
    """Functions, methods, inherited ones; afterwards every namespace is as it was."""
    source = (
        "class Base:\n  def load(self): return 1\n"
        "class Loader(Base):\n  @staticmethod\n  def parse(): return 2\n"
        "def extract(): return 3\n"
    )
    module = fresh_module(monkeypatch, "loaded_job", source)
    before = {name: dict(vars(vars(module)[name])) for name in ("Base", "Loader")}
    original, finders = module.extract, list(sys.meta_path)
    paths = ("extract", "Loader.load", "Loader.parse", "Missing", "Loader.missing", "Loader")
    binding = Binding(
        [Target("loaded_job", tuple(path.split(".")), path) for path in paths], wrapping.wrap
    )
    binding.start()
    try:
        assert (module.Loader().load(), module.Loader.parse(), module.extract()) == (1, 2, 3)
        assert module.Base().load() == 1
        assert [note[1] for note in seen] == [
            name for name in ("Loader.load", "Loader.parse", "extract") for _ in range(2)
        ]
        assert pickle.loads(pickle.dumps(module.extract)) is module.extract
    finally:
        binding.stop()
    assert module.extract is original
    assert {name: dict(vars(vars(module)[name])) for name in before} == before
    assert (sys.meta_path, sys.gettrace(), tracing.on_activity) == (finders, None, [])


def test_a_thing_that_cannot_be_wrapped_is_named_once(seen, monkeypatch, caplog):
    """One line says which stage is not recorded, and why."""
    fresh_module(monkeypatch, "odd_job", "import functools\nf = functools.partial(print)")
    binding = Binding([Target("odd_job", ("f",), "load")], wrapping.wrap)
    with caplog.at_level(logging.WARNING):
        binding.start()
        binding._bind_module("odd_job")
        binding.stop()
    assert caplog.messages == [
        "stage load: calls are not recorded: a partial is not a Python function"
    ]


def test_without_declared_stages_nothing_is_touched():
    """No finder, no trace function, no hook."""
    before = (list(sys.meta_path), sys.gettrace(), list(tracing.on_activity))
    instrumentor = functions.FunctionsInstrumentor()
    instrumentor.instrument()
    assert (list(sys.meta_path), sys.gettrace(), list(tracing.on_activity)) == before
    instrumentor.uninstrument()


# --- scripts ----------------------------------------------------------------------------------


def start(tmp_path, stages, *command, files=(), stdin=None):
    """Run Python under `functions_scripts/sitecustomize.py`: its output and what it noted."""
    for name, source in dict(files).items():
        (tmp_path / name).write_text(source)
    notes = tmp_path / "seen"
    notes.write_text("")
    environment = {
        **os.environ,
        "SEEN": str(notes),
        "STAGES": json.dumps(stages),
        "PYTHONPATH": str(SCRIPTS),
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    # The fork server itself goes on waiting for a script, that of its children.
    tracing_still = [what for _, what, *_ in lines if "TraceWatch" in what]
    assert len(tracing_still) <= ("forkserver" in str(files))
    return done, [(what, stage) for _, what, stage, _ in lines if what in ("enter", "leave")]


def called(*stages):
    return [(what, stage) for stage in stages for what in ("enter", "leave")]


JOB = """
import json, xml.dom.minidom

def extract(n):
    return list(range(n))

STEPS = {"extract": extract}
STEPS["extract"](3)

class Loader:
    def load(self): return 1

Loader().load()
if True:
    try:
        def chunks(n):
            yield from range(n)
    finally:
        pass
list(chunks(2))
"""


@pytest.mark.parametrize("how", ["file", "-m", "-c", "stdin"])
def test_the_functions_of_the_script(tmp_path, how):
    """The first call is a stage, whatever the script does with its functions before."""
    command = {"file": ["job.py"], "-m": ["-m", "job"], "-c": ["-c", JOB], "stdin": []}[how]
    stages = {"extract": None, "load": "Loader.load", "chunks": "chunks"}
    done, seen = start(tmp_path, stages, *command, files={"job.py": JOB}, stdin=JOB)
    assert (done.stderr, seen) == ("", called("extract", "load", "chunks"))


def test_the_functions_of_imported_modules(tmp_path):
    """Calls while the module is imported, and what it put into its own tables, included."""
    script = "import sub.job as job, pickle\njob.extract(1)\npickle.dumps(job.Loader().load)\n"
    stages = {"extract": "sub.job:extract", "load": "sub.job:Loader.load", "gone": "sub.no:f"}
    (tmp_path / "sub").mkdir()
    files = {"run.py": script, "sub/__init__.py": "", "sub/job.py": JOB}
    done, seen = start(tmp_path, stages, "run.py", files=files)
    assert (done.stderr, seen) == ("", called("extract", "load", "extract"))


def test_the_script_under_the_name_of_its_module(tmp_path):
    """A declaration may name the module that happens to be run."""
    for command in (["job.py"], ["-m", "job"]):
        done, seen = start(tmp_path, {"e": "job:extract"}, *command, files={"job.py": JOB})
        assert (done.stderr, seen) == ("", called("e"))


def test_a_name_bound_late_after_slow_code(tmp_path):
    """Code before the last declared function runs at full speed, and its first call is a stage."""
    script = """
import sys, time
def spin(n):
    for i in range(n): seen.add(sys.gettrace())
seen = set()
spin(1000)
[spin(10) for i in range(3)]
try:
    spin("x")
except TypeError:
    pass
def extract(): return 1
extract()
print(seen)
"""
    done, seen = start(tmp_path, {"extract": None}, "job.py", files={"job.py": script})
    assert (done.stdout, done.stderr, seen) == ("{None}\n", "", called("extract"))


def test_a_long_loop_of_the_script_itself_ends_the_watch(tmp_path):
    """What is bound after that is a stage from the next activity on."""
    script = """
import sys
def first(): pass
for i in range(200_000):
    x = i
print(sys.gettrace())
def second(): pass
second()
first()
second()
"""
    stages = {"first": None, "second": None}
    done, seen = start(tmp_path, stages, "job.py", files={"job.py": script})
    if sys.version_info >= (3, 12):  # nobody pays there, so nothing has to end
        assert (done.stderr, seen) == ("", called("second", "first", "second"))
    else:
        assert (done.stdout, done.stderr, seen) == ("None\n", "", called("first", "second"))


def test_a_debugger_keeps_its_trace_function(tmp_path):
    """Whoever sets one while the script runs has it for good."""
    script = """
import sys
def mine(*_): return None
sys.settrace(mine)
def extract(): return sys.gettrace() is mine
print(extract(), sys.gettrace() is mine)
sys.settrace(None)
"""
    done, _ = start(tmp_path, {"extract": None}, "job.py", files={"job.py": script})
    assert (done.stdout, done.stderr) == ("True True\n", "")


def test_a_kept_traceback_leaves_no_trace_at_exit(tmp_path):
    """It keeps the frame that was to bring the trace function back; the next activity binds."""
    script = """
def broken(): raise ValueError
try:
    broken()
except ValueError as error:
    kept = error
def extract(): return 1
try: broken()
except ValueError: pass
extract()
"""
    done, seen = start(
        tmp_path, {"extract": None, "broken": None}, "job.py", files={"job.py": script}
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert seen == called("broken", "broken", "extract")


def test_failures_of_the_script_look_the_same(tmp_path):
    """A traceback through staged functions and a broken import is that of the bare script."""
    files = {
        "broken.py": "def f(): pass\nimport nowhere_to_be_found\n",
        "job.py": "def extract(n):\n    return 1 / n\ntry:\n    import broken\n"
        "except ImportError:\n    import traceback; traceback.print_exc()\nextract(0)\n",
    }
    done, _ = start(tmp_path, {"extract": None, "f": "broken:f"}, "job.py", files=files)
    bare = subprocess.run(
        [sys.executable, "job.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (bare.returncode, bare.stderr)
    assert "ZeroDivisionError" in bare.stderr


def test_an_import_that_warns_warns_its_importer(tmp_path):
    """No frame of ours stands between a declared module and who imports it."""
    files = {
        "old.py": "import warnings\nwarnings.warn('old', DeprecationWarning, stacklevel=2)\n"
        "def f(): pass\n",
        "job.py": "import old\n",
    }
    done, _ = start(tmp_path, {"f": "old:f"}, "job.py", files=files)
    assert done.stderr == f"{tmp_path}/job.py:1: DeprecationWarning: old\n  import old\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_stages_in_children_of_multiprocessing(tmp_path, method):
    """The script's functions are pickled by name, and are stages there too."""
    script = f"""
import multiprocessing
def work(n):
    return n + 1
if __name__ == "__main__":
    with multiprocessing.get_context("{method}").Pool(1) as pool:
        print(pool.map(work, [1, 2]))
"""
    done, seen = start(tmp_path, {"work": None}, "job.py", files={"job.py": script})
    assert (done.stdout, done.stderr, seen) == ("[2, 3]\n", "", called("work", "work"))


def test_a_run_from_end_to_end(tmp_path):
    """Under opentelemetry-instrument, with nothing stood in for: the stages are in the history."""
    script = """
import pandas
def extract(n):
    return pandas.DataFrame({"a": range(n)})
class Loader:
    def load(self, df): return df.head(2)
def chunks(df):
    yield df
for part in chunks(extract(5)):
    Loader().load(part)
"""
    declared = """
pipelines:
  job:
    stages:
      extract: {}
      load: {function: Loader.load}
      chunks: {}
"""
    (tmp_path / "job.py").write_text(script)
    (tmp_path / "stagewatch.yaml").write_text(declared)
    environment = {**os.environ, "STAGEWATCH_STATE_DIR": str(tmp_path / "state")}
    environment["STAGEWATCH_RECORDER_IDLE"] = "1s"

    def tool(name, *arguments):
        command = [str(Path(sys.executable).with_name(name)), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )

    job = tool("opentelemetry-instrument", sys.executable, "job.py")
    assert (job.returncode, job.stdout, job.stderr) == (0, "", "")
    report = json.loads(tool("stagewatch", "report", "job", "--json").stdout)
    shown = json.loads(tool("stagewatch", "show", report["runs"][0]["run_id"], "--json").stdout)
    stages = {s["name"]: (s["calls"], s["records_in"], s["records_out"]) for s in shown["stages"]}
    assert stages == {"extract": (1, None, 5), "load": (1, 5, 2), "chunks": (1, 5, 5)}


def test_traceback_module_prints_no_frame_of_ours(seen):
    """What a user reads is the user's code alone."""
    out = io.StringIO()
    try:
        staged(fail)(1)
    except KeyError:
        traceback.print_exc(file=out)
    assert "stagewatch/instrumentation" not in out.getvalue()


# --- blocks -----------------------------------------------------------------------------------


def _ended(recorded):
    return sorted((e.records_out, e.outcome) for e in recorded.of(StageEnded))


MIXED = [(1, "failure"), (2, "success")]


def test_threads_share_a_stage_object(recorded):
    """Each ends its own stage, whoever entered last."""
    load, entered = stages.stage("load"), threading.Event()

    def first():
        with contextlib.suppress(KeyError), load as opened:
            opened.records(out=1)
            entered.set()
            assert second_entered.wait(30)
            raise KeyError

    second_entered = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(30)
    with load as opened:
        opened.records(out=2)
        second_entered.set()
        thread.join(30)
    assert _ended(recorded) == MIXED


def test_tasks_share_a_stage_object(recorded):
    """As threads do, in one thread and within a stage of the same object."""
    load = stages.stage("load")

    async def first():
        with contextlib.suppress(KeyError), load as opened:
            opened.records(out=1)
            await asyncio.sleep(0)
            raise KeyError

    async def second(task):
        with load as opened:
            opened.records(out=2)
            await task

    async def main():
        task = asyncio.create_task(first())
        await asyncio.gather(task, asyncio.create_task(second(task)))

    with load as opened:
        opened.records(out=3)
        asyncio.run(main())
    assert _ended(recorded) == [*MIXED, (3, "success")]


def test_a_nested_block_ends_the_inner_stage(recorded):
    """One object, entered again inside."""
    load = stages.stage("load")
    with load as outer:
        with contextlib.suppress(KeyError), load as inner:
            inner.records(out=1)
            raise KeyError
        outer.records(out=2)
    assert _ended(recorded) == MIXED


def test_a_block_may_end_elsewhere(recorded):
    """A generator is begun in one thread and ended in another."""

    def generate():
        with stages.stage("load") as opened:
            opened.records(out=1)
            yield

    generator = generate()
    contextvars.copy_context().run(next, generator)
    thread = threading.Thread(target=lambda: list(generator))
    thread.start()
    thread.join(30)
    assert _ended(recorded) == [(1, "success")]


def test_a_block_works_without_a_run():
    """Nothing is recorded, and nothing is raised."""
    load = stages.stage("load")
    with load, load as opened:
        opened.records(out=1)
