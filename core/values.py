"""The kinds of values users write into ``stagewatch.yaml`` and ``STAGEWATCH_*``.

A parser takes the text as written and raises ValueError with what is wrong with it: one line that
ends with examples of what is right. Patterns are compiled at their first use, which most jobs
never reach.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from msgspec import Struct

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_UNITS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}
_SHORT = "".join(rf"(?:({_NUMBER}) ?{unit} ?)?" for unit in _UNITS)
_ISO = (
    rf"P(?:({_NUMBER})W)?(?:({_NUMBER})D)?"
    rf"(?:T(?=[0-9])(?:({_NUMBER})H)?(?:({_NUMBER})M)?(?:({_NUMBER})S)?)?"
)
_DURATION = rf"(?=.*[0-9])(?:{_SHORT}|{_ISO})"
_SIZES = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES |= {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = rf"({_NUMBER}) ?({'|'.join(_SIZES)})?"
_NAME = r"[^\W0-9]\w*"
_FUNCTION = rf"(?:{_NAME}(?:\.{_NAME})*:)?{_NAME}(?:\.{_NAME})*"
_TIME = r"([0-9]+)(?:\.([0-9]{1,9}))?"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


def shown(text: str) -> str:
    """The text as it stands in a message: quoted, on one line, not endless."""
    quoted = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return f'"{quoted if len(quoted) <= 80 else quoted[:79] + "…"}"'


def nearest(name: str, known: list[str]) -> str | None:
    """The known name that was probably meant."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, 1)), None)


def duration(text: str) -> float:
    """Seconds."""
    if re.fullmatch(_NUMBER, text):
        return float(text)
    found = re.fullmatch(_DURATION, text)
    if not found:
        raise ValueError(f"{shown(text)} is not a duration (45m, 1h30m, PT45M)")
    factors = (*_UNITS.values(), *list(_UNITS.values())[:5])
    # In milliseconds, so that 0.3 s stay the float 0.3.
    parts = (float(n) * (f * 1000) for n, f in zip(found.groups(), factors, strict=True) if n)
    return sum(parts) / 1000


def duration_text(seconds: float) -> str:
    """The shortest way to write a duration: ``1h30m``; the inverse of `duration` to the ms."""
    rest = round(seconds * 1000)
    text = ""
    for unit, factor in _UNITS.items():
        if unit != "w":
            number, rest = divmod(rest, round(factor * 1000))
            text += f"{number}{unit}" if number else ""
    return text or "0s"


def size(text: str) -> int:
    """Bytes."""
    found = re.fullmatch(_SIZE, text)
    if not found:
        raise ValueError(f"{shown(text)} is not a size (1048576, 256MB, 256 MiB)")
    unit = _SIZES[found[2] or "B"]
    return round(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def size_text(number: int) -> str:
    """The shortest exact way to write a size: ``256MiB``."""
    for unit in ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if number and number % _SIZES[unit] == 0:
            return f"{number // _SIZES[unit]}{unit}"
    return f"{number}B"


def _number(text: str) -> float:
    if not re.fullmatch(_NUMBER, text):
        raise ValueError(f"{shown(text)} is not a number (0, 1.5, 1000)")
    return float(text)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]+", text):
        raise ValueError(f"{shown(text)} is not a whole number (0, 1, 1000)")
    return int(text)


def _attempt(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]*", text):
        raise ValueError(f"{shown(text)} is not an attempt (1, 2, …)")
    return int(text)


def _ratio(text: str) -> float:
    if not re.fullmatch(_NUMBER, text) or float(text) > 1:
        raise ValueError(f"{shown(text)} is not a ratio (0 … 1)")
    return float(text)


def _switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"{shown(text)} is not a switch (0 or 1)")
    return text.lower() in _TRUE


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError(f"{shown(text)} is empty")
    return text


def _path(text: str) -> Any:
    from pathlib import Path

    if "\0" in text or not text.strip():
        raise ValueError(f"{shown(text)} is not a path")
    return Path(text)


def _pattern(text: str) -> str:
    if not text.strip() or text.strip("./") == "":
        raise ValueError(f"{shown(text)} is not a name or glob (etl.py, jobs/etl_*.py)")
    return text


def _function(text: str) -> str:
    if not re.fullmatch(_FUNCTION, text):
        raise ValueError(
            f"{shown(text)} is not a function (transform, Loader.load, package.module:Class.method)"
        )
    return text


def _cron(text: str) -> str:
    from datetime import datetime

    from cronsim import CronSim, CronSimError

    try:
        if len(text.split()) != 5:
            raise CronSimError("Wrong number of fields")
        next(CronSim(text, datetime(2000, 1, 1)))
    except CronSimError as error:
        raise ValueError(f'{shown(text)} is not a cron line ("30 6 * * 1-5"): {error}') from None
    except StopIteration:
        raise ValueError(f"{shown(text)} is a cron line that is never due") from None
    return text


def _zone(text: str) -> str:
    from stagewatch.measures import zone_info

    try:
        zone_info(text)
    except (KeyError, ValueError, OSError):
        from zoneinfo import available_timezones

        meant = nearest(text, sorted(available_timezones()))
        hint = f"did you mean {meant}?" if meant else "Europe/Berlin, UTC"
        raise ValueError(f"{shown(text)} is not a time zone ({hint})") from None
    return text


def _time(text: str) -> int:
    """Nanoseconds since the epoch; a time without offset is UTC."""
    from datetime import UTC, datetime, timedelta

    if found := re.fullmatch(_TIME, text):
        return int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0"))
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        expected = "2026-03-01T06:00:00Z, 1772344800"
        raise ValueError(f"{shown(text)} is not a time ({expected})") from None
    if since < timedelta():
        raise ValueError(f"{shown(text)} is a time before 1970")
    return since // timedelta(microseconds=1) * 1000


def _time_text(nanoseconds: int) -> str:
    from datetime import UTC, datetime, timedelta

    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=nanoseconds // 1000)
    return moment.isoformat().replace("+00:00", "Z")


class Kind(Struct, frozen=True):
    """How a kind of value is read, described to an editor and written."""

    parse: Callable[[str], Any]
    schema: dict[str, Any]
    write: Callable[[Any], str] = str


def _matching(pattern: str) -> dict[str, Any]:
    return {"type": ["string", "number"], "pattern": f"^(?:{pattern})$", "minimum": 0}


def _plain(value: float) -> str:
    return f"{value:g}"


KINDS: dict[str, Kind] = {
    "attempt": Kind(_attempt, {"type": "integer", "minimum": 1}),
    "count": Kind(_count, {"type": "integer", "minimum": 0}),
    "cron": Kind(_cron, {"type": "string", "pattern": r"^\s*(\S+\s+){4}\S+\s*$"}),
    "duration": Kind(duration, _matching(f"{_NUMBER}|{_DURATION}"), duration_text),
    "function": Kind(_function, {"type": "string", "pattern": f"^{_FUNCTION}$"}),
    "number": Kind(_number, {"type": "number", "minimum": 0}, _plain),
    "path": Kind(_path, {"type": "string", "minLength": 1}),
    "pattern": Kind(_pattern, {"type": "string", "minLength": 1}),
    "ratio": Kind(_ratio, {"type": "number", "minimum": 0, "maximum": 1}, _plain),
    "size": Kind(size, _matching(_SIZE), size_text),
    "switch": Kind(_switch, {"enum": [True, False, 0, 1]}, lambda on: "1" if on else "0"),
    "text": Kind(_text, {"type": ["string", "number", "boolean"], "minLength": 1}),
    "time": Kind(_time, {"type": "string"}, _time_text),
    "zone": Kind(_zone, {"type": "string", "minLength": 1}),
}
"""By the name that `msgspec.Meta(extra={"kind": …})` gives in a type."""
