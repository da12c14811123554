"""Which advice there is of a run's actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from stagewatch import semconv
from stagewatch.instrumentation.pyspark import rules_of_plans, rules_of_stages
from stagewatch.instrumentation.pyspark.advice import Advice, Finished, Kind
from stagewatch.records import Noted

_RULES: Final[tuple[Callable[[Finished], Advice | None], ...]] = (
    rules_of_stages.skew,
    rules_of_stages.spill,
    rules_of_stages.tiny_tasks,
    rules_of_stages.few_partitions,
    rules_of_plans.small_files_read,
    rules_of_plans.small_files_written,
    rules_of_plans.full_scan,
    rules_of_plans.missing_broadcast,
    rules_of_plans.huge_broadcast,
    rules_of_plans.python,
    rules_of_stages.garbage_collection,
)


def of_action(action: Finished) -> list[Advice]:
    """All that can be said of one action by itself."""
    found = [advice for rule in _RULES if (advice := rule(action)) is not None]
    explained = {Kind.SKEW, Kind.FEW_PARTITIONS} & {advice.kind for advice in found}
    if not explained and (advice := rules_of_stages.idle_cores(action)) is not None:
        found.append(advice)
    return found


class Advisor:
    """Advice of a whole run: each piece once. For one thread."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._scans = rules_of_plans.Scans()

    def advise(self, action: Finished) -> list[Advice]:
        """What is new with this *action*; once per action, in the order in which they ended."""
        found = of_action(action)
        if (advice := self._scans.again(action)) is not None:
            found.append(advice)
        new = [advice for advice in found if advice.key not in self._given]
        self._given.update(advice.key for advice in new)
        return new


def noted(advice: Advice, run_id: str, at: int) -> Noted:
    """*advice* as it goes into the journal; *at*: nanoseconds since the epoch."""
    return Noted(
        run_id,
        semconv.ADVICE,
        advice.key,
        f"{advice.evidence}: {advice.remedy}",
        {
            semconv.ADVICE_KIND: str(advice.kind),
            semconv.ADVICE_EVIDENCE: advice.evidence,
            semconv.ADVICE_REMEDY: advice.remedy,
        },
        at,
    )
