"""Stages and operations: whole trees, counts and what survives in the status page."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from stagewatch import operations, recording, semconv, stages, tracing
from stagewatch.exporters.page import THREADS
from stagewatch.model import Dataset, Pipeline
from stagewatch.operations import OperationKind
from stagewatch.records import (
    DatasetTouched,
    OperationEnded,
    StageEnded,
    StageFailed,
    StageStarted,
    TallyDefined,
    TallySpilled,
)
from tests.recorded import START, Clock, Recorded

FILL = OperationKind("pandas.fillna")
READ = OperationKind("pandas.read_csv", io=True)
APPLY = OperationKind("pandas.apply", open=True)


def test_no_op_without_recording() -> None:
    """Without an SDK the public API does nothing and hands back something usable."""
    with stages.stage("load") as opened:
        opened.records(out=1)
    assert operations.begin(FILL) is None
    tracing.add_records(1, 2)
    assert tracing.current_run() is None


def test_whole_tree(recorded: Recorded, clock: Clock) -> None:
    """Run, stages, a slow operation and the user's own span hang together as they were nested."""
    with stages.stage("load"):
        call = operations.begin(FILL)
        assert call is not None
        clock.advance(0.02)
        operations.end(call, rows_in=10, rows_out=10)
        with (
            stages.stage("inner"),
            recorded.provider.get_tracer("mine").start_as_current_span("own"),
        ):
            clock.advance(1)
    assert recorded.tree() == [{"load": [{"pandas.fillna": []}, {"inner": [{"own": []}]}]}]


def test_stage_record_and_attributes(recorded: Recorded, clock: Clock) -> None:
    """Numbers of a stage stand on its record and, worked out, on its span."""
    with stages.stage("load") as opened:
        clock.advance(2)
        opened.records(in_=10, out=6, rejected=2)
    (ended,) = recorded.of(StageEnded)
    assert (ended.records_in, ended.records_out, ended.records_rejected) == (10, 6, 2)
    assert (ended.start, ended.end, ended.active_seconds) == (START, START + 2 * 10**9, 2.0)
    (span,) = recorded.spans()
    assert span.attributes is not None
    assert span.attributes[semconv.STAGE_THROUGHPUT] == 3.0
    assert span.attributes[semconv.STAGE_ERROR_RATIO] == 0.25
    assert span.attributes[semconv.RUN_OUTCOME] == "success"
    assert (span.start, span.end) == (ended.start, ended.end)


def test_what_nobody_counted_is_unknown(recorded: Recorded) -> None:
    """A stage without counts has no 0 records, it has none."""
    with stages.stage("load"):
        pass
    (ended,) = recorded.of(StageEnded)
    assert (ended.records_in, ended.records_out) == (None, None)


def test_more_records_than_a_number_holds(recorded: Recorded) -> None:
    """An absurd count loses no stage: it is as large as a count can be."""
    with stages.stage("load") as opened:
        opened.records(in_=2**70, out=2**63, rejected=-(2**70))
    (ended,) = recorded.of(StageEnded)
    assert (ended.records_in, ended.records_out) == (2**53, 2**53)
    assert ended.records_rejected == -(2**53)


def test_failed_stage(recorded: Recorded) -> None:
    """The exception reaches the user; the span has type and place, and no message."""
    name = "Sm" + "ith"
    with pytest.raises(ValueError, match="Smith"), stages.stage("load"):
        float(name)
    (ended,) = recorded.of(StageEnded)
    assert (ended.outcome, ended.error_type) == ("failure", "ValueError")
    (span,) = recorded.spans()
    assert span.attributes is not None
    assert "test_failed_stage" in span.attributes[semconv.ERROR_PLACE]
    assert "Smith" not in str(span)
    assert span.status == 2


def test_exception_is_recorded_once(recorded: Recorded) -> None:
    """The innermost span has the event; the stages around it only say that they failed."""
    with pytest.raises(KeyError), stages.stage("outer"), stages.stage("inner"):
        raise KeyError("x")
    events = {span.name: len(span.events or ()) for span in recorded.spans()}
    assert events == {"inner": 1, "outer": 0}


def test_exit_codes_are_outcomes(recorded: Recorded) -> None:
    """sys.exit(0) in a stage is success, sys.exit(3) failure."""
    for code in (0, 3):
        with pytest.raises(SystemExit), stages.stage(f"exit{code}"):
            raise SystemExit(code)
    assert [(ended.outcome, ended.error_type) for ended in recorded.of(StageEnded)] == [
        ("success", None),
        ("failure", "exit_3"),
    ]


def test_cheap_call_folds(recorded: Recorded, clock: Clock) -> None:
    """Cheap calls leave no span but exact counts, in the page while the run is going."""
    with stages.stage("load"):
        for _ in range(3):
            call = operations.begin(FILL)
            assert call is not None
            clock.advance(0.001)
            operations.end(call, rows_in=5, rows_out=4)
        (tally,) = recorded.of(TallyDefined)
        assert (tally.stage, tally.name, tally.kind) == ("load", "pandas.fillna", "operation")
        assert recorded.page().cell("operation", tally.cell) == {
            "calls": 3,
            "nanoseconds": 3_000_000,
            "rows_in": 15,
            "rows_out": 12,
        }
    assert recorded.tree() == [{"load": []}]


def test_threads_lose_no_folded_call(recorded: Recorded) -> None:
    """Folding takes no lock, and is exact all the same: threads switch as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work() -> None:
        for _ in range(3000):
            call = operations.begin(FILL)
            assert call is not None
            operations.fold(call, 2, 1)

    try:
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    (tally,) = recorded.of(TallyDefined)
    cell = recorded.page().cell("operation", tally.cell)
    assert cell is not None
    assert (cell["calls"], cell["rows_in"], cell["rows_out"]) == (18000, 36000, 18000)


def test_only_outermost_call_counts(recorded: Recorded) -> None:
    """pandas calls its own public methods: those are not the user's calls."""
    outer = operations.begin(FILL)
    assert outer is not None
    assert operations.begin(OperationKind("pandas.dropna")) is None
    other = operations.begin(OperationKind("sql.execute"))
    assert other is not None
    operations.end(other)
    operations.end(outer)
    again = operations.begin(FILL)
    assert again is not None
    operations.end(again)


def test_io_is_always_a_span(recorded: Recorded, clock: Clock) -> None:
    """A reader is a span however quick, with its dataset, and its rows are the stage's records."""
    dataset = Dataset(uri="file:///a.csv", direction="in", rows=7, fingerprint="f")
    with stages.stage("extract"):
        call = operations.begin(READ)
        assert call is not None
        operations.end(call, rows_out=7, reads=7, datasets=[dataset])
    assert recorded.tree() == [{"extract": [{"pandas.read_csv": []}]}]
    (ended,) = recorded.of(StageEnded)
    assert (ended.records_in, ended.records_out) == (7, None)
    (touched,) = recorded.of(DatasetTouched)
    assert (touched.stage, touched.uri, touched.rows) == ("extract", "file:///a.csv", 7)
    read = recorded.spans()[0]
    assert read.attributes is not None
    assert read.attributes[semconv.SPAN_ROLE] == "detail"


def test_open_call_with_children_is_kept(recorded: Recorded) -> None:
    """A cheap call in which somebody opened a span is a span, so that the tree has no hole."""
    for traced in (False, True):
        call = operations.begin(APPLY)
        assert call is not None
        if traced:
            with recorded.provider.get_tracer("mine").start_as_current_span("own"):
                pass
        operations.end(call)
    assert recorded.tree() == [{"pandas.apply": [{"own": []}]}]
    (tally,) = recorded.of(TallyDefined)
    assert recorded.page().cell("operation", tally.cell) == {
        "calls": 1,
        "nanoseconds": 0,
        "rows_in": 0,
        "rows_out": 0,
    }


def test_failed_call_is_a_span(recorded: Recorded) -> None:
    """A failing call does not fold, however cheap."""
    call = operations.begin(FILL)
    assert call is not None
    operations.end(call, ValueError("no 'secret' here"))
    (ended,) = recorded.of(OperationEnded)
    assert ended.error_type == "ValueError"
    assert "secret" not in str(recorded.spans())


def test_stage_calls_fold_after_a_hundred(recorded: Recorded, clock: Clock) -> None:
    """The 101st call leaves no span; duration, records and failures are counted all the same."""
    for number in range(103):
        failing = number == 102
        try:
            with stages.stage("page") as opened:
                clock.advance(0.5)
                opened.records(out=2)
                tracing.transferred(30, 4)
                if failing:
                    raise KeyError("x")
        except KeyError:
            pass
    assert len(recorded.spans()) == 100
    (tally,) = recorded.of(TallyDefined)
    cell = recorded.page().cell("folded_stage", tally.cell)
    assert cell is not None
    assert (cell["calls"], cell["failed"], cell["records_out"]) == (3, 1, 6)
    assert (cell["bytes_in"], cell["bytes_out"]) == (90, 12)
    assert {(stage.bytes_in, stage.bytes_out) for stage in recorded.of(StageEnded)} == {(30, 4)}
    assert (recorded.spans()[0].attributes or {})["pipeline.stage.bytes.in"] == 30
    assert cell["nanoseconds"] == 1_500_000_000
    assert sum(value for name, value in cell.items() if name.startswith("bucket")) == 3
    (failed,) = recorded.of(StageFailed)
    assert (failed.name, failed.error_type) == ("page", "KeyError")


def test_operations_in_a_folded_stage_keep_its_name(recorded: Recorded) -> None:
    """They hang under what is there, and say which stage they belong to."""
    for _ in range(101):
        with stages.stage("page"):
            pass
    with stages.stage("page"):
        call = operations.begin(READ)
        assert call is not None
        operations.end(call, reads=1)
    assert recorded.spans()[-1].attributes is not None
    assert recorded.spans()[-1].attributes[semconv.STAGE_NAME] == "page"
    assert recorded.of(OperationEnded)[-1].stage == "page"


def test_unsampled_is_recorded_but_no_span(tmp_path: Path, clock: Clock) -> None:
    """The sampler decides which spans are exported, not what is counted."""
    recorded = Recorded(tmp_path, clock, Pipeline(name="test"), sampler=ALWAYS_OFF)
    try:
        with stages.stage("load") as opened:
            opened.records(out=3)
            call = operations.begin(READ)
            assert call is not None
            operations.end(call, reads=3, datasets=[Dataset(uri="file:///x", direction="in")])
        assert recorded.spans() == []
        (started,) = recorded.of(StageStarted)
        assert started.sampled is False
        assert [ended.records_out for ended in recorded.of(StageEnded)] == [3]
        assert len(recorded.of(OperationEnded)) == len(recorded.of(DatasetTouched)) == 1
    finally:
        recorded.close()


def test_threads_that_are_over_leave_their_slot(recorded: Recorded) -> None:
    """The page has room for so many threads at a time, not for so many ever."""
    seen: list[int] = []

    def work() -> None:
        with stages.stage("load"):
            shown = [thread for thread in recorded.page().threads() if any(thread.stages)]
            seen.append(len(shown))

    for _ in range(3 * THREADS):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [1] * 3 * THREADS


def test_threads_have_their_own_stages(recorded: Recorded) -> None:
    """A plain thread has no stage; what it opens hangs under the run."""
    seen: list[object] = []

    def work() -> None:
        seen.append(tracing.current_stage())
        with stages.stage("aside"):
            pass

    with stages.stage("load"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert seen == [None]
    assert {"aside": []} in recorded.tree()


def test_tasks_have_their_own_stages(recorded: Recorded) -> None:
    """asyncio tasks do not see each other's stages."""

    async def work(name: str) -> str:
        with stages.stage(name):
            await asyncio.sleep(0.001)
            stage = tracing.current_stage()
            assert stage is not None
            return stage.name

    async def main() -> list[str]:
        return await asyncio.gather(*(work(name) for name in "abc"))

    assert asyncio.run(main()) == ["a", "b", "c"]
    assert sorted(str(tree) for tree in recorded.tree()) == ["{'a': []}", "{'b': []}", "{'c': []}"]


def test_page_shows_what_is_open(recorded: Recorded, clock: Clock) -> None:
    """The stack of stages, their counts and the open operation stand in the page at any moment."""
    with stages.stage("outer"), stages.stage("inner") as inner:
        inner.records(out=5)
        call = operations.begin(FILL)
        assert call is not None
        (thread,) = recorded.page().threads()
        cells = [recorded.page().cell("stage", offset) for offset in thread.stages]
        assert [cell and cell["records_out"] for cell in cells] == [0, 5]
        assert (thread.operation, thread.operation_start) == (FILL.number, clock.now & ~1023)
        operations.end(call)
        assert next(iter(recorded.page().threads())).operation == 0
    assert next(iter(recorded.page().threads())).stages == ()


def test_full_page_spills(recorded: Recorded) -> None:
    """With no cell left each call is journaled by itself: exact, only dearer."""
    while recorded.journal.cell("operation") is not None:
        pass
    for _ in range(2):
        call = operations.begin(FILL)
        assert call is not None
        operations.end(call, rows_in=3)
    spilled = recorded.of(TallySpilled)
    assert [(record.name, record.rows_in) for record in spilled] == [("pandas.fillna", 3)] * 2


def test_counts_without_stage_are_the_runs(recorded: Recorded) -> None:
    """Records and retries outside any stage belong to the run."""
    tracing.add_records(4, 3, 1)
    tracing.retried()
    tracing.transferred(5, 6)
    assert recorded.page().run() == {
        "records_in": 4,
        "records_out": 3,
        "records_rejected": 1,
        "retries": 1,
        "bytes_in": 5,
        "bytes_out": 6,
        "counted": 3,
    }


def test_generator_stage_is_current_only_while_it_runs(recorded: Recorded, clock: Clock) -> None:
    """Between two items the consumer is not in the stage, and its time is not the stage's."""
    opened = tracing.enter("produce")
    clock.advance(1)
    opened.suspend()
    assert tracing.current_stage() is None
    clock.advance(10)
    opened.resume()
    assert tracing.current_stage() is opened
    clock.advance(1)
    opened.leave()
    (ended,) = recorded.of(StageEnded)
    assert (ended.end - ended.start, ended.active_seconds) == (12 * 10**9, 2.0)


def test_inherited_stage_counts_but_does_not_end(recorded: Recorded, tmp_path: Path) -> None:
    """In a forked child the parent's open stage takes records and leaves its end to the parent."""
    opened = tracing.enter("load")
    child = Recorded(tmp_path, recorded.clock, Pipeline(name="test"))
    opened.records(out=2)
    opened.leave()
    assert child.of(StageEnded) == recorded.of(StageEnded) == []
    (tally,) = child.of(TallyDefined)
    cell = child.page().cell("folded_stage", tally.cell)
    assert cell is not None
    assert (cell["calls"], cell["records_out"]) == (0, 2)
    child.close()
    assert recording.active is None


def test_own_span_under_a_stage_is_untouched(recorded: Recorded) -> None:
    """What the user sets on the current span inside a stage lands on the stage's span."""
    with stages.stage("load"):
        trace.get_current_span().set_attribute("mine", 1)
    assert recorded.spans()[0].attributes is not None
    assert recorded.spans()[0].attributes["mine"] == 1


def test_span_with_an_id_that_others_know(recorded: Recorded) -> None:
    """A span can be started with a given id, and the next one has one of its own again."""
    with stages.stage("load"):
        here = otel_context.get_current()
        tracing.start_span_as(0xABC, "known", here, start_time=START).end()
        recorded.provider.get_tracer("mine").start_span("own").end()
    ids = {span.name: int.from_bytes(span.span_id, "big") for span in recorded.spans()}
    assert ids == {"known": 0xABC, "own": 3, "load": 2}
    assert recorded.tree() == [{"load": [{"known": []}, {"own": []}]}]
