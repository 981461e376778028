"""A run whose Ray is killed under it, and one that is ended: one line, a status, and nobody left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.fault]

SMALL = [
    "items=60",
    "miniworld.items=60",
    "miniworld.calibration_images=20",
    "data.parts=16",
    "captioner.engine=transformers",
    "captioner.pool.num_cpus=0.5",
]
SIGNS = {
    "raylet": "/raylet/raylet --raylet_socket_name",
    "head": "/gcs_server --",
    "agent": "ray::DashboardAgent",
}


def _find(process: psutil.Process, sign: str) -> list[psutil.Process]:
    found = []
    for each in process.children(recursive=True):
        try:
            if sign in " ".join(each.cmdline()):
                found.append(each)
        except psutil.Error:
            continue
    return found


def _start(run: Path) -> subprocess.Popen[str]:
    words = ["run", "mini", "--until", "caption", "--run-dir", str(run)]
    words += [word for override in SMALL for word in ("--set", override)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", "from carevl.cli import main; main()", *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for_a_part(run: Path, process: subprocess.Popen[str]) -> None:
    while not list(run.glob("caption/*/part-*.parquet")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)


@pytest.mark.parametrize("victim", SIGNS)
def test_a_run_whose_ray_is_killed_ends_in_one_line(victim, tmp_path):
    with _start(tmp_path) as process:
        _wait_for_a_part(tmp_path, process)
        family = psutil.Process(process.pid).children(recursive=True)
        [killed, *_] = _find(psutil.Process(process.pid), SIGNS[victim])
        killed.kill()
        _, printed = process.communicate(timeout=120)
    assert process.returncode == 3, printed
    last = printed.splitlines()[-1]
    assert last.startswith("carevl: ")
    assert "finished parts and checkpoints stay: run the same command again to go on" in last
    assert "Traceback" not in printed
    assert ".cc:" not in printed
    assert psutil.wait_procs(family, timeout=30)[1] == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_ended_leaves_nobody(number, status, tmp_path):
    with _start(tmp_path) as process:
        _wait_for_a_part(tmp_path, process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        _, printed = process.communicate(timeout=120)
    assert process.returncode == status, printed
    assert printed.splitlines()[-1].endswith("run the same command again to go on")
    assert "Traceback" not in printed
    assert psutil.wait_procs(family, timeout=60)[1] == []
