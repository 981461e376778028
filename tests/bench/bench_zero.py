"""Memory of a training worker under each stage of ZeRO; all weights but those of the vision tower are trained.

    python tests/bench/bench_zero.py [--workers 4] [--threads 1]

The judge is that of `bench_training.py`, about 100 million random weights. Each line is the most memory that the
largest of the workers held in its second step, when the optimiser has its moments, beyond what it held before it loaded
the judge (`zero_1_memory`, …, `zero_2_offload_memory`), against the same of ZeRO 0. Offloading moves the optimiser to
CPU memory, which without a GPU is the same memory.

Counted is anonymous memory, so not the weights that are read through a mapping of their file, and the allocator is
told to give back at once what is freed: a process's peak of resident memory would count both.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench_training import free_port, make_rows  # type: ignore[import-not-found]  # it lies beside this script

ZERO: dict[str, dict[str, Any]] = {
    "zero_0": {"stage": 0},
    "zero_1": {"stage": 1},
    "zero_2": {"stage": 2},
    "zero_3": {"stage": 3},
    "zero_2_offload": {"stage": 2, "offload_optimizer": True},
}
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", choices=ZERO, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name:
        print(json.dumps(worker(arguments.name, arguments.directory, arguments.threads)), flush=True)
        return
    with tempfile.TemporaryDirectory() as directory:
        make_rows("large", Path(directory), arguments.workers)
        held = {}
        for name in ZERO:
            held[name] = max(train(name, Path(directory), arguments.workers, arguments.threads))
            line = {"figure": f"{name}_memory", "value": round(held[name] / 2**20), "unit": "MiB", "peer": "zero_0"}
            print(json.dumps(line | {"ratio": round(held[name] / held["zero_0"], 3), "goal": None}), flush=True)


def train(name: str, directory: Path, world: int, threads: int) -> list[int]:
    """Bytes that each worker held."""
    command = [sys.executable, __file__, "--name", name, "--directory", str(directory), "--threads", str(threads)]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)}
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, **GIVE_BACK, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    said = [process.communicate()[0].splitlines() for process in workers]
    if any(process.returncode for process in workers):
        raise SystemExit(f"{name} failed; its output stands above")
    return [int(lines[-1]) for lines in said]


def worker(name: str, directory: Path, threads: int) -> int:
    """Takes two steps; returns the most bytes that it held in the second, beyond those before the judge was there."""
    import torch

    from carevl.settings.training import Training
    from carevl.training.driver import prepare_training
    from carevl.training.loop import Loop
    from carevl.training.worker import join_workers

    torch.set_num_threads(threads)
    join_workers("gloo")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    training = Training(lora=None, learning_rate=1e-5, batch_size=world, epochs=2, zero=ZERO[name])
    judge = Path(json.loads((directory / "judge.json").read_text()))
    config, _, _ = prepare_training(
        "sft", [directory / "sft_single.parquet"], judge, directory / f"{name}-{rank}", training
    )
    before = anonymous()
    loop = Loop(config, rank, world)
    loop.step(0)
    with Highest() as highest:
        loop.step(1)
    loop.engine.destroy()
    return highest.value - before


class Highest:
    """The most anonymous memory, looked at every few milliseconds."""

    def __enter__(self) -> Highest:
        self.value, self.over = anonymous(), threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.watcher.join()

    def _watch(self) -> None:
        while not self.over.is_set():
            self.value = max(self.value, anonymous())
            time.sleep(0.003)


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
