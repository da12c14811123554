"""What is behind the exceptions that Spark raises in Python: the user's own one, in a worker; a
condition of Spark's; a cancelled job; a JVM that is gone.

Of Java's exceptions a text is all there is, which PySpark's own classes carry with them: only for
a bare `Py4JJavaError` the JVM is asked for it, with one call.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

from msgspec import structs

from stagewatch import failures
from stagewatch.failures import Cause
from stagewatch.model import Outcome

CANCELLED: Final = "cancelled"
STOPPED: Final = "spark_stopped"
"""The context was shut down while the job ran."""
WORKER_DIED: Final = "python_worker_died"
JVM_GONE: Final = "jvm_gone"
OUT_OF_MEMORY: Final = "java.lang.OutOfMemoryError"

_PATIENCE: Final = 0.1
"""Seconds that a JVM may take from closing its connections to its end."""
_OUT_OF_MEMORY_STATUS: Final = 3
"""Exit status by ``-XX:+ExitOnOutOfMemoryError``."""

_waited_for = 0
"""The JVM that did not end in that time: it is not waited for again."""
_known: WeakKeyDictionary[BaseException, Cause] = WeakKeyDictionary()
"""Stages and run ask again, perhaps when the JVM is no longer there."""


def cause(error: BaseException) -> Cause | None:
    """What is behind *error*; None if Spark has not raised it, or it says it all itself.

    Changes nothing of *error*; at most one call into the JVM, none if that is gone.
    """
    if isinstance(error, _class("pyspark.errors.exceptions.base", "PySparkException")):
        if not type(error).__module__.startswith("pyspark."):
            return None  # a class of the user's
        explain: Any = _of_pyspark
    elif isinstance(error, _class("py4j.protocol", "Py4JJavaError")):
        explain = _of_java
    elif isinstance(error, _class("py4j.protocol", "Py4JNetworkError")):
        return _of_jvm()
    elif isinstance(error, _class("py4j.protocol", "Py4JError")):
        explain = _of_py4j
    else:
        return _of_connection(error)
    found = _known.get(error)
    if found is None:
        found = explain(error)
        if found is not None:
            _known[error] = found
    return found


def is_of_lost_jvm(error: BaseException) -> bool:
    """Whether *error* came because the JVM is not there any more."""
    found = cause(error)
    return found is not None and found.error_type in (JVM_GONE, OUT_OF_MEMORY)


def _class(module: str, name: str) -> Any:
    """What `isinstance` takes, none while it is not imported."""
    return getattr(sys.modules.get(module), name, ())


# --- by the kind of exception -----------------------------------------------------------------


def _of_pyspark(error: BaseException) -> Cause | None:
    known = vars(error)  # its methods ask the JVM, also the one that makes its text
    text = next(
        (
            known[name]
            for name in ("_desc", "desc", "_message", "message")  # the second ones in 3.5
            if isinstance(known.get(name), str)
        ),
        "",
    )
    found = of_text(text)
    condition = known.get("_errorClass") or known.get("error_class")
    if found is None and isinstance(condition, str):
        return Cause(condition)
    return found


def _of_java(error: Any) -> Cause | None:
    try:
        text = str(error)
    except Exception:  # it asks the JVM
        return _of_jvm()
    return of_text(text)


def _of_py4j(error: BaseException) -> Cause | None:
    """Of a call that does not fit, or got no answer: that has no trace of Java's."""
    text = str(error)
    _, _, trace = text.partition(" Trace:\n")
    if trace:
        return of_text(trace)
    return _of_jvm() if text.startswith("An error occurred while calling ") else None


def _of_connection(error: BaseException) -> Cause | None:
    """Of what the sockets to the JVM raise, and of what hides an exception of Spark's: PySpark
    resets the call site when an action fails, and fails at it where the context has been stopped.
    """
    if not isinstance(error, ConnectionError | EOFError | AttributeError):
        return None
    tb = error.__traceback__
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    module = str(tb.tb_frame.f_globals.get("__name__")) if tb is not None else ""
    if isinstance(error, AttributeError):
        hidden = error.__context__
        return cause(hidden) if module == "pyspark.traceback_utils" and hidden else None
    if not module.startswith(("py4j.", "pyspark.")):
        return None
    found = _of_jvm()
    # A socket's end may also be that of a job that has failed.
    return found if found.message is not None or not isinstance(error, EOFError) else None


def _of_jvm() -> Cause:
    """Of a JVM that is gone: how it ended, where it is a child of this process."""
    status = _status()
    if status is None:
        return Cause(JVM_GONE)
    if status < 0:
        name = signal.Signals(-status).name
        return Cause(JVM_GONE, message=f"the driver's JVM was killed by {name}")
    if status == _OUT_OF_MEMORY_STATUS:
        return Cause(OUT_OF_MEMORY, message="the driver's JVM ended, for it was out of memory")
    return Cause(JVM_GONE, message=f"the driver's JVM exited with status {status}")


def _status() -> int | None:
    """As of `subprocess`; whoever waits for that child can still do so."""
    context = _class("pyspark", "SparkContext")
    process = getattr(getattr(context, "_gateway", None), "proc", None)
    if process is None:
        return None
    global _waited_for
    patience = _PATIENCE if _waited_for != process.pid else 0
    until = time.monotonic() + patience
    while process.returncode is None:
        try:
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError:  # no child of this process, or no longer
            return None
        if ended is not None:
            killed = ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED)
            return -ended.si_status if killed else ended.si_status
        if time.monotonic() >= until:
            _waited_for = process.pid
            return None
        time.sleep(0.002)
    status: int = process.returncode
    return status


# --- by text ----------------------------------------------------------------------------------

_WRAPPERS: Final = {
    "java.lang.reflect.InvocationTargetException",
    "java.util.concurrent.ExecutionException",
    "org.apache.spark.SparkException",
    "FOREACH_BATCH_USER_FUNCTION_ERROR",
    "STREAM_FAILED",
    "TASK_WRITE_FAILED",
}
"""Classes and conditions that say what was done, and not what happened."""
_CONDITION: Final = re.compile(r"\s*(?:\([\w.$]+\) )?\[([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)\] ?")
_CAUSED_BY: Final = re.compile(r"\nCaused by: ")
_CALLED: Final = re.compile(r"An error occurred while calling .*\.\n: ")
_THROWABLE: Final = re.compile(r"((?:[a-z]\w*\.)+[A-Z][\w$]*)(?:: |$)")
_INSIDE: Final = re.compile(
    r"most recent failure: Lost task \S+ in stage \S+ \(TID \d+\)(?: \([^)]*\))?: "
    r"|terminated with exception: "
)
_REASON: Final = re.compile(r"([A-Z]\w*)(?: \(|$)")
_STOPPED: Final = re.compile(r"(?:Job \d+|Stage) cancelled because SparkContext was shut down")
_CANCELLED: Final = re.compile(r"Job \d+ cancelled ")
_CANCELLATIONS: Final = {"OPERATION_CANCELED", "SPARK_JOB_CANCELLED"}
_GRPC: Final = re.compile(
    r"<_\w+ of RPC that terminated with:\s+status = StatusCode\.(\w+)\s+details = \"(.*)\""
)
_NO_MEMORY: Final = re.compile(r"Java heap space|GC overhead limit exceeded")
_SQLSTATE: Final = re.compile(r" SQLSTATE: \w{5}.*")
_OF_STATEMENT: Final = re.compile(r" SQLSTATE: 42\w{3}")
"""Syntax and names. What other conditions say may hold cell values, and not in quotes."""
_SAYS_VALUES: Final = {"java.lang.RuntimeException"}
"""By `raise_error` of Spark 3.5, with what the query has made of its rows."""


def of_text(text: str) -> Cause | None:
    """Of an exception of Java's, as it is printed, or as a message says it: the user's exception of
    a Python worker, a cancellation, a condition, else the class that says most."""
    found = _of_worker(text)
    if found is not None:
        return found
    rpc = _GRPC.match(text)
    if rpc is not None:
        out = _NO_MEMORY.fullmatch(rpc[2])
        return Cause(OUT_OF_MEMORY if out else rpc[1], message=rpc[2])
    names: list[tuple[str, str]] = []
    for name, message in _chain(text):
        condition = _CONDITION.match(message)
        told = message[condition.end() :] if condition is not None else message
        if _STOPPED.match(told):
            return Cause(STOPPED, message=_line(told))
        if _CANCELLED.match(told) or (condition and condition[1] in _CANCELLATIONS):
            return Cause(CANCELLED, Outcome.CANCELLATION, message=_line(told))
        if message.startswith("Python worker exited unexpectedly"):
            return Cause(WORKER_DIED, message=_line(message))
        if condition is not None and condition[1] not in _WRAPPERS:
            return Cause(condition[1], message=_line(told) if _OF_STATEMENT.search(told) else None)
        name = condition[1] if condition is not None else name
        if name:
            names.append((name, told))
    if not names:
        return None
    name, message = next((it for it in names if it[0] not in _WRAPPERS), names[0])
    return Cause(name, message=_line(message) if name not in _SAYS_VALUES else None)


def _chain(text: str) -> Iterator[tuple[str, str]]:
    """Class, as far as it is told, and message of an exception, of what its message tells of the
    task that failed, and of its causes."""
    for part in _CAUSED_BY.split(_CALLED.sub("", text, count=1)):
        head = part.partition("\n\tat ")[0]
        thrown = _THROWABLE.match(head)
        while head:
            name, message = (thrown[1], head[thrown.end() :]) if thrown else ("", head)
            yield name, message
            inside = _INSIDE.search(message)
            head = message[inside.end() :] if inside is not None else ""
            thrown = _THROWABLE.match(head) or _REASON.match(head)


def _line(text: str) -> str:
    """The first one, without what every one of Spark's ends with."""
    lines = text.strip().splitlines()
    return _SQLSTATE.sub("", lines[0]) if lines else ""


# --- tracebacks of Python workers -------------------------------------------------------------

_HEADER: Final = re.compile(r"(?:  \+ Exception Group )?Traceback \(most recent call last\):$")
_INTRODUCED: Final = re.compile(
    r"(?:: |\.\n)(?=(?:  \+ Exception Group )?Traceback \(most recent call last\):\n)"
)
_WITHOUT_TRACEBACK: Final = re.compile(
    r"An exception was thrown from the Python worker"
    r"(?:: |\. Please see the stack trace below\.\n(?:\[\w+\] .* the Python worker: )?)"
)
_FRAME: Final = re.compile(r'  File "([^"]*)", line (\d+)(?:, in (.*))?$')
_ERROR: Final = re.compile(r"((?:<\w+>\.)?[^\W\d][\w.<>]*)(?:: ?(.*))?$")
_CHAINED: Final = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_OF_A_LIBRARY: Final = re.compile(
    r"/(?:lib(?:64)?/python3\.\d+|pyspark\.zip|python/pyspark)/|/py4j-[^/]*\.zip/|/<"
)
"""On the worker's machine Python may lie elsewhere."""


def _of_worker(text: str) -> Cause | None:
    """The last exception of the traceback that stands in *text*: one that a message of the user's
    quotes is none."""
    start = _INTRODUCED.search(text)
    if start is None:
        start = _WITHOUT_TRACEBACK.search(text)
        return _raised(text[start.end() :].partition("\n")[0]) if start is not None else None
    lines = iter(text[start.end() :].split("\n"))
    found = place = None
    for line in lines:
        if not _HEADER.match(line):
            break
        raised = ""
        margin = "  | " if line.startswith("  +") else ""
        for line in lines:
            body = line.removeprefix(margin)
            frame = _FRAME.match(body)
            if frame is not None:
                if failures.is_users_file(frame[1]) and not _OF_A_LIBRARY.search(frame[1]):
                    place = f"{frame[1]}:{frame[2]}" + (f" in {frame[3]}" if frame[3] else "")
            elif not body.startswith("  "):
                raised = body
                break
        found = _raised(raised) or found
        if not _is_followed_by_another(lines):
            break
    return structs.replace(found, place=place) if found is not None else None


def _is_followed_by_another(lines: Iterator[str]) -> bool:
    """Goes on to the header of the next traceback of the chain, past what is left of a message."""
    for line in lines:
        if line in _CHAINED:
            return next(lines, "") == ""
        if _HEADER.match(line) or line.startswith("\tat "):
            return False
    return False


def _raised(line: str) -> Cause | None:
    """Of the line of a traceback that names the exception."""
    found = _ERROR.match(line)
    if found is None:
        return None
    name, message = found[1].removeprefix("__main__."), found[2] or ""
    condition = _CONDITION.match(message) if name.startswith("pyspark.") else None
    if condition is not None:  # raised by PySpark about what the user's function returned
        return Cause(condition[1])
    return Cause(name, message=message)
