"""What the process that a person starts says where its child cannot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, subprocess, sys, time
from carevl.cli.ending import ending
from carevl.cli.supervisor import supervise

def work():
    {work}

def run():
    with ending("carevl"):
        work()

supervise("carevl", run)
"""


def start(work: str, directory: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(directory)}
    command = [sys.executable, "-c", SCRIPT.format(work=work)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_what_the_program_prints_and_its_status_are_passed_on(tmp_path):
    work = "print('out'); print('err', file=sys.stderr); os.write(2, b'from C'); sys.exit(5)"
    assert finish(start(work, tmp_path)) == (5, "out\n", "err\n")
    assert not list(tmp_path.iterdir())


def test_what_a_library_wrote_is_kept_after_a_fault(tmp_path):
    code, _, err = finish(start("os.write(2, b'from C'); raise KeyError(7)", tmp_path))
    assert code == 1
    assert err.startswith("carevl: a fault of the program, KeyError: 7; report it with ")
    assert "from C" in [file.read_text() for file in tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("work", "says"),
    [
        ("os.write(2, b'Failed to connect to GCS within 20 seconds'); os._exit(1)", "the head of Ray does not answer"),
        ("os.write(2, b'the local Raylet is dead'); os._exit(1)", "Ray's process on this machine (raylet) has ended"),
        ("os._exit(1)", "Ray has ended the process"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process was killed (SIGKILL), mostly because the machine has no"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the process has crashed (SIGSEGV)"),
    ],
)
def test_a_process_that_ends_without_a_word_is_spoken_for(work, says, tmp_path):
    code, _, err = finish(start(work, tmp_path))
    assert code == 3
    [line] = err.splitlines()
    assert line.startswith(f"carevl: {says}")
    assert "finished parts and checkpoints stay: run the same command again to go on" in line


def test_what_such_a_process_has_started_goes_with_it(tmp_path):
    sleeper = "import time; print('up', flush=True); time.sleep(60)"
    work = f"p = subprocess.Popen([sys.executable, '-c', {sleeper!r}], start_new_session=True); "
    work += "print(p.pid, flush=True); time.sleep(1); os._exit(1)"
    code, out, _ = finish(start(work, tmp_path))
    assert code == 3
    [pid] = [word for word in out.split() if word != "up"]
    assert not Path(f"/proc/{pid}").exists()


WAIT = "print('waits', flush=True); time.sleep(60)"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_program(number, status, tmp_path):
    process = start(WAIT, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == status
    [line] = err.splitlines()
    assert "run the same command again to go on" in line


def test_the_program_does_not_outlive_who_started_it(tmp_path):
    process = start("print(os.getpid(), flush=True); time.sleep(60)", tmp_path)
    assert process.stdout is not None
    child = Path(f"/proc/{process.stdout.readline().strip()}")
    process.kill()
    process.communicate(timeout=60)
    end = time.monotonic() + 30
    while child.exists() and "zombie" not in (child / "status").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
