"""Advice that was given of a run, as people and programs read it.

Pure functions over notices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from stagewatch.columns import Parts
from stagewatch.figures import iso, plain
from stagewatch.model import Notice
from stagewatch.semconv import ADVICE, ADVICE_EVIDENCE, ADVICE_KIND, ADVICE_REMEDY

_MOST: Final = 12


def is_advice(notice: Notice) -> bool:
    return notice.name == ADVICE


def advice_list(advice: Sequence[Notice], *, everything: bool) -> RenderableType:
    """Kind and evidence of each in the order in which they were given, the remedy beneath."""
    shown = advice if everything else advice[:_MOST]
    lines: list[RenderableType] = [Text("advice", "bold")]
    for notice in shown:
        kind, evidence, remedy = _parts(notice)
        lines.append(Parts(Text(evidence), Text(f"{kind}  ", "yellow")))
        lines.append(Parts(Text(remedy), Text("  → ", "dim")))
    if len(shown) < len(advice):
        lines.append(Text(f"… {len(advice) - len(shown):,} more", "dim"))
    return Group(*lines)


def advice_json(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    """``at``, ``kind``, ``evidence`` and ``remedy`` of each piece of advice among *notices*."""
    return [
        {
            "at": iso(notice.at),
            "kind": notice.attributes.get(ADVICE_KIND),
            "evidence": notice.attributes.get(ADVICE_EVIDENCE),
            "remedy": notice.attributes.get(ADVICE_REMEDY),
        }
        for notice in notices
        if is_advice(notice)
    ]


def _parts(notice: Notice) -> tuple[str, str, str]:
    said = notice.attributes
    kind, evidence, remedy = (
        plain(str(said.get(name) or "")) for name in (ADVICE_KIND, ADVICE_EVIDENCE, ADVICE_REMEDY)
    )
    return kind or "advice", evidence, remedy
