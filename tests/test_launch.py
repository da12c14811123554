"""``stagewatch run``: the command's own status, signals, input and output; and its run."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stagewatch.exporters.recorder import take_in_all
from stagewatch.exporters.recorder.watching import exits
from stagewatch.exporters.recorder.watching.kernel import is_running
from stagewatch.exporters.recorder.watching.watch import journals
from stagewatch.model import Outcome
from stagewatch.program import Program, command
from tests.jobs import BIN, Jobs, end_recorders, wait_for
from tests.otlp_receiver import OtlpReceiver

RUN = [str(BIN / "stagewatch"), "run", "--"]
COUNTING = """\
trap 'echo {name} >> seen' {name}
echo $$ > pid
until [ -e end ]; do sleep 0.02; done
exit 7
"""
"""A script that counts a signal and goes on."""


@pytest.fixture
def started(jobs: Jobs) -> Iterator[list[subprocess.Popen[str]]]:
    """What a test started, which ends with it."""
    found: list[subprocess.Popen[str]] = []
    yield found
    (jobs.directory / "end").touch()
    for process in found:
        process.communicate(timeout=30)


@pytest.fixture
def start(jobs: Jobs, started: list[subprocess.Popen[str]]) -> Start:
    return Start(jobs, started)


class Start:
    """Starts commands under ``stagewatch run``."""

    def __init__(self, jobs: Jobs, started: list[subprocess.Popen[str]]) -> None:
        self.jobs = jobs
        self._started = started

    def __call__(self, *line: str, **how: object) -> subprocess.Popen[str]:
        environment = how.pop("env", {})
        assert isinstance(environment, dict)
        process = subprocess.Popen(
            [*RUN, *line],
            **{
                "cwd": self.jobs.directory,
                "env": {**self.jobs.environment, **environment},
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                **how,
            },
        )
        self._started.append(process)
        return process

    def done(self, *line: str, **environment: str) -> tuple[int, str, str]:
        """Exit status, output and errors of a command."""
        process = self(*line, env=environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def counting(self, name: str, **how: object) -> subprocess.Popen[str]:
        """A command that counts signal *name*, and is under way."""
        self.jobs.script(COUNTING.format(name=name), "counting.sh")
        process = self("sh", "counting.sh", **how)
        wait_for(lambda: self._read("pid").endswith("\n"))
        return process

    def command_pid(self) -> int:
        return int(self._read("pid") or 0)

    def seen(self) -> int:
        """How often the signal came."""
        return len(self._read("seen").split())

    def end(self) -> None:
        """Let the command end."""
        (self.jobs.directory / "end").touch()

    def _read(self, name: str) -> str:
        path = self.jobs.directory / name
        return path.read_text() if path.exists() else ""


# --- how it ends --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "outcome", "error_type"),
    [
        ("exit 0", 0, Outcome.SUCCESS, None),
        ("exit 3", 3, Outcome.FAILURE, "exit_3"),
        ("kill -KILL $$", -9, Outcome.ERROR, "killed"),
        ("kill -SEGV $$", -11, Outcome.ERROR, "segfault"),
        ("kill -TERM $$", -15, Outcome.CANCELLATION, "terminated"),
    ],
)
def test_ends_as_the_command(
    start: Start, code: str, status: int, outcome: Outcome, error_type: str | None
) -> None:
    """Exit codes and deadly signals are the command's, and stand in its run; no second core."""
    assert start.done("sh", "-c", code) == (status, "", "")
    (run,) = start.jobs.runs()
    assert (run.pipeline, run.outcome, run.error_type) == ("sh", outcome, error_type)
    assert run.wait_status is not None and os.waitstatus_to_exitcode(run.wait_status) == status
    assert not list(start.jobs.directory.glob("core*"))


@pytest.mark.parametrize(
    ("name", "status", "line"),
    [
        ("no-such-command", 127, "no-such-command: command not found"),
        ("./no-such-file", 127, "./no-such-file: no such file"),
        ("./plain", 126, "./plain: cannot be run: Permission denied"),
    ],
)
def test_command_that_cannot_run(start: Start, name: str, status: int, line: str) -> None:
    """The codes that a shell gives, one line, and a run that failed."""
    start.jobs.script("echo", "plain")
    assert start.done(name) == (status, "", f"stagewatch: {line}\n")
    (run,) = start.jobs.runs()
    assert (run.pipeline, run.error_type) == (name.removeprefix("./"), f"exit_{status}")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no command to run"),
        (["--"], "no command to run"),
        (["--fast", "true"], "unknown option --fast"),
    ],
)
def test_no_command(jobs: Jobs, arguments: list[str], line: str) -> None:
    """Exit status 2 and one line."""
    done = subprocess.run([*RUN[:2], *arguments], env=jobs.environment, capture_output=True)
    expected = f"stagewatch: {line} (try `stagewatch run --help`)\n"
    assert (done.returncode, done.stderr.decode()) == (2, expected)


def test_help(jobs: Jobs) -> None:
    """``run --help`` is about the command, ``run CMD --help`` is the command's."""
    own = subprocess.run([*RUN[:2], "--help"], env=jobs.environment, capture_output=True)
    assert b"opentelemetry-instrument" in own.stdout
    theirs = subprocess.run([*RUN[:2], "ls", "--help"], env=jobs.environment, capture_output=True)
    assert b"opentelemetry" not in theirs.stdout


def test_nothing_at_all_when_disabled(start: Start) -> None:
    """OTEL_SDK_DISABLED means: the command, and nothing else."""
    code = "echo ${STAGEWATCH_RUN-none}; exit 4"
    assert start.done("sh", "-c", code, OTEL_SDK_DISABLED="true") == (4, "none\n", "")
    assert not start.jobs.state.exists()


def test_unwritable_state(start: Start) -> None:
    """Where nothing can be recorded the command runs all the same."""
    start.jobs.script("", "file")
    place = str(start.jobs.directory / "file" / "state")
    status, out, err = start.done("sh", "-c", "echo hi; exit 5", STAGEWATCH_STATE_DIR=place)
    assert (status, out, err.count("\n")) == (5, "hi\n", 1)
    # The recorder of the temporary directory ends when it is idle.


# --- what the command finds ---------------------------------------------------------------------


def test_surroundings_are_the_commands(start: Start) -> None:
    """Input, environment, signal handlers and mask, files: as without us."""
    ours = """
import os, signal
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
status = open("/proc/self/status").read()
print(sorted(blocked), [line for line in status.splitlines() if line.startswith("SigIgn")])
print(sorted(name for name in os.environ if not name.startswith(("STAGEWATCH", "TRACE"))))
print(sorted(os.listdir("/proc/self/fd")), os.getcwd(), os.getpgrp(), os.getsid(0), os.umask(0))
print(open(0).read())
"""
    environment = {"PATH": start.jobs.environment["PATH"], "LC_ALL": "", "LANG": "C"}
    environment |= {"STAGEWATCH_STATE_DIR": str(start.jobs.state), "STAGEWATCH_RECORDER_IDLE": "0"}
    found = []
    for line in ([], RUN):
        process = subprocess.run(
            [*line, "python", "-I", "-c", ours],
            cwd=start.jobs.directory,
            env=environment,
            input="text",
            capture_output=True,
            text=True,
        )
        assert not process.stderr
        found.append(process.stdout)
    assert found[0] == found[1]


def test_broken_pipes_end_commands(start: Start) -> None:
    """Python ignores SIGPIPE; the command does not."""
    assert start.done("sh", "-c", "yes | head -n 1") == (0, "y\n", "")


def test_ignored_children(start: Start) -> None:
    """Started by somebody who ignores SIGCHLD, the status is known, and the command ignores it."""
    code = "import signal; print(signal.getsignal(signal.SIGCHLD).name); exit(3)"
    line = [*RUN, "python", "-I", "-c", code]
    ignoring = (
        f"import os, signal; signal.signal(17, signal.SIG_IGN); os.execv({line[0]!r}, {line})"
    )
    done = subprocess.run(
        [sys.executable, "-c", ignoring], env=start.jobs.environment, capture_output=True
    )
    assert (done.returncode, done.stdout) == (3, b"SIG_IGN\n")


def test_output_ends_with_the_command(start: Start) -> None:
    """``x=$(stagewatch run …)`` is done when the command is, not when the recorder is."""
    line = shlex.join([*RUN, "sh", "-c", "echo hi"])
    done = subprocess.run(
        ["sh", "-c", f"x=$({line} 9>&1); echo $x"],
        env={**start.jobs.environment, "STAGEWATCH_RECORDER_IDLE": "60"},
        capture_output=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == (b"hi\n", b"")
    end_recorders(start.jobs)


def test_closed_output_is_closed(start: Start) -> None:
    """A reader is done when the command closes its output: nobody else holds it."""
    process = start("sh", "-c", "echo hi; exec >&- 2>&-; until [ -e end ]; do sleep 0.02; done")
    assert process.stdout is not None
    assert process.stdout.read() == "hi\n"
    assert process.poll() is None
    start.end()
    assert process.wait(timeout=20) == 0


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_signal_for_the_parent(start: Start, name: str) -> None:
    """A signal that is sent to our process alone reaches the command, once.

    Whoever sent it: a supervisor is in the same process group.
    """
    process = start.counting(name)
    os.kill(process.pid, signal.Signals[f"SIG{name}"])
    wait_for(start.seen)
    start.end()
    assert process.wait(timeout=20) == 7
    assert start.seen() == 1


@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_signal_for_the_group(start: Start, name: str) -> None:
    """A signal for the process group has reached the command already; and the next one, too."""
    process = start.counting(name, process_group=0)
    for count in (1, 2):
        before = children(process.pid)
        os.killpg(process.pid, signal.Signals[f"SIG{name}"])
        wait_for(lambda count=count: start.seen() == count)
        wait_for(lambda before=before: len(children(process.pid) - before) == 1)
    start.end()
    assert process.wait(timeout=20) == 7
    assert start.seen() == 2


def test_group_and_then_parent(start: Start) -> None:
    """What was sent to all is not mistaken for what comes later to us alone."""
    process = start.counting("USR1", process_group=0)
    before = children(process.pid)
    os.killpg(process.pid, signal.SIGUSR1)
    wait_for(start.seen)
    wait_for(lambda: len(children(process.pid) - before) == 1)  # it is dealt with
    for count in (2, 3):
        os.kill(process.pid, signal.SIGUSR1)
        wait_for(lambda count=count: start.seen() == count)
    start.end()
    assert process.wait(timeout=20) == 7


def test_control_c(start: Start) -> None:
    """Ctrl-C in a terminal reaches the command once."""
    ours, theirs = pty.openpty()
    process = start.counting(
        "INT",
        stdin=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    os.write(ours, b"\x03")
    wait_for(start.seen)
    start.end()
    assert process.wait(timeout=20) == 7, process.communicate()
    assert start.seen() == 1
    os.close(ours)


@pytest.mark.parametrize("is_for_all", [True, False])
def test_job_control(start: Start, is_for_all: bool) -> None:
    """Stopped and continued, both are: a shell sees our process stop as it would the command."""
    start.jobs.script(
        """
        import os, time
        with open("pid", "w") as file: print(os.getpid(), file=file)
        while not os.path.exists("end"): time.sleep(0.02)
        """,
        "waiting.py",
    )
    process = start("python", "-I", "waiting.py", process_group=0)
    wait_for(lambda: (start.jobs.directory / "pid").exists() and start.command_pid())
    send = os.killpg if is_for_all else os.kill
    send(process.pid, signal.SIGTSTP)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTSTP
    assert state(start.command_pid()) == "T"
    send(process.pid, signal.SIGCONT)
    wait_for(lambda: state(start.command_pid()) in "SR" and state(process.pid) in "SR")
    start.end()
    assert process.wait(timeout=20) == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]


def test_killed_command(start: Start) -> None:
    """SIGKILL of the command is our own death, too."""
    process = start.counting("USR1")
    os.kill(start.command_pid(), signal.SIGKILL)
    assert process.wait(timeout=20) == -9
    (run,) = start.jobs.runs()
    assert (run.outcome, run.error_type) == (Outcome.ERROR, "killed")


def test_killed_parent(start: Start) -> None:
    """Our death ends nothing: the command goes on, and so does its run, to the true end."""
    process = start.counting("USR1")
    beside = children(process.pid) - {start.command_pid()}
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in beside))
    assert state(start.command_pid()) in "SRD"
    start.end()
    (run,) = start.jobs.runs()
    assert (run.pipeline, run.outcome, run.error_type) == ("counting", Outcome.FAILURE, "exit_7")


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {int(child) for child in found}


# --- runs ---------------------------------------------------------------------------------------


def test_shell_script(start: Start) -> None:
    """Its Python parts join its run; its CPU and memory are those of all it waited for."""
    start.jobs.script(
        """
        import sys, stagewatch
        held = bytearray(100_000_000)
        with stagewatch.stage(sys.argv[1]) as s:
            s.records(out=2)
        """,
        "part.py",
    )
    start.jobs.script(
        "opentelemetry-instrument python part.py extract\n"
        "opentelemetry-instrument python part.py load\n",
        "nightly.sh",
    )
    assert start.done("sh", "nightly.sh") == (0, "", "")
    (run,) = start.jobs.runs()
    assert (run.pipeline, run.outcome) == ("nightly", Outcome.SUCCESS)
    wait_for(lambda: start.jobs.tree(run) == [{"extract": []}, {"load": []}])
    assert run.memory_peak is not None and run.memory_peak > 100_000_000
    assert run.cpu_seconds is not None and run.cpu_seconds > 0.05
    assert run.start < run.end


def test_short_command_has_its_own_figures(start: Start) -> None:
    """CPU is the command's, without ours; less memory than we had before it is not known."""
    assert start.done("true") == (0, "", "")
    (run,) = start.jobs.runs()
    assert run.cpu_seconds is not None and run.cpu_seconds < 0.05
    assert run.memory_peak is None


def test_declared_pipeline(start: Start) -> None:
    """``match.script`` finds a shell script's declaration, and its deadline holds."""
    (start.jobs.directory / "stagewatch.yaml").write_text(
        "pipelines:\n  nightly:\n    match: {script: 'every-*.sh'}\n    sla: {max_duration: 10ms}\n"
    )
    start.jobs.script("#!/bin/sh\nsleep 0.1\n", "every-night.sh").chmod(0o755)
    assert start.done("./every-night.sh") == (0, "", "")
    (run,) = start.jobs.runs()
    assert run.pipeline == "nightly"
    assert run.deadline == run.start + 10_000_000 and run.end is not None
    assert run.end > run.deadline


def test_script_without_first_line(start: Start) -> None:
    """A file that only a shell understands runs as from a shell."""
    start.jobs.script("echo $0 $1; exit 3\n", "bare").chmod(0o755)
    assert start.done("./bare", "x") == (3, "./bare x\n", "")


def test_schedulers_trace_is_joined(start: Start) -> None:
    """TRACEPARENT is the trace; the run is a span of its own in it, and shown to the command."""
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    _, out, _ = start.done("sh", "-c", "echo $TRACEPARENT", TRACEPARENT=parent)
    (run,) = start.jobs.runs()
    assert run.trace_id.hex() == "ab" * 16
    assert run.span_id.hex() != "cd" * 8
    assert out == f"00-{run.trace_id.hex()}-{run.span_id.hex()}-01\n"


def test_sampler_is_the_users(start: Start) -> None:
    """A sampler that the user chose decides of these runs, too."""
    _, out, _ = start.done("sh", "-c", "echo $TRACEPARENT", OTEL_TRACES_SAMPLER="always_off")
    assert out.endswith("-00\n")


@pytest.mark.parametrize(
    "line", [["python", "etl.py"], ["python3", "-m", "etl"], ["./etl.py"], ["-m"]]
)
def test_python(start: Start, line: list[str]) -> None:
    """Python commands are instrumented: the run knows the exception, and has stages."""
    start.jobs.script(
        "#!/usr/bin/env python\nimport stagewatch\nwith stagewatch.stage('load'): {}['x']\n",
        "etl.py",
    ).chmod(0o755)
    if line == ["-m"]:
        line = ["opentelemetry-instrument", "python", "etl.py"]
    status, out, err = start.done(*line)
    assert (status, out, err.count("KeyError: 'x'")) == (1, "", 1)
    (run,) = start.jobs.runs()
    assert (run.pipeline, run.outcome, run.error_type) == ("etl", Outcome.FAILURE, "KeyError")
    assert start.jobs.tree(run) == [{"load": []}]


def test_options_are_the_commands_own(start: Start) -> None:
    """An option that `opentelemetry-instrument` has, too, shortened or not, reaches the script."""
    start.jobs.script("import sys; print(sys.argv[1:])")
    line = "python etl.py --conf x --version -- --distro y"
    assert start.done(*line.split()) == (0, f"{line.split()[2:]}\n", "")


@pytest.mark.parametrize("name", ["python3", "opentelemetry-instrument"])
def test_python_without_stagewatch(start: Start, name: str) -> None:
    """One line says so; the command is run and recorded like any other."""
    place = start.jobs.directory / "bin"
    place.mkdir()
    (place / name).symlink_to(sys.executable)
    start.jobs.script("raise SystemExit(3)")
    status, _, err = start.done(f"bin/{name}", "etl.py")
    assert status == 3
    line = "has no stagewatch installed: of this run only the command itself is seen"
    assert err == f"stagewatch: bin/{name} {line}\n"
    (run,) = start.jobs.runs()
    assert run.error_type == "exit_3"


@pytest.mark.parametrize("option", ["-I", "-E", "-S"])
def test_python_that_ignores_its_environment(start: Start, option: str) -> None:
    """It cannot be instrumented, and is run and recorded like any other command."""
    start.jobs.script("raise SystemExit(3)")
    assert start.done("python", option, "etl.py") == (3, "", "")
    (run,) = start.jobs.runs()
    assert (run.pipeline, run.error_type) == ("etl", "exit_3")


def test_nested(start: Start) -> None:
    """A run within a run joins it, unless it is another declared pipeline."""
    (start.jobs.directory / "stagewatch.yaml").write_text("pipelines: {outer: {}, inner: {}}\n")
    start.jobs.script(f"{shlex.join(RUN)} true; {shlex.join(RUN)} sh inner.sh", "outer.sh")
    start.jobs.script("exit 0", "inner.sh")
    assert start.done("sh", "outer.sh") == (0, "", "")
    outer, inner = start.jobs.runs(ended=2)
    assert (outer.pipeline, inner.pipeline) == ("outer", "inner")
    assert (inner.parent_run_id, inner.trace_id) == (outer.run_id, outer.trace_id)


# --- where the kernel does not tell -------------------------------------------------------------


def test_status_without_a_recorder(start: Start) -> None:
    """Nobody had a pidfd of the dead process: its parent's word says how it ended."""
    process = start.counting("USR1", env={"STAGEWATCH_RECORDER_IDLE": "60"})
    (room,) = (start.jobs.state / "rooms").iterdir()
    wait_for(lambda: start.jobs.runs(ended=0))
    for pid in recorders(start.jobs):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not recorders(start.jobs))
    start.end()
    assert process.wait(timeout=20) == 7
    assert [path.name.split(".")[0] for path in room.glob("*.exit")] == [str(start.command_pid())]
    assert take_in_all(start.jobs.state, room)
    (run,) = start.jobs.runs()
    assert (run.outcome, run.error_type) == (Outcome.FAILURE, "exit_7")
    assert run.cpu_seconds
    assert not list(room.glob("*.exit")) + list(room.glob("*.journal"))


def recorders(jobs: Jobs) -> list[int]:
    """Recorders and, before them, their keepers."""
    found = []
    for entry in filter(lambda entry: entry.name.isdigit(), Path("/proc").iterdir()):
        try:
            arguments = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(jobs.state).encode() in arguments:
            found.append((arguments[0] != b"/bin/sh", int(entry.name)))
    return [pid for _, pid in sorted(found)]


def test_word_of_an_end(tmp_path: Path) -> None:
    """A promise is no word; what has no journal gets none; status comes first, then the usage."""
    exits.leave(str(tmp_path), 7, 70, 256, 1, 2)
    assert not list(tmp_path.iterdir())
    (tmp_path / "7.70.abc.0.journal").touch()
    exits.promise(tmp_path, 7, 70, 1 << 22, 1)
    assert exits.read(tmp_path, 7, 70, is_running) is None
    exits.leave(str(tmp_path), 7, 70, 256, 1, 2)
    found = exits.read(tmp_path, 7, 70, is_running)
    assert found is not None
    assert (found.status, found.at, found.uptime, found.usage) == (256, 1, 2, None)
    exits.leave(str(tmp_path), 7, 70, 256, 1, 2, 0.5, 4096)
    found = exits.read(tmp_path, 7, 70, is_running)
    assert found is not None and found.usage == (0.5, 4096)
    assert exits.process("7.70.exit") == exits.process("7.70.new.exit") == (7, 70)
    assert exits.process("7.70.abc.page") is None


# --- PID 1 --------------------------------------------------------------------------------------


def test_word_that_nobody_fetches(tmp_path: Path) -> None:
    """What is left of a process that is long gone, without a journal, is swept away."""
    for pid, age in ((7, 3600), (8, 0)):
        (tmp_path / f"{pid}.70.abc.0.journal").touch()
        exits.leave(str(tmp_path), pid, 70, 0, 1, 2)
        (tmp_path / f"{pid}.70.abc.0.journal").unlink()
        os.utime(tmp_path / f"{pid}.70.exit", (time.time() - age,) * 2)
    assert journals(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["8.70.exit"]


@pytest.fixture
def container() -> list[str]:
    if os.geteuid():
        pytest.skip("only root may make a PID namespace")
    return ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.mark.parametrize(
    ("code", "status"), [("exit 3", 3), ("kill -KILL $$", 137), ("kill -TERM $$", 143)]
)
def test_first_process_of_a_container(
    start: Start, container: list[str], code: str, status: int
) -> None:
    """PID 1 reaps orphans, sends everything before it ends, and exits with 128 + n."""
    script = (
        "(sh -c 'exit 0' &) ; (sh -c 'exit 0' &)\n"
        "while grep -l 'State:.Z' /proc/[0-9]*/status >/dev/null 2>&1; do sleep 0.02; done\n"
        f"opentelemetry-instrument python part.py\n{code}\n"
    )
    start.jobs.script(script, "main.sh")
    start.jobs.script("import stagewatch\nwith stagewatch.stage('load'): pass\n", "part.py")
    with OtlpReceiver() as receiver:
        done = subprocess.run(
            [*container, *RUN, "sh", "main.sh"],
            cwd=start.jobs.directory,
            env={
                **start.jobs.environment,
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "STAGEWATCH_EXIT_WAIT": "20s",
                "STAGEWATCH_RECORDER_IDLE": "60",
            },
            capture_output=True,
            timeout=100,
        )
        assert (done.returncode, done.stderr) == (status, b"")
        spans = {span.name: span for span in receiver.spans}
        assert {"main", "load"} <= spans.keys()
        assert any(point.name == "pipeline.runs" for point in receiver.metric_points)
    (run,) = start.jobs.runs()
    outcome, cause = {3: ("failure", "exit_3"), 137: ("error", "killed")}.get(
        status, ("cancellation", "terminated")
    )
    assert (run.outcome, run.error_type) == (outcome, cause)


@pytest.mark.parametrize("first", [[], ["sh", "-c", '"$@"; exit $?', "sh"]])
def test_python_in_a_container(start: Start, container: list[str], first: list[str]) -> None:
    """A Python command as PID 1, or beneath a shell that is: everything is sent before the end."""
    start.jobs.script("import stagewatch\nwith stagewatch.stage('load'): {}['x']\n")
    with OtlpReceiver() as receiver:
        done = subprocess.run(
            [*container, *first, *RUN, "python", "etl.py"],
            cwd=start.jobs.directory,
            env={
                **start.jobs.environment,
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "STAGEWATCH_EXIT_WAIT": "20s",
                "STAGEWATCH_RECORDER_IDLE": "60",
            },
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert (done.returncode, done.stderr.count("KeyError: 'x'")) == (1, 1)
        assert {"etl", "load"} <= {span.name for span in receiver.spans}
    (run,) = start.jobs.runs()
    assert (run.outcome, run.error_type) == (Outcome.FAILURE, "KeyError")
    assert run.wait_status == 1 << 8


def test_end_of_a_container_is_bounded(start: Start, container: list[str]) -> None:
    """A backend that hangs holds nobody up for longer than STAGEWATCH_EXIT_WAIT."""
    with OtlpReceiver() as receiver:
        receiver.hang()
        process = subprocess.Popen(
            [*container, *RUN, "sh", "-c", "exit 3"],
            env={
                **start.jobs.environment,
                "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
                "STAGEWATCH_EXIT_WAIT": "0.5s",
                "STAGEWATCH_RECORDER_IDLE": "60",
            },
        )
        assert process.wait(timeout=60) == 3


def test_stop_of_a_container(start: Start, container: list[str]) -> None:
    """``docker stop`` is a SIGTERM for PID 1: the command gets it and decides."""
    start.jobs.script(COUNTING.format(name="TERM"), "counting.sh")
    process = subprocess.Popen(
        [*container, "--kill-child", *RUN, "sh", "counting.sh"],
        cwd=start.jobs.directory,
        env={**start.jobs.environment, "STAGEWATCH_EXIT_WAIT": "20s"},
    )
    wait_for(lambda: (start.jobs.directory / "pid").exists())
    (first,) = children(process.pid)
    os.kill(first, signal.SIGTERM)
    wait_for(start.seen)
    start.end()
    assert process.wait(timeout=60) == 7
    assert start.seen() == 1
    (run,) = start.jobs.runs()
    assert run.error_type == "exit_7"


# --- what a command is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "path", "expected"),
    [
        ("dbt build", "/opt/bin/dbt", Program(script="/opt/bin/dbt")),
        ("nothing", None, Program(script="nothing")),
        ("sh nightly.sh now", "/bin/sh", Program(script="nightly.sh")),
        ("bash -eu -o pipefail ./nightly.sh", "/bin/bash", Program(script="./nightly.sh")),
        ("bash -euo pipefail nightly.sh", "/bin/bash", Program(script="nightly.sh")),
        ("bash --norc -- nightly.sh", "/bin/bash", Program(script="nightly.sh")),
        ("sh -c 'exit 3' x", "/bin/sh", Program(script="/bin/sh")),
        ("python -I -m jobs.load", "/bin/python", Program(module="jobs.load")),
        ("spark-submit load.py --day 1", "/bin/spark-submit", Program(script="load.py")),
        (
            "spark-submit --master yarn -v --conf a=b --name=x jobs/load.py",
            "/bin/spark-submit",
            Program(script="jobs/load.py"),
        ),
        (
            "spark-submit --class Load load.jar x.py",
            "/bin/spark-submit",
            Program(script="/bin/spark-submit"),
        ),
    ],
)
def test_what_a_command_runs(line: str, path: str | None, expected: Program) -> None:
    """A shell's script and Python's name the pipeline, else the command does."""
    assert command(shlex.split(line), path) == expected
