"""How figures and words are put for people: durations, counts, bars, columns.

Pure functions. Times are nanoseconds since the epoch, durations seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from stagewatch import measures
from stagewatch.model import Outcome, Run

SECOND: Final = 1_000_000_000
ACTIVE: Final = "active"
DEAD: Final = "dead"
STYLES: Final[Mapping[str, str]] = {
    Outcome.SUCCESS: "green",
    Outcome.FAILURE: "red",
    Outcome.ERROR: "bold red",
    Outcome.TIMEOUT: "magenta",
    Outcome.CANCELLATION: "yellow",
    Outcome.SKIP: "dim",
    ACTIVE: "cyan",
    DEAD: "bold red",
}
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"
NOTHING: Final = "–"


class Cell(NamedTuple):
    """What stands in one column of a line."""

    text: str
    width: int
    """Of the column; longer text is cut."""
    style: Style | None = None
    is_right: bool = False


duration: Final = measures.duration_text
size: Final = measures.size_text


def count(number: float | None) -> str:
    """At most five characters up to a quadrillion: ``9,999``, ``337k``, ``1.25M``."""
    if number is None:
        return NOTHING
    if abs(number) < 9_999.5:
        whole = round(number)
        return f"{number:.1f}" if abs(number) < 9.95 and number != whole else f"{whole:,}"
    for unit in "kMGT":
        number /= 1000
        if abs(number) < 999.5 or unit == "T":
            break
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}{unit}"


def exact(number: int | None) -> str:
    """With thousands separators, a dash for an unknown one."""
    return NOTHING if number is None else f"{number:,}"


def lateness(seconds: float) -> str:
    """Of a lateness minutes matter, not tenths of a second: ``+600 ms``, ``+59m``, ``+2h14m``."""
    if 1 <= seconds < 59.5:
        return f"+{seconds:.0f} s"
    if 59.5 <= seconds < 3570:
        return f"+{round(seconds / 60)}m"
    whole_hour = 3600 if seconds >= 3570 else 0
    return "+" + duration(max(seconds, whole_hour))


def items(amounts: Mapping[str, int]) -> str:
    """So many of each, by the plural of its name: ``1 log, 3 traces``."""
    words = []
    for name, number in sorted(amounts.items()):
        one = name.removesuffix("s") if number == 1 else name
        words.append(f"{number:,} {one}")
    return ", ".join(words)


def percent(ratio: float) -> str:
    """``0 %``, ``<0.1 %``, ``2.5 %``, ``100 %``; a ratio that is not 1 never reads as 100 %."""
    if 0 < ratio < 0.001:
        return "<0.1 %"
    if 0.999 <= ratio < 1:
        return ">99.9 %"
    return f"{ratio * 100:.1f}".removesuffix(".0") + " %"


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 … 1) of `width` columns, padded; any share above 0 leaves a mark."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    if share > 0:
        eighths = max(eighths, 1)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def plain(text: str) -> str:
    """Text of others on one line, without what would move the terminal's cursor."""
    return "".join(
        c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def at(time: int) -> datetime:
    """A time of the history, in UTC."""
    return datetime.fromtimestamp(time / SECOND, UTC)


def clock(time: int, now: int) -> str:
    """Local time of day, with the date unless it is today's: ``02:45:00``, ``11-20 23:59:58``."""
    local = at(time).astimezone()
    is_today = local.date() == at(now).astimezone().date()
    return f"{local:{'%H:%M:%S' if is_today else '%m-%d %H:%M:%S'}}"


def iso(time: int | None) -> str | None:
    """ISO 8601, UTC, with milliseconds: ``2026-11-21T16:38:04.250Z``."""
    if time is None:
        return None
    return at(time).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def outcome_word(run: Run) -> str:
    return run.outcome.value if run.outcome else ACTIVE


def outcome_text(run: Run) -> Text:
    word = outcome_word(run)
    return Text(word, STYLES[word])


def seconds_of(run: Run, now: int) -> float:
    """Duration; of an active run so far."""
    return max(0, (run.end if run.end is not None else now) - run.start) / SECOND


def lateness_of(run: Run, now: int) -> float:
    """Seconds past the deadline; 0 on time and without one."""
    return measures.lateness(run.deadline, run.end if run.end is not None else now)


def error_ratio_of(run: Run) -> float:
    failed = run.outcome in (Outcome.FAILURE, Outcome.ERROR)
    return measures.error_ratio(run.records_out, run.records_rejected, failed=failed)


def throughput_of(run: Run, now: int) -> float | None:
    return measures.throughput(run.records_in, run.records_out, seconds_of(run, now))


def aligned(cells: Sequence[Cell]) -> Iterator[Segment]:
    """One line of columns, a space between them: rich's Table takes a millisecond for each row."""
    for i, (text, width, style, is_right) in enumerate(cells):
        if i:
            yield Segment(" ")
        if (excess := cell_len(text) - width) > 0:
            text = set_cell_size(text, width - 1) + "…"
        space = " " * -min(excess, 0)
        yield Segment(space + text if is_right else text + space, style)
    yield Segment.line()
