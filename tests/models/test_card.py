"""One start at a time on a device, and the memory that it waits for; with processes that would collide."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carevl.errors import UserError
from carevl.models.engines.card import GIB, device_names, start_alone, wait_for_room

STARTING = """
import sys, time
from pathlib import Path
from carevl.models.engines.card import device_names, start_alone
directory, log = map(Path, sys.argv[1:])
with start_alone(device_names(), directory):
    with log.open("a") as lines:
        lines.write("begin ")
    time.sleep(0.2)
    with log.open("a") as lines:
        lines.write("end ")
"""


def _start(directory: Path, devices: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": devices, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", STARTING, str(directory), str(directory / "log")]
    return subprocess.Popen(command, env=environment)


def test_processes_on_one_device_start_one_after_the_other(tmp_path):
    processes = [_start(tmp_path, devices) for devices in ("0", "0", "0,1", "0")]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (tmp_path / "log").read_text().split() == ["begin", "end"] * 4


def test_another_device_is_free_and_a_killed_process_lets_go(tmp_path):
    with start_alone(["0"], tmp_path):
        waiting = _start(tmp_path, "0")
        assert _start(tmp_path, "1").wait(60) == 0
        assert (tmp_path / "log").read_text().split() == ["begin", "end"]
        waiting.kill()
        waiting.wait()
    assert _start(tmp_path, "0").wait(60) == 0


def test_devices_are_those_that_ray_reserved():
    assert device_names({"CUDA_VISIBLE_DEVICES": "3,GPU-ab12"}) == ["3", "GPU-ab12"]
    assert device_names({"CUDA_VISIBLE_DEVICES": ""}) == device_names({}) == []


def _memory(*looks):
    """Return a reader of free memory in GiB: look after look, and then the last for ever."""
    left = list(looks)
    return lambda: [int((left.pop(0) if len(left) > 1 else left[0]) * GIB)]


def test_memory_that_a_neighbour_lets_go_is_waited_for(caplog):
    read = _memory(5, 8, 20, 30, 30)
    wait_for_room(24 * GIB, read, interval=0.001)
    assert read() == [30 * GIB]
    assert "the GPU has 8.0 GiB free of the 24.0 that are needed" in caplog.text


def test_enough_memory_that_still_grows_is_waited_for():
    looks = [25, 26, 27, 28, 28, 1]  # the last is what is there after the wait
    wait_for_room(24 * GIB, _memory(*looks), interval=0.001)
    read = _memory(*looks)
    wait_for_room(24 * GIB, read, interval=0.001)
    assert read() == [1 * GIB]


def test_memory_that_nobody_lets_go_is_refused_after_a_while():
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the GPU has 5\.0 GiB free, and this engine needs 24\.0: another process"):
        wait_for_room(24 * GIB, _memory(5), patience=0.05, interval=0.01)
    assert time.monotonic() - started >= 0.05
