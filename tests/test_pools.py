"""Threads and pools: what they do belongs to the stage that asked for it; nobody else notices."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import Jobs, wait_for

WORK = """
    import asyncio, multiprocessing, os, sys, threading, time
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
    from multiprocessing.pool import ThreadPool
    import pandas, stagewatch
    from opentelemetry import trace

    def work(number):
        frame = pandas.DataFrame({"a": [number]})
        frame.fillna(0)                                     # folds
        frame.to_csv(os.devnull)                            # a span
        with trace.get_tracer("mine").start_as_current_span(f"user {number}"): pass
        stagewatch.tracing.add_records(None, number)
        return number

    def work2(number, _): return work(number)

    def rows(count):
        for number in range(count):
            pandas.DataFrame({"a": [number]}).to_csv(os.devnull)
            yield number
"""
THREADS = {
    "submit": "with ThreadPoolExecutor(2) as pool: [pool.submit(work, n) for n in range(4)]",
    "map": "with ThreadPoolExecutor(2) as pool: list(pool.map(work, range(4)))",
    "pool": "with ThreadPool(2) as pool: pool.map(work, range(4))",
    "apply": "with ThreadPool(2) as pool: [pool.apply(work, (n,)) for n in range(4)]",
    "run_in_executor": "asyncio.run(in_executor())",
    "to_thread": "asyncio.run(to_thread())",
    "thread": "in_threads(threading.Thread)",
    "timer": "in_threads(lambda target, args: threading.Timer(0, target, args))",
    "joblib": "joblib.Parallel(2, backend='threading')(joblib.delayed(work)(n) for n in range(4))",
}
HOW = """
    async def in_executor():
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(None, work, n) for n in range(4)))

    async def to_thread():
        await asyncio.gather(*(asyncio.to_thread(work, n) for n in range(4)))

    def in_threads(kind):
        threads = [kind(target=work, args=(n,)) for n in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
"""
PROCESSES = {
    "submit": "[f.result() for f in [executor.submit(work, n) for n in range(4)]]",
    "executor map": "list(executor.map(work, range(4), chunksize=2))",
    "map": "pool.map(work, range(4))",
    "apply": "[pool.apply(work, (n,)) for n in range(4)]",
    "apply_async": "[r.get() for r in [pool.apply_async(func=work, args=(n,)) for n in range(4)]]",
    "imap": "list(pool.imap(work, range(4)))",
    "imap chunks": "list(pool.imap_unordered(work, range(4), chunksize=2))",
    "starmap": "pool.starmap(work2, [(n, 0) for n in range(4)])",
}


FOLDING = {"STAGEWATCH_SPAN_THRESHOLD": "1h"}
"""However slow the machine is, a cheap call folds."""


def _stage(inside: Any) -> Any:
    """Four items' spans in a stage, whatever their order."""
    return sorted(next(iter(span)) for span in inside)


ITEMS = sorted([*["pandas.to_csv"] * 4, *(f"user {number}" for number in range(4))])


@pytest.mark.parametrize("how", THREADS)
def test_threads_work_for_the_stage_that_asked(jobs: Jobs, how: str) -> None:
    """Spans hang under it, folded calls and records count for it; the next stage has its own."""
    result = jobs.run(
        f"{WORK}{HOW}"
        f"    {'import joblib' if how == 'joblib' else ''}\n"
        "    for name in 'first', 'second':\n"
        "        with stagewatch.stage(name):\n"
        f"            {THREADS[how]}\n",
        **FOLDING,
    )
    assert (result.returncode, result.stderr) == (0, "")
    (run,) = jobs.runs()
    assert {name: _stage(s[name]) for s in jobs.tree(run) for name in s} == {
        "first": ITEMS,
        "second": ITEMS,
    }
    with jobs.history() as history:
        stages = {stage.name: stage for stage in history.stages(run.run_id)}
        folded = {
            (op.stage, op.calls) for op in history.operations(run.run_id) if "fillna" in op.name
        }
    assert {name: stage.records_out for name, stage in stages.items()} == {
        "first": 10,
        "second": 10,
    }
    assert folded == {("first", 4), ("second", 4)}


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_work_for_the_stage_that_asked(jobs: Jobs, method: str) -> None:
    """The same for pools of processes that outlive the stage they were made in, and for the run
    outside of any stage."""
    calls = "".join(
        f"            with stagewatch.stage({name!r}): {call}\n" for name, call in PROCESSES.items()
    )
    result = jobs.run(
        f"{WORK}"
        "    if __name__ == '__main__':\n"
        f"        context = multiprocessing.get_context({method!r})\n"
        "        with stagewatch.stage('made'):\n"
        "            pool, executor = context.Pool(2), ProcessPoolExecutor(2, context)\n"
        "            pool.apply(abs, (1,)); executor.submit(abs, 1).result()\n"
        "        with pool, executor:\n"
        f"{calls}"
        "            pool.map(work, range(4))\n"
        "            pool.close(); pool.join()\n",
        **FOLDING,
    )
    assert (result.returncode, result.stderr) == (0, "")
    (run,) = jobs.runs()
    expected = {"made": [], **{name: ITEMS for name in PROCESSES}}

    def seen() -> dict[str, Any]:
        tree = jobs.tree(run)
        found = {
            name: _stage(inside)
            for span in tree
            for name, inside in span.items()
            if name in expected
        }
        return {**found, "": sorted({n for s in tree for n in s} - set(expected))}

    wait_for(lambda: seen() == {**expected, "": sorted(set(ITEMS))})

    def counted() -> dict[str, tuple[int, int | None]]:
        with jobs.history() as history:
            return {s.name: (s.calls, s.records_out) for s in history.stages(run.run_id)}

    wait_for(lambda: counted() == {"made": (1, None), **{name: (1, 10) for name in PROCESSES}})
    with jobs.history() as history:
        folded = {op.stage: op.calls for op in history.operations(run.run_id) if "fill" in op.name}
    assert folded == {"": 4, **{name: 4 for name in PROCESSES}}


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
def test_joblib_works_for_the_stage_that_asked(jobs: Jobs, backend: str) -> None:
    """Work that joblib hands on from a thread of the pool as well."""
    jobs.run(
        f"{WORK}"
        "    import joblib\n"
        "    if __name__ == '__main__':\n"
        "        for name in 'first', 'second':\n"
        "            with stagewatch.stage(name):\n"
        f"                run = joblib.Parallel(2, backend={backend!r}, pre_dispatch=1)\n"
        "                run(joblib.delayed(work)(n) for n in range(4))\n",
        **FOLDING,
    )
    (run,) = jobs.runs()

    def seen() -> tuple[Any, Any]:
        with jobs.history() as history:
            stages = {s.name: (s.calls, s.records_out) for s in history.stages(run.run_id)}
        return {name: _stage(s[name]) for s in jobs.tree(run) for name in s}, stages

    wait_for(
        lambda: seen() == ({"first": ITEMS, "second": ITEMS}, {"first": (1, 10), "second": (1, 10)})
    )


SAME = """
    import multiprocessing, pickle, re, sys, threading, traceback, warnings
    from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool
    from contextvars import ContextVar, copy_context
    from multiprocessing.pool import ThreadPool
    import gc, os, weakref
    import multiprocessing.spawn
    try:
        import joblib
    except ImportError: joblib = None
    import stagewatch

    mine = ContextVar("mine", default="nothing")

    def fails(number=0): raise KeyError(number)
    def warns(number=0): warnings.warn("deprecated", stacklevel=2)
    def leaves(number=0): os._exit(3)
    def sees(number=0): return mine.get(), mine in copy_context()
    def initial(): raise OSError("no")
    def unlucky():
        yield 1
        raise ZeroDivisionError
    class Local:
        def __reduce__(self): raise TypeError("not me")

    class Big: ...
    def is_freed():
        gc.disable()                                       # it would break a cycle
        given = Big()
        seen = weakref.ref(given)
        with ThreadPoolExecutor(1) as threads:
            try: threads.submit(divmod, given).result()
            except TypeError: pass
            try: threads.submit(lambda _: fails(), given).result()
            except KeyError: pass
        del given
        gc.enable()
        return seen() is None

    def told(title, function, *args, **kwargs):
        try:
            print(title, repr(function(*args, **kwargs)))
        except BaseException as error:
            lines = traceback.format_exception(error)
            print(title, "".join(lines))

    def main(method):
        mine.set("changed")
        context = multiprocessing.get_context(method)
        with ThreadPoolExecutor(1) as threads, ThreadPool(1) as pool, stagewatch.stage("load"):
            told("submit", lambda: threads.submit(fails).result())
            told("map", lambda: list(threads.map(fails, [1])))
            told("context", lambda: threads.submit(sees).result())
            told("pool", pool.map, fails, [1])
            told("apply", pool.apply, fails)
            told("apply_async", lambda: pool.apply_async(func=fails).get())
            told("pool context", pool.apply, sees)
            told("imap", lambda: list(pool.imap(str, unlucky())))
            told("nothing", pool.apply_async)
            told("no submit", threads.submit)
            told("no thread", threading.Thread.start)
            told("freed", is_freed)
        told("closed", pool.apply_async, fails)
        told("down", threads.submit, fails)
        with context.Pool(1) as pool, ProcessPoolExecutor(1, context) as executor:
            with stagewatch.stage("load"):
                told("remote", pool.apply, fails)
                told("remote map", pool.map, fails, [1, 2])
                told("remote imap", lambda: list(pool.imap(str, unlucky())))
                told("lambda", pool.apply, lambda: 1)
                told("lambda map", pool.map, lambda number: 1, [1])
                told("argument", pool.apply, str, (Local(),))
                told("result", pool.apply, Local)
                told("remote context", pool.apply, sees)
                told("executor", lambda: executor.submit(fails).result())
                told("executor map", lambda: list(executor.map(fails, [1, 2])))
                told("executor lambda", lambda: executor.submit(lambda: 1).result())
                told("executor argument", lambda: executor.submit(str, Local()).result())
                told("executor context", lambda: executor.submit(sees).result())
                told("broken", lambda: executor.submit(leaves).result())
                told("still broken", lambda: executor.submit(sees).result())
        told("initializer", lambda: ProcessPoolExecutor(1, context, initial).submit(sees).result())
        with context.Pool(1, maxtasksperchild=1) as pool:
            told("new workers", pool.map, abs, [-1, -2, -3], chunksize=1)
        if joblib and method == "fork":
            told("joblib", joblib.Parallel(2), [joblib.delayed(abs)(n) for n in range(3)])
            told("joblib fails", joblib.Parallel(2), [joblib.delayed(fails)(1)] * 3)
        thread = threading.Thread(target=fails, name="mine"); print(sorted(vars(thread)))
        thread.start(); thread.join(); print(thread)
        told("twice", thread.start)
        warnings.simplefilter("always")
        with ThreadPoolExecutor(1) as threads: threads.submit(warns).result()
        with ThreadPool(1) as threads: threads.apply(warns)
        future = threading.Thread(target=sees); print(pickle.dumps(fails) is not None)
        if method == "fork":
            multiprocessing.spawn._python_exe = sys.executable = None  # as where Python is embedded
            with context.Pool(1) as pool: told("embedded", pool.map, abs, [-1])

    if __name__ == "__main__":
        main(sys.argv[1])
"""


def _settled(text: str, directory: Path) -> str:
    """Without what is another in every process: a result is there at once, or waited for."""
    text = re.sub(r'(_base.py", line )\d+(, in result)', r"\1N\2", text)
    for pattern in (r"0x[0-9a-f]+", r"\b\d{4,}\b", r"(?<=-)\d+(?=[:,)\"' ])"):
        text = re.sub(pattern, "N", text)
    return text.replace(str(directory), "")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_nobody_notices(jobs: Jobs, method: str) -> None:
    """Results, tracebacks to the last line, pickling errors, warnings, broken pools and the user's
    context variables are what they are without us."""
    script = jobs.script(SAME)
    seen = []
    for command in (["python"], ["opentelemetry-instrument", "python"]):
        done = subprocess.run(
            [*command, str(script), method],
            cwd=jobs.directory,
            env=jobs.environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        seen.append(
            (
                done.returncode,
                _settled(done.stdout, jobs.directory).splitlines(),
                sorted(_settled(done.stderr, jobs.directory).splitlines()),
            )
        )
    assert seen[0][1][:3] == seen[1][1][:3]
    assert seen[0] == seen[1]
