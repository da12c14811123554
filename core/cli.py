"""The `stagewatch` command: thin; what a command does lives in a module of its own.

Modules are imported by the command that needs them, so that ``--help`` answers at once. Exit
status: 0 all is well, 1 trouble, 2 a command that was not understood.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stagewatch.history import History
    from stagewatch.live_view import Look
    from stagewatch.reading import Place

_EPILOG = """\
start here:
  opentelemetry-instrument python etl.py   run your job; nothing in it has to change
  stagewatch run -- ./nightly.sh           or any other command: shell scripts, dbt, spark-submit
  stagewatch report                        its last runs
  stagewatch show last                     the last run: span tree, stages, datasets, error
  stagewatch watch                         what runs now, every second

examples:
  stagewatch report flights -n 50          the last 50 runs of one pipeline
  stagewatch show 3f2a --all               the run whose id begins with 3f2a, every span
  stagewatch report --json | jq .runs[0]   for programs
  stagewatch watch --once                  what runs now, once
  stagewatch watch --json | jq -c .runs    what runs now, a line a second
  stagewatch doctor                        why do I see nothing?

Exit status: 0 all is well, 1 trouble, 2 the command was not understood.
"""
_NOTHING_YET = "; nothing ran yet"


_RUN_EPILOG = """\
A Python command goes through opentelemetry-instrument, if its Python has stagewatch installed:

  stagewatch run -- python etl.py
  stagewatch run -- python -m warehouse.load --full

Of any other command there are outcome, duration, CPU, memory and lateness, and what it starts
under opentelemetry-instrument joins its run. Its pipeline is named after the script or the
command, unless STAGEWATCH_PIPELINE or `match: {script: …}` in stagewatch.yaml says otherwise:

  stagewatch run -- ./nightly.sh
  STAGEWATCH_PIPELINE=models stagewatch run -- dbt build

Exit status: the command's; 127 it was not found, 126 it cannot be run, 2 there is none. As PID 1 of
a container 128 + N where signal N ended it; there orphans are reaped, and what is pending is sent
before the end (STAGEWATCH_EXIT_WAIT).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="replace")  # a bar that the terminal cannot show is no reason to fail
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if options.version:
        from importlib.metadata import version

        print(f"stagewatch {version('stagewatch')}")
        return 0
    if options.run is None:
        _parser().print_help(sys.stderr)
        return 2
    try:
        status: int = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads has seen enough. What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # a full disk behind `stagewatch report > file`
        print(f"stagewatch: {error.strerror or error}", file=sys.stderr)
        return 1
    except _Trouble as trouble:
        print(f"stagewatch: {trouble}", file=sys.stderr)
        return 1


class _Trouble(Exception):
    """One line for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"stagewatch: {message} (try `{self.prog} --help`)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="stagewatch",
        description="OpenTelemetry for data pipelines: what your runs did, stage by stage.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=None, parser=parser)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run any command as a run of its own",
        usage="stagewatch run [--] COMMAND [ARGUMENT ...]",
        description="Runs a command and ends as it does: same exit code, same signal, same input "
        "and output.",
        epilog=_RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(run=_run)

    report = commands.add_parser(
        "report",
        help="the last runs: outcome, duration, lateness, records, throughput, errors",
        description="The last runs, newest first, and a line for each pipeline among them.",
    )
    report.add_argument("pipeline", metavar="PIPELINE", nargs="?", help="runs of this one only")
    report.add_argument(
        "-n", metavar="N", type=_positive, default=20, dest="limit", help="how many runs (20)"
    )
    report.set_defaults(run=_report)

    show = commands.add_parser(
        "show",
        help="one run, also while it runs: its span tree, stages, datasets and error",
        description="One run. Calls that left no span of their own are shown as counts (folded).",
    )
    show.add_argument("wanted", metavar="RUN", help="the beginning of its id, or `last`")
    show.add_argument("--all", action="store_true", help="every span, however many there are")
    show.set_defaults(run=_show)

    watch = commands.add_parser(
        "watch",
        help="the runs under way: what each is doing, how far, how fast, how late",
        description="The runs under way, trouble first, and those that ended within 5 minutes; "
        "`q` or Ctrl-C leave. Where stdout is no terminal, once; --json without --once goes on, "
        "a line for every look, there too.",
    )
    watch.add_argument("pipeline", metavar="PIPELINE", nargs="?", help="runs of this one only")
    watch.add_argument(
        "--interval", metavar="S", type=_seconds, default=1.0, help="look every S seconds (1)"
    )
    watch.add_argument("--once", action="store_true", help="look once and end")
    watch.set_defaults(run=_watch)

    ship = commands.add_parser(
        "ship",
        help="send what is pending to the backend",
        description="Sends what is pending for the backend that OTEL_EXPORTER_OTLP_* name here, "
        "and says what is pending for others. Exit status 1 if anything for it stays behind.",
    )
    ship.add_argument(
        "--timeout", metavar="S", type=_seconds, default=30.0, help="give up after S seconds (30)"
    )
    ship.set_defaults(run=_ship)

    doctor = commands.add_parser(
        "doctor",
        help="is everything set up right?",
        description="Looks at configuration, state, recorder, backend, versions and libraries. "
        "Exit status 1 if something is wrong.",
    )
    doctor.set_defaults(run=_doctor)

    for command in (report, show, watch, ship, doctor):
        command.add_argument("--json", action="store_true", help="for programs")

    schema = commands.add_parser(
        "schema",
        help="print the JSON schema of stagewatch.yaml, for editors",
        description="The JSON schema of stagewatch.yaml: completion and checks in your editor.",
    )
    schema.set_defaults(run=_schema)
    for command in (run, report, show, watch, ship, doctor, schema):
        command.set_defaults(parser=command)
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() else 0
    if not 0 < number < 2**31:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of runs (1, 20, 500)')
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of seconds (5, 30, 0.5)')
    return seconds


# --- commands ---------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    from stagewatch import launch

    return launch.main(options.command)


def _report(options: argparse.Namespace) -> int:
    import time

    from stagewatch import reading
    from stagewatch.report import report, report_json, summarise

    with _history(_place()) as history:
        runs = history.runs(options.pipeline, options.limit)
        if not runs and options.pipeline is not None:
            raise _unknown_pipeline(options.pipeline, history.pipelines())
        lives = reading.lives(history, runs, time.time_ns())
        usual = {name: history.usual_duration(name) for name in {run.pipeline for run in runs}}
        advised = history.advised()
    now = time.time_ns()
    summaries = summarise(runs, now, usual, lives)
    if options.json:
        _print_json(report_json(runs, summaries, now, lives, advised))
    elif runs:
        _print(report(runs, summaries, now, lives, advised))
    else:
        print("No runs yet. Put `opentelemetry-instrument` in front of your job:")
        print("  opentelemetry-instrument python etl.py")
    return 0


def _unknown_pipeline(name: str, known: Sequence[str]) -> _Trouble:
    there = ", ".join(known)
    return _Trouble(f'no pipeline "{name}"' + (f"; there are {there}" if there else _NOTHING_YET))


def _show(options: argparse.Namespace) -> int:
    import time

    from stagewatch import reading
    from stagewatch.show import show, show_json

    here = _place()
    with _history(here) as history:
        try:
            run = history.run(options.wanted)
        except LookupError as error:
            raise _Trouble(str(error.args[0])) from None
        spans = list(history.spans(run.run_id))
        stages = history.stages(run.run_id)
        operations = history.operations(run.run_id)
        datasets = history.datasets(run.run_id)
        child_runs = history.child_runs(run)
        lives = reading.lives(history, [run, *child_runs], time.time_ns())
        notices = history.notices(run.run_id)
    known: dict[str, Any] = {
        "now": time.time_ns(),
        "live": lives.get(run.run_id),
        "notices": notices,
        "child_runs": child_runs,
        "lives": lives,
    }
    if options.json:
        _print_json(show_json(run, spans, stages, operations, datasets, **known))
    else:
        pipeline = here.config.pipelines.get(run.pipeline)
        declared = pipeline.stages if pipeline is not None else ()
        _print(
            show(
                run,
                spans,
                stages,
                operations,
                datasets,
                **known,
                everything=options.all,
                declared=declared,
            )
        )
    return 0


def _watch(options: argparse.Namespace) -> int:
    """``--json``: one document with ``--once``, else a line of JSON for every look."""
    import json
    import time

    from rich.console import Console

    from stagewatch.history import open_history
    from stagewatch.live_view import LiveTable, look, look_json
    from stagewatch.reading import take_in
    from stagewatch.screen import keep_showing, no_keys, repeatedly

    here = _place()
    with _readable(here):
        history = open_history(here.state)
    with history, suppress(KeyboardInterrupt):  # which is how one leaves

        def seen() -> Look:
            is_complete = take_in(here.state)
            with _readable(here):
                return look(history, time.time_ns(), options.pipeline, is_complete=is_complete)

        first = seen()
        with _readable(here):
            known = history.pipelines()
        if options.pipeline not in (None, *known, *here.config.pipelines):
            raise _unknown_pipeline(options.pipeline, known)
        no_style = bool(os.environ.get("NO_COLOR"))
        console = Console(highlight=False, color_system=None if no_style else "auto")
        if options.json and options.once:
            _print_json(look_json(first))
        elif options.json:
            for _ in repeatedly(options.interval, no_keys):
                print(json.dumps(look_json(seen()), ensure_ascii=False), flush=True)
        elif options.once or not sys.stdout.isatty() or console.is_dumb_terminal:
            _print(LiveTable(first))
        else:
            keep_showing(
                console, options.interval, lambda lines: LiveTable(seen(), "q leaves", lines)
            )
    return 0


def _ship(options: argparse.Namespace) -> int:
    """``--json``: ``destination``, ``endpoints``, ``sent``, ``pending``, its ``reason``, and
    ``elsewhere``."""
    from stagewatch import reading
    from stagewatch.exporters.recorder.sending.sender import ship
    from stagewatch.exporters.state import destination
    from stagewatch.figures import items
    from stagewatch.redaction import url

    goal = destination(os.environ)
    endpoints = {signal: url(text) for signal, text in goal.endpoints.items()}
    here = _place()
    reading.take_in(here.state)
    with _readable(here):
        shipped = ship(here.state, os.environ, options.timeout)
    sent, pending = shipped.sent, shipped.pending
    if options.json:
        _print_json(
            {
                "destination": goal.key,
                "endpoints": endpoints,
                "sent": sent,
                "pending": pending,
                "reason": shipped.reason or None,
                "elsewhere": shipped.elsewhere,
            }
        )
        return 1 if pending else 0
    where = ", ".join(dict.fromkeys(endpoints.values()))
    if not endpoints:
        print("Nothing is sent from here: OTEL_EXPORTER_OTLP_ENDPOINT is not set.")
    elif pending:
        waiting = f"{items(pending)} ({shipped.reason})"
        print(f"Sent {_sent(sent)} to {where}; still pending: {waiting}.")
    elif sent:
        print(f"Sent {_sent(sent)} to {where}; nothing is pending.")
    else:
        print(f"Nothing was waiting; all there was is at {where}.")
    for key, amounts in sorted(shipped.elsewhere.items()):
        print(f"Pending for other settings ({key}): {items(amounts)}.")
    return 1 if pending else 0


def _sent(number: int) -> str:
    return "1 item" if number == 1 else f"{number:,} items"


def _doctor(options: argparse.Namespace) -> int:
    from stagewatch import doctor

    checks = doctor.examine(os.environ, Path.cwd())
    if options.json:
        _print_json(doctor.checks_json(checks))
    else:
        _print(doctor.checks_text(checks), soft_wrap=True)
    return 1 if doctor.is_trouble(checks) else 0


def _schema(options: argparse.Namespace) -> int:
    from stagewatch.config import schema

    _print_json(schema())
    return 0


# --- around them ------------------------------------------------------------------------------


def _place() -> Place:
    """Where the state is; a wrong configuration is said, and reading goes on with what is right."""
    from stagewatch.reading import place

    here = place(os.environ, Path.cwd())
    for fault in here.faults:
        print(f"stagewatch: {fault}", file=sys.stderr)
    return here


@contextmanager
def _history(here: Place) -> Iterator[History]:
    """The history, with all journals taken in."""
    from stagewatch.history import open_history
    from stagewatch.reading import take_in

    if not take_in(here.state):
        print("stagewatch: a recorder does not answer: this may be old", file=sys.stderr)
    with _readable(here), open_history(here.state) as history:
        yield history


@contextmanager
def _readable(here: Place) -> Iterator[None]:
    import sqlite3

    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _Trouble(f"the history in {here.state} cannot be read: {error}") from None


def _print(shown: RenderableType, *, soft_wrap: bool = False) -> None:
    from rich.console import Console

    # NO_COLOR: bold and dim would be escapes too.
    plain = {"color_system": None, "force_terminal": False} if os.environ.get("NO_COLOR") else {}
    console = Console(highlight=False, markup=False, emoji=False, **plain)  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(shown, soft_wrap=soft_wrap)
    lines = (line.rstrip() for line in captured.get().splitlines())
    sys.stdout.write("\n".join(lines) + "\n")


def _print_json(value: Any) -> None:
    import json

    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")
