"""What is said while workers wait for room, and how long they wait for each other."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from carevl.settings.training import Workers
from carevl.training.driver import _run_config, prepare_training
from carevl.training.room import describe_wait, follow_start

SCRIPT = Path(__file__).with_name("worker_that_waits.py")


def test_workers_without_room_say_what_they_ask_for_and_what_there_is(ray):
    from ray.util import placement_group, remove_placement_group

    workers = Workers(count=3, num_cpus=500, resources={"moon": 1})
    assert describe_wait(workers) is None
    group = placement_group([{"CPU": 500, "moon": 1}] * 3)
    lines: list[str] = []
    try:
        with follow_start(workers, lines.append, every=0.1):
            while not lines:
                time.sleep(0.05)
            time.sleep(0.5)
        assert len(lines) == 1
        assert "3 x 500 CPU and 1 moon have to start together" in lines[0]
        assert "0 moon (0 free)" in lines[0]
        assert describe_wait(Workers(count=2, num_cpus=500)) is None
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
