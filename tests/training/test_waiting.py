"""What is said while workers wait for room, and how long they wait for each other."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carevl.errors import MachineError
from carevl.settings.training import Workers
from carevl.training.driver import _run_config, prepare_training, train
from carevl.training.room import RoomWatch, describe_wait

SCRIPT = Path(__file__).with_name("worker_that_waits.py")


def test_workers_without_room_say_what_they_ask_for_and_what_there_is(ray):
    from ray.util import placement_group, remove_placement_group

    workers = Workers(count=3, num_cpus=500, resources={"moon": 1})
    assert describe_wait(workers) is None
    group = placement_group([{"CPU": 500, "moon": 1}] * 3)
    lines: list[str] = []
    try:
        watch = RoomWatch(workers, lines.append, limit=1.0)
        for _ in range(100):
            if lines:
                break
            time.sleep(0.05)
            watch.look()
        watch.look()
        assert len(lines) == 1
        assert "3 x 500 CPU and 1 moon have to start together" in lines[0]
        assert "0 moon (0 free)" in lines[0]
        assert describe_wait(Workers(count=2, num_cpus=500)) is None
        time.sleep(1.0)
        with pytest.raises(
            MachineError, match=r"^given up after .* hours \(cluster.stall_hours\): waits for room: 3 x 500"
        ):
            watch.look()
    finally:
        remove_placement_group(group)


def test_gpu_workers_keep_the_memory_of_the_gpu_in_one_piece(judge, sft_rows, write, quick, tmp_path, monkeypatch):
    def environment(**workers):
        training = quick(workers=workers)
        config, _, _ = prepare_training("sft", [write(sft_rows)], judge, tmp_path / "out", training)
        return (_run_config(config).worker_runtime_env or {}).get("env_vars", {})

    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert environment(num_gpus=1) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert environment() == {}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    assert environment(num_gpus=1) == {}


@pytest.mark.train
def test_nobody_waits_in_a_collective_while_worker_0_writes(judge, sft_rows, write, quick, tmp_path, free_port):
    config, _, _ = prepare_training("sft", [write(sft_rows)], judge, tmp_path / "out", quick())
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(config))
    port = free_port()
    command = [sys.executable, str(SCRIPT)]
    workers = [
        subprocess.Popen([*command, str(rank), port, str(tmp_path / "config.pickle")], env=os.environ)
        for rank in (0, 1)
    ]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert (tmp_path / "out" / "judge" / "config.json").exists()


@pytest.mark.train
def test_workers_that_find_no_room_are_given_up_and_wait_no_longer(ray, judge, sft_rows, write, quick, tmp_path):
    training = quick(workers={"count": 2, "num_cpus": 600})
    with pytest.raises(MachineError, match="2 x 600 CPU have to start together"):
        train("sft", [write(sft_rows)], judge, tmp_path / "out", training, stall_seconds=1)
    for _ in range(100):
        if describe_wait(training.workers) is None:
            break
        time.sleep(0.1)
    assert describe_wait(training.workers) is None
