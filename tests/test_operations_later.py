"""Operations whose figures come after the call has returned, and the stages that wait for them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from stagewatch import failures, operations, recording, semconv, stages, tracing
from stagewatch.config import Settings
from stagewatch.exporters.journal import JournalWriter, new_key
from stagewatch.history import SpanRow
from stagewatch.model import Dataset, Outcome, Pipeline
from stagewatch.operations import Later, OperationKind
from stagewatch.records import (
    DatasetTouched,
    OperationEnded,
    SpanLeft,
    SpanStarted,
    StageEnded,
    TallyDefined,
)
from tests.jobs import Jobs
from tests.recorded import START, Clock, Recorded

COLLECT = OperationKind("pyspark.collect", io=True, open=True)
COUNT = OperationKind("pyspark.count", io=True, open=True)
SECOND = 10**9


def act(clock: Clock, error: BaseException | None = None) -> Later:
    """An action of one second that has returned."""
    call = operations.begin(COLLECT)
    assert call is not None
    clock.advance(1)
    later = operations.end_later(call, error)
    assert later is not None
    return later


def test_its_end_is_in_the_journal_when_the_call_returns(recorded: Recorded, clock: Clock) -> None:
    """With all that is needed to close it in its stead: beginning, end, what it counts for."""
    with stages.stage("load"):
        later = act(clock)
        (begun,) = recorded.of(SpanStarted)
        (left,) = recorded.of(SpanLeft)
        assert (begun.name, begun.start) == ("pyspark.collect", START)
        assert begun.attributes["pipeline.stage.name"] == "load"
        assert (left.span_id, left.end) == (begun.span_id, START + SECOND)
        assert (left.outcome, left.error_type) == ("success", None)
        assert left.ended == OperationEnded(
            "r" * 32, "load", "pyspark.collect", SECOND, 0, 0, None, left.span_id
        )
        assert recorded.of(OperationEnded) == recorded.spans() == []
        clock.advance(1)
        later.complete(rows_out=5, reads=7, bytes_in=70, attributes={"spark.tasks": 3})
    (ended,) = recorded.of(OperationEnded)
    assert ended == OperationEnded(
        "r" * 32, "load", "pyspark.collect", SECOND, 0, 5, None, left.span_id
    )
    span, _ = recorded.spans()
    assert (span.span_id, span.start, span.end) == (left.span_id, START, START + SECOND)
    assert span.attributes is not None
    assert (span.attributes[semconv.ROWS_OUT], span.attributes["spark.tasks"]) == (5, 3)
    (stage,) = recorded.of(StageEnded)
    assert (stage.records_in, stage.bytes_in) == (7, 70)


def test_a_stage_waits_for_what_it_has_done(recorded: Recorded, clock: Clock) -> None:
    """It ends when it was left, with the figures that came later; others go on meanwhile."""
    with stages.stage("load"):
        first, second = act(clock), act(clock)
    clock.advance(10)
    with stages.stage("next"):
        assert [span.name for span in recorded.spans()] == []
        first.complete(reads=3)
        assert recorded.of(StageEnded) == []
        second.complete(reads=4, writes=5)
        (ended,) = recorded.of(StageEnded)
    assert (ended.name, ended.records_in, ended.records_out) == ("load", 7, 5)
    assert (ended.start, ended.end) == (START, START + 2 * SECOND)
    assert recorded.tree() == [
        {"load": [{"pyspark.collect": []}, {"pyspark.collect": []}]},
        {"next": []},
    ]
    load = next(span for span in recorded.spans() if span.name == "load")
    assert load.end == ended.end
    assert (load.attributes or {})[semconv.STAGE_RECORDS_IN] == 7


def test_a_stage_that_waits_is_said_to_be_left(recorded: Recorded, clock: Clock) -> None:
    """As it would be counted now; the page has its counters, but shows it open no more."""
    with pytest.raises(KeyError), stages.stage("load") as opened:
        opened.records(out=2)
        later = act(clock)
        raise KeyError("x")
    stage = recorded.of(SpanLeft)[-1]
    assert (stage.outcome, stage.error_type, stage.end) == ("failure", "KeyError", START + SECOND)
    assert isinstance(stage.ended, StageEnded)
    assert (stage.ended.name, stage.ended.records_out) == ("load", 2)
    assert [thread.stages for thread in recorded.page().threads() if any(thread.stages)] == []
    later.complete(writes=3)
    (ended,) = recorded.of(StageEnded)
    assert (ended.outcome, ended.error_type, ended.records_out) == ("failure", "KeyError", 5)
    span = recorded.spans()[-1]
    assert (span.name, span.status, len(span.events or ())) == ("load", 2, 1)


def test_a_stage_that_waits_for_nothing_ends_at_once(recorded: Recorded, clock: Clock) -> None:
    """Figures that were there before its end hold nothing up, and nothing is said of it twice."""
    with stages.stage("load"):
        act(clock).complete(reads=1)
    assert [left.ended.name for left in recorded.of(SpanLeft)] == ["pyspark.collect"]
    assert len(recorded.of(StageEnded)) == 1


def test_failures_have_their_cause(
    recorded: Recorded, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an engine has wrapped, or the exception's own class."""
    monkeypatch.setattr(failures, "explanations", [])
    for cause in (failures.Cause("ValueError", Outcome.CANCELLATION, None, "a 'secret'"), None):
        failures.explanations[:] = [lambda _, cause=cause: cause]
        act(clock, RuntimeError("no 'secret' here")).complete()
    assert [(left.outcome, left.error_type) for left in recorded.of(SpanLeft)] == [
        ("cancellation", "ValueError"), ("failure", "RuntimeError"),
    ]  # fmt: skip
    assert [ended.error_type for ended in recorded.of(OperationEnded)] == [
        "ValueError", "RuntimeError",
    ]  # fmt: skip
    assert [(span.attributes or {})["error.type"] for span in recorded.spans()] == [
        "ValueError", "RuntimeError",
    ]  # fmt: skip
    assert "secret" not in str(recorded.records())


def test_a_cancelled_call_is_no_failure(recorded: Recorded, clock: Clock) -> None:
    """Ctrl-C in an action."""
    act(clock, KeyboardInterrupt())
    (left,) = recorded.of(SpanLeft)
    assert (left.outcome, left.error_type) == ("cancellation", "KeyboardInterrupt")


def test_datasets_are_touched_when_the_call_was(recorded: Recorded, clock: Clock) -> None:
    """Under the stage of the call, whoever completes it and wherever that one is."""
    written = Dataset(uri="file:///out", direction="out", rows=4)
    with stages.stage("load"):
        later = act(clock)
    without = act(clock)
    clock.advance(5)
    with stages.stage("other"):
        later.complete(writes=4, datasets=[written])
        without.complete(writes=4, datasets=[written])
    assert [(touched.stage, touched.at) for touched in recorded.of(DatasetTouched)] == [
        ("load", START + SECOND), ("", START + 2 * SECOND),
    ]  # fmt: skip
    assert recorded.page().run() is not None
    assert (recorded.page().run() or {})["records_out"] == 4


def test_nested_calls_are_not_held_up(recorded: Recorded, clock: Clock) -> None:
    """An action in an action counts once; after it the next one counts again."""
    call = operations.begin(COLLECT)
    assert call is not None
    assert operations.begin(COUNT) is None
    later = operations.end_later(call)
    assert later is not None
    assert trace.get_current_span().get_span_context() == recorded.run.span
    again = operations.begin(COUNT)
    assert again is not None
    operations.end(again)
    later.complete()
    assert [ended.name for ended in recorded.of(OperationEnded)] == [
        "pyspark.count", "pyspark.collect",
    ]  # fmt: skip
    assert operations.open_calls == {}


def test_nothing_came(recorded: Recorded, clock: Clock) -> None:
    """It folds, and its stage ends; what failed, or has children, is a span all the same."""
    with stages.stage("load"):
        plain = act(clock)
        failed = act(clock, ValueError())
        call = operations.begin(COLLECT)
        assert call is not None
        with recorded.provider.get_tracer("mine").start_as_current_span("own"):
            pass
        above = operations.end_later(call)
        assert above is not None
    for later in (plain, failed, above):
        later.fold()
    assert [(ended.folded, ended.nanoseconds) for ended in recorded.of(OperationEnded)] == [
        (True, SECOND), (False, SECOND), (False, 0),
    ]  # fmt: skip
    assert recorded.tree() == [
        {"load": [{"pyspark.collect": []}, {"pyspark.collect": [{"own": []}]}]}
    ]


def test_an_announced_call_is_begun_in_the_journal(recorded: Recorded, clock: Clock) -> None:
    """While it is under way, once."""
    call = operations.begin(COLLECT)
    assert call is not None
    assert recorded.of(SpanStarted) == []
    operations.announce(call)
    operations.announce(call)
    assert [begun.name for begun in recorded.of(SpanStarted)] == ["pyspark.collect"]
    later = operations.end_later(call)
    assert later is not None
    assert len(recorded.of(SpanStarted)) == 1
    later.complete()


def test_other_threads_complete_while_the_stage_ends(recorded: Recorded, clock: Clock) -> None:
    """Whichever is first: every row counts once, every stage ends once, none before its time."""
    rounds, actions = 30, 4
    for _ in range(rounds):
        barrier = threading.Barrier(actions + 1)

        def complete(later: Later, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            later.complete(reads=1, writes=2)

        with stages.stage("load"):
            threads = [
                threading.Thread(target=complete, args=(act(clock),)) for _ in range(actions)
            ]
            for thread in threads:
                thread.start()
            barrier.wait()
        for thread in threads:
            thread.join()
    found = [(ended.records_in, ended.records_out) for ended in recorded.of(StageEnded)]
    assert found == [(actions, 2 * actions)] * rounds
    assert len(recorded.of(OperationEnded)) == rounds * actions


def test_a_folded_stage_waits_for_nothing(recorded: Recorded, clock: Clock) -> None:
    """Its calls are counted when they end, what comes later is added; nothing is said of them."""
    for _ in range(tracing.FULL_SPANS):
        with stages.stage("page"):
            pass
    with stages.stage("page"):
        clock.advance(1)
        later = act(clock)
    tally = next(one for one in recorded.of(TallyDefined) if one.kind == "folded_stage")

    def counted() -> tuple[int, int]:
        cell = recorded.page().cell("folded_stage", tally.cell)
        assert cell is not None
        return cell["calls"], cell["records_in"]

    assert counted() == (1, 0)
    later.complete(reads=6)
    assert counted() == (1, 6)
    assert [left.ended.name for left in recorded.of(SpanLeft)] == ["pyspark.collect"]
    assert recorded.of(OperationEnded)[-1].stage == "page"


def test_what_is_not_sampled_is_counted(tmp_path: Path, clock: Clock) -> None:
    """No span, no beginning; but its end, as of any operation."""
    found = Recorded(tmp_path, clock, Pipeline(name="test"), sampler=ALWAYS_OFF)
    try:
        with stages.stage("load"):
            later = act(clock)
        later.complete(reads=2)
        assert found.spans() == found.of(SpanStarted) == []
        assert [ended.records_in for ended in found.of(StageEnded)] == [2]
        assert [left.span_id for left in found.of(SpanLeft)] == [
            found.of(OperationEnded)[0].span_id, found.of(StageEnded)[0].span_id,
        ]  # fmt: skip
    finally:
        found.close()


def test_a_child_completes_nothing_of_its_parents(recorded: Recorded, clock: Clock) -> None:
    """In a forked child, which has a recording of its own, call and stage are the parent's; their
    lock may be held for ever."""
    with stages.stage("load"):
        later = act(clock)
        parents, before = recording.active, recorded.records()
        assert parents is not None
        holder = threading.Thread(target=parents.lock.acquire)
        holder.start()
        holder.join()
        own = JournalWriter(recorded.directory, new_key(), max_bytes=1 << 28)
        recording.start(own, recorded.run, parents.tracer, Settings())
        stage = tracing.current_stage()
        assert stage is not None
        stage.hold()
        stage.let_go()
        later.complete(reads=1)
        assert recorded.records() == before


JOB = """
import os, signal, threading, stagewatch
from stagewatch import failures, operations, recording
from stagewatch.records import Noted, StageMeasured

kind = operations.OperationKind("pyspark.collect", io=True, open=True)

def act():
    return operations.end_later(operations.begin(kind))

with stagewatch.stage("load"):
    done, pending = act(), act()
    if (child := os.fork()) == 0:
        done.complete(reads=1000)
        with stagewatch.stage("child"):
            act().complete(reads=5)
        os._exit(0)
    os.waitpid(child, 0)
done.complete(reads=3)
journal = recording.active.sink
run = recording.active.run.run_id
journal.append(StageMeasured(run, "load", {"pipeline.spark.tasks": 4}))
journal.append(Noted(run, "advice", "skew", "…", {"pipeline.advice.kind": "skew"}, 1))
call = operations.begin(kind)
operations.announce(call)
waits = threading.Thread(target=threading.Event().wait, daemon=True)
waits.start()
"""


@pytest.mark.parametrize(
    ("ending", "cause"),
    [("", None), ("os.kill(os.getpid(), signal.SIGKILL)", "killed"), ("os._exit(3)", "exit_3")],
    ids=["exit", "killed", "os._exit"],
)
def test_a_job_that_ends_before_its_figures_come(
    jobs: Jobs, ending: str, cause: str | None
) -> None:
    """What had ended is whole, with its own outcome; what was under way ended with the job; a
    forked child has told nothing of its parent's; what was measured and noted is there."""
    jobs.run(JOB + ending)
    (run,) = jobs.runs()
    with jobs.history() as history:
        spans = list(history.spans(run.run_id))
        stages = {stage.name: stage for stage in history.stages(run.run_id)}
        (operation,) = [one for one in history.operations(run.run_id) if one.stage == "load"]
        (notice,) = history.notices(run.run_id)
        tasks = history.counters("pipeline.spark.tasks")
    tree = jobs.tree(run)
    actions = [{"pyspark.collect": []}, {"pyspark.collect": []}]
    (load,) = (branch for branch in tree if "load" in branch)
    assert [one for one in load["load"] if "child" not in one] == actions
    assert {"pyspark.collect": []} in tree
    under_way = max((span for span in spans if span.name == "pyspark.collect"), key=_start)
    assert under_way.attributes.get("error.type") == cause
    assert [span.failed for span in spans if span.name == "load"] == [False]
    assert (stages["load"].calls, stages["load"].failed, stages["load"].records_in) == (1, 0, 3)
    assert (operation.calls, operation.failed) == (2, 0)
    assert stages["child"].records_in == 5
    assert (notice.name, notice.attributes) == ("advice", {"pipeline.advice.kind": "skew"})
    assert list(tasks.values()) == [4.0]


def _start(span: SpanRow) -> int:
    return span.start
