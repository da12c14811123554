"""The whole way of a run where Linux' own calls are missing: as near to macOS as Linux comes.

No epoll, pidfd, waitid, sigtimedwait, OFD lock, fallocate nor SEQPACKET; no /proc but for psutil;
``stagewatch.system`` says that this is no Linux.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from stagewatch.model import Outcome, Run
from tests.jobs import Jobs, wait_for
from tests.otlp_receiver import OtlpReceiver

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may take /proc away")

WORLD = """
    set -e
    mkdir -p $WORLD/dev $ELSEWHERE
    mount --bind /proc $ELSEWHERE
    mount -t tmpfs none $WORLD/dev
    cp -a /dev/null /dev/zero /dev/random /dev/urandom /dev/tty $WORLD/dev
    mkdir -m 1777 $WORLD/dev/shm
    ln -s $ELSEWHERE/self/fd $WORLD/dev/fd
    mount --move $WORLD/dev /dev
    umount -l -R /proc
    exec "$0" "$@"
"""
WITHOUT = Path(__file__).with_name("without_linux.py")


class Mac(Jobs):
    """Jobs of a Python of its own, which has what the tested one has, but for `WITHOUT`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        world = directory / "world"
        packages = world / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages /= "site-packages"
        packages.mkdir(parents=True)
        self.bin = world / "bin"
        self.bin.mkdir()
        (world / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
        (self.bin / "python").symlink_to(Path(sys.executable).resolve())
        (packages / "without.pth").write_text(
            f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
            f"import sys; exec(compile(open({str(WITHOUT)!r}).read(), 'without', 'exec'), "
            "{'__name__': 'without'})\n"
        )
        for name, module in {
            "opentelemetry-instrument": "opentelemetry.instrumentation.auto_instrumentation",
            "stagewatch": "stagewatch.__main__",
        }.items():
            function = "run" if "instrument" in name else "main"
            script = f"#!{self.bin}/python\nimport sys\nfrom {module} import {function} as main\n"
            (self.bin / name).write_text(f"{script}if __name__ == '__main__': sys.exit(main())\n")
            (self.bin / name).chmod(0o755)
        self.environment |= {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "WORLD": str(world),
            "ELSEWHERE": str(world / "proc"),
        }

    def command(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        """In that world; the caller waits for it."""
        return subprocess.Popen(
            ["unshare", "--mount", "/bin/sh", "-c", WORLD, *map(str, command)],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        return self.command(self.bin / "opentelemetry-instrument", *command, **environment)

    def stagewatch(self, *arguments: str) -> str:
        """What a command of ours prints."""
        process = self.command(self.bin / "stagewatch", *arguments)
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, ""), errors
        return output

    def recorders(self) -> list[int]:
        """Pids of the recorders, without keepers."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0] == str(self.bin / "python").encode() and b"-I" in words:
                    found.append(int(entry.name))
        return found


@pytest.fixture
def mac() -> Iterator[Mac]:
    with tempfile.TemporaryDirectory(prefix="mac-") as short:  # as sockets' paths have to be
        yield from jobs_of(Mac(Path(short)))


def jobs_of(found: Mac) -> Iterator[Mac]:
    yield found
    for pid in found.recorders():
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not found.recorders())
    log = found.state / "recorder.log"
    assert not log.exists(), log.read_text()


@pytest.fixture
def receiver(mac: Mac) -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        mac.environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = found.endpoint
        yield found


def ends(run: Run) -> tuple[Outcome | None, str | None]:
    return run.outcome, run.error_type


STAGE = """
import os, signal, stagewatch, sys, time
from pathlib import Path
with stagewatch.stage("load") as stage:
    stage.records(out=5)
    Path("up").touch()
    while Path("hold").exists():
        time.sleep(0.02)
"""


def test_normal_run(mac: Mac, receiver: OtlpReceiver) -> None:
    """Run, stage and records arrive at the backend and in the history; the job is as ever."""
    done = mac.run(
        STAGE + "import select\nprint(hasattr(select, 'epoll'), os.path.exists('/proc/self'))"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False False\n", "")
    (run,) = mac.runs()
    assert ends(run) == (Outcome.SUCCESS, None)
    assert (run.records_out, mac.tree(run)) == (5, [{"load": []}])
    receiver.wait_for(lambda r: {"etl", "load"} <= {span.name for span in r.spans})


@pytest.mark.parametrize(
    ("command", "end", "code", "verdict"),
    [
        (["etl.py"], "raise ValueError('x')", 1, (Outcome.FAILURE, "ValueError")),
        (["etl.py"], "sys.exit(3)", 3, (Outcome.ERROR, "unknown")),
        (["-m", "etl"], "sys.exit(3)", 3, (Outcome.FAILURE, "exit_3")),
        (["etl.py"], "os._exit(0)", 0, (Outcome.ERROR, "unknown")),
        (["etl.py"], "os.kill(os.getpid(), signal.SIGKILL)", -9, (Outcome.ERROR, "unknown")),
    ],
)
def test_end_that_nobody_waits_for(
    mac: Mac, command: list[str], end: str, code: int, verdict: tuple[Outcome, str | None]
) -> None:
    """What the job could say itself of its end is believed; the rest nobody knows."""
    mac.script(STAGE + end)
    process = mac.start("python", *command)
    process.communicate(timeout=60)
    assert process.returncode == code
    (run,) = mac.runs()
    assert (*ends(run), run.records_out) == (*verdict, 5)


def test_killed_in_a_stage(mac: Mac, receiver: OtlpReceiver) -> None:
    """A run is shown while it runs, and closed where it was killed, with its open stage."""
    (mac.directory / "hold").touch()
    process = mac.start("python", mac.script(STAGE))
    wait_for(lambda: (mac.directory / "up").exists())
    receiver.wait_for(lambda r: "run started" in {span.name for span in r.spans})
    run = json.loads(mac.stagewatch("show", "last", "--json"))["run"]
    assert (run["outcome"], run["live"]["stages"][0]["name"]) == (None, "load")
    assert run["live"]["memory"] > 10_000_000
    assert "load" in mac.stagewatch("watch", "--once")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (run,) = mac.runs()
    assert ends(run) == (Outcome.ERROR, "unknown")
    assert (run.records_out, mac.tree(run)) == (5, [{"load": []}])


def test_several_jobs_and_children(mac: Mac, receiver: OtlpReceiver) -> None:
    """Two runs at once, one with a forked child and one with a child process: each counts once."""
    (mac.directory / "hold").touch()
    forks = mac.start(
        "python",
        mac.script(
            STAGE
            + """
if not os.fork():
    with stagewatch.stage("forked"): pass
    os._exit(0)
os.wait()
""",
            "forks.py",
        ),
    )
    calls = mac.start(
        "python",
        mac.script(
            STAGE
            + """
import subprocess
code = "import stagewatch\\nwith stagewatch.stage('child'): pass"
subprocess.run(["opentelemetry-instrument", "python", "-c", code], check=True)
""",
            "calls.py",
        ),
    )
    wait_for(lambda: len(mac.runs(0)) == 2 and len(mac.recorders()) == 1)
    (mac.directory / "hold").unlink()
    for process in (forks, calls):
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, output, errors) == (0, "", "")
    runs = {run.pipeline: run for run in mac.runs(2)}
    assert {ends(run) for run in runs.values()} == {(Outcome.SUCCESS, None)}
    assert mac.tree(runs["forks"]) == [{"load": []}, {"forked": []}]
    assert mac.tree(runs["calls"]) == [{"load": []}, {"child": []}]
    expected = ["calls", "child", "forked", "forks", "load", "load"]
    receiver.wait_for(
        lambda r: sorted(s.name for s in r.spans if s.name != "run started") == expected
    )


def test_recorder_killed(mac: Mac) -> None:
    """Its keeper starts another, which goes on."""
    (mac.directory / "hold").touch()
    process = mac.start("python", mac.script(STAGE))
    wait_for(lambda: len(mac.runs(0)) == 1)
    (killed,) = mac.recorders()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: mac.recorders() not in ([], [killed]))
    (mac.directory / "hold").unlink()
    assert process.communicate(timeout=60) == ("", "")
    (run,) = mac.runs()
    assert (*ends(run), run.records_out) == (Outcome.SUCCESS, None, 5)


@pytest.mark.parametrize(
    ("command", "code", "verdict"),
    [
        (["sh", "-c", "exit 3"], 3, (Outcome.FAILURE, "exit_3")),
        (["sh", "-c", "kill -9 $$"], -9, (Outcome.ERROR, "killed")),
        (["python", "etl.py"], 3, (Outcome.FAILURE, "exit_3")),
        (["nowhere"], 127, (Outcome.FAILURE, "exit_127")),
    ],
)
def test_stagewatch_run(
    mac: Mac, command: list[str], code: int, verdict: tuple[Outcome, str | None]
) -> None:
    """Under `stagewatch run` the end is known exactly."""
    mac.script("import sys; sys.exit(3)")
    process = mac.command(mac.bin / "stagewatch", "run", "--", *command)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    assert errors == ("stagewatch: nowhere: command not found\n" if code == 127 else "")
    (run,) = mac.runs()
    assert ends(run) == verdict
    assert not list(mac.state.glob("rooms/*/*.exit"))


SIGNALS = """
import os, signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"term "))
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"int "))
Path("up").touch()
while not Path("leave").exists():
    time.sleep(0.02)
"""


def test_signals(mac: Mac) -> None:
    """A signal for `stagewatch run` alone is passed on, one for the group comes once."""
    process = mac.command(mac.bin / "stagewatch", "run", "--", "python", mac.script(SIGNALS))
    wait_for(lambda: (mac.directory / "up").exists())
    assert process.stdout is not None
    heard = b""
    for send, number in ((os.kill, "term"), (os.killpg, "int"), (os.killpg, "term")):
        send(process.pid, signal.SIGTERM if number == "term" else signal.SIGINT)
        expected = heard + f"{number} ".encode()
        while heard != expected:
            heard += os.read(process.stdout.fileno(), 100)
            assert expected.startswith(heard)
    (mac.directory / "leave").touch()
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


def test_long_path(mac: Mac, receiver: OtlpReceiver) -> None:
    """Where no socket can be the job sends by itself, and says so once."""
    mac.environment["STAGEWATCH_STATE_DIR"] = str(mac.directory / ("d" * 120))
    process = mac.start("python", mac.script("pass"))
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.count("\n")) == (0, 1), errors
    assert "too long for a socket" in errors
    assert [span.name for span in receiver.spans] == ["etl"]


def test_doctor(mac: Mac) -> None:
    """Says what is missing here."""
    mac.run("pass")
    found = mac.stagewatch("doctor")
    assert "macOS tells a parent alone how a process ended" in found, found
    assert "✗" not in found
