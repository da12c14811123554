"""Which details of a run are sent: decided once its outcome is known.

A run that failed or was late sends all of them. Another sends those that failed, the slow ones,
and a sample. Whatever a span that is sent hangs under is sent with it; a cap per trace cuts the
rest, which is counted and stays in the history.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from msgspec import Struct

from stagewatch.database import HELD, KEPT, PENDING
from stagewatch.measures import SECOND, is_sampled, sampling_threshold, threshold_value
from stagewatch.records import TraceSettled

SLOW_SHARE: Final = 0.01
"""A detail is slow if it took this share of its run: so at most a hundred of them are, one after
the other, however fast or slow the run is."""


class Settings(Struct, frozen=True):
    """``STAGEWATCH_DETAIL_RATIO`` and ``STAGEWATCH_DETAIL_CAP``."""

    ratio: float = 0.05
    cap: int = 10_000


_CHOOSE: Final = """
insert into chosen
with recursive found(span_id, trace_id, parent, n, rank) as (
    select span_id, trace_id, parent, n, case when failed then 0 else 1 end from span
    where run = :run and state in ({states}) and role = 3
    and (:all or failed or seconds >= :slow or is_sampled(span_id, :limit))
    union
    select span_id, trace_id, parent, 0, 2 from span
    where run = :run and role in (1, 2) and state <= 1 and length(parent) > 0
    union
    select above.span_id, above.trace_id, above.parent, above.n, found.rank
    from found join span above
    on above.run = :run and above.span_id = found.parent and above.trace_id = found.trace_id
    where above.role = 3 and above.state in ({held}, {kept})
)
select n, min(rank) from found where n > 0 group by n
"""


def settle(link: sqlite3.Connection, run: int, trace: TraceSettled) -> None:
    """Send the details of one trace of the run with the row id *run* that are held, or forget them,
    before the run is over."""
    spans = [(run, span_id) for span_id in trace.span_ids]
    if trace.threshold:
        link.executemany(
            "update span set threshold = ? where run = ? and span_id = ?",
            [(trace.threshold, *span) for span in spans],
        )
    if trace.keep:
        statement = (
            f"update span set state = {PENDING} where run = ? and span_id = ? and state = {HELD}"
        )
    else:  # also where nothing is sent
        statement = "delete from span where run = ? and span_id = ? and role = 3"
    link.executemany(statement, spans)


def decide(
    link: sqlite3.Connection, run: int, settings: Settings, *, everything: bool, seconds: float
) -> int:
    """Settle all details of the run with the row id *run* that are still held.

    *everything*: it failed or was late; else *seconds* is its duration. May be called again for
    details that come later. Returns how many were cut by the cap this time.
    """
    has_any, sent, cut = link.execute(
        "select has_details, details_sent, details_cut from run where id = ?", [run]
    ).fetchone()
    if not has_any:
        return 0
    limit = sampling_threshold(settings.ratio)
    link.create_function("is_sampled", 2, is_sampled, deterministic=True)
    link.execute("create temp table if not exists chosen(n integer primary key, rank int)")
    link.execute("delete from chosen")
    # One that was kept when a child process ended may still be wanted when its run fails.
    states = f"{HELD}, {KEPT}" if everything and not cut else f"{HELD}"
    values = {
        "run": run,
        "all": everything,
        "slow": max(seconds, 1 / SECOND) * SLOW_SHARE,
        "limit": limit,
    }
    link.execute(_CHOOSE.format(states=states, held=HELD, kept=KEPT), values)
    room = max(settings.cap - sent, 0)
    (wanted,) = link.execute("select count(*) from chosen").fetchone()
    if wanted > room:
        # Failures first; then by the start, so that what hangs under a span comes after it.
        link.execute(
            "delete from chosen where n not in (select chosen.n from chosen "
            "join span on span.n = chosen.n order by rank = 0 desc, start, seconds desc limit ?)",
            [room],
        )
    if not everything and settings.ratio < 1:
        # Only those that the sample alone has chosen stand for others.
        link.execute(
            "update span set threshold = :mark where n in (select n from chosen where rank = 1) "
            "and not failed and seconds < :slow and is_sampled(span_id, :limit)",
            {**values, "mark": threshold_value(settings.ratio)},
        )
    link.execute(
        f"update span set state = {PENDING} where n in (select n from chosen)",
    )
    link.execute(f"update span set state = {KEPT} where run = ? and state = {HELD}", [run])
    cut = max(wanted - room, 0)
    link.execute(
        "update run set details_sent = details_sent + ?, details_cut = details_cut + ? "
        "where id = ?",
        [wanted - cut, cut, run],
    )
    return int(cut)
