"""The listener's classes: compiled in the driver's JVM by the janino that ships with Spark, so no
jar has to be on the class path, and kept in the state directory, for the compiler takes a second of
CPU beside a session that is starting.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final

import msgspec

_CLASS: Final = "stagewatch.Listener"

Classes = dict[str, bytes]
"""Byte code by class name."""


def constructor(gateway: Any, state: Path | None) -> Any:
    """The constructor of the listener's class, made from what is kept in *state* if that is there.

    Raises Py4JError where janino or py4j is restricted, or the source does not fit this Spark.
    """
    jvm = gateway.jvm
    source = resources.files(__package__).joinpath("listener.java").read_text()
    file = _place(jvm, source, state)
    classes = _kept(file) if file is not None else None
    if classes is not None:
        with suppress(Exception):  # no byte code: made anew
            return _loaded(jvm, classes)
    classes = _compiled(jvm, source)
    if file is not None:
        _keep(file, classes)
    return _loaded(jvm, classes)


def _place(jvm: Any, source: str, state: Path | None) -> Path | None:
    """Where it is kept; None where that cannot be told: it is compiled every time then."""
    if state is not None:
        with suppress(Exception):  # py4j may be restricted to what compiling needs
            return state / f"listener-{_key(jvm, source)}"
    return None


def _key(jvm: Any, source: str) -> str:
    """What the byte code depends on, but for `janino`, which comes with its Spark."""
    spark = jvm.org.apache.spark.package
    facts = (
        source,
        spark.SPARK_VERSION(),
        spark.SPARK_REVISION(),
        jvm.java.lang.System.getProperty("java.class.version"),
    )
    return hashlib.sha256("\0".join(map(str, facts)).encode()).hexdigest()[:32]


def _compiled(jvm: Any, source: str) -> Classes:
    compiler = jvm.org.codehaus.janino.SimpleCompiler()
    compiler.setParentClassLoader(_parent(jvm))
    compiler.cook(source)
    made = compiler.getBytecodes()
    return {name: bytes(made[name]) for name in made}


def _loaded(jvm: Any, classes: Classes) -> Any:
    given = jvm.java.util.HashMap()
    for name, code in classes.items():
        given.put(name, code)
    reflect = jvm.org.codehaus.commons.compiler.util.reflect  # a part of janino
    loader = reflect.ByteArrayClassLoader(given, _parent(jvm))
    return loader.loadClass(_CLASS).getConstructors()[0]


def _parent(jvm: Any) -> Any:
    return jvm.org.apache.spark.util.Utils.getContextOrSparkClassLoader()


def _kept(file: Path) -> Classes | None:
    """Only what nobody but this user can have written: it is going to run as him."""
    try:
        for path in (file.parent, file):
            found = path.stat()
            if found.st_uid != os.getuid() or found.st_mode & 0o022:
                return None
        digest, body = msgspec.msgpack.decode(file.read_bytes(), type=tuple[bytes, bytes])
        if digest != hashlib.sha256(body).digest():
            return None
        return msgspec.msgpack.decode(body, type=Classes)
    except (OSError, msgspec.MsgspecError):
        return None


def _keep(file: Path, classes: Classes) -> None:
    body = msgspec.msgpack.encode(classes)
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(handle, "wb") as out:
                out.write(msgspec.msgpack.encode((hashlib.sha256(body).digest(), body)))
            os.replace(temporary, file)
        except OSError:  # a full disk
            temporary.unlink(missing_ok=True)
