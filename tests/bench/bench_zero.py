"""Memory of a training worker under each stage of ZeRO, two workers that train all weights.

    python tests/bench/bench_zero.py [--prompts 2] [--threads 1]

The judge is that of `bench_training.py`, about 100 million random weights. Each line is the most memory that the larger
of the two workers held until after its first step, beyond what it held before it loaded the judge (`zero_1_memory`, …,
`zero_2_offload_memory`), against the same of ZeRO 0. Two gloo workers on one machine; offloading moves the optimiser
to CPU memory, which without a GPU is the same memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_training import free_port, make_rows, peak

ZERO: dict[str, dict[str, Any]] = {
    "zero_0": {"stage": 0},
    "zero_1": {"stage": 1},
    "zero_2": {"stage": 2},
    "zero_3": {"stage": 3},
    "zero_2_offload": {"stage": 2, "offload_optimizer": True},
}
WORKERS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", choices=ZERO, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.name:
        print(json.dumps(worker(arguments.name, arguments.directory, arguments.threads)), flush=True)
        return
    with tempfile.TemporaryDirectory() as directory:
        make_rows("large", Path(directory), arguments.prompts)
        held = {}
        for name in ZERO:
            held[name] = max(train(name, Path(directory), arguments.threads))
            line = {"figure": f"{name}_memory", "value": round(held[name] / 2**20), "unit": "MiB", "peer": "zero_0"}
            print(json.dumps(line | {"ratio": round(held[name] / held["zero_0"], 3), "goal": None}), flush=True)


def train(name: str, directory: Path, threads: int) -> list[int]:
    """Bytes that each worker held."""
    command = [sys.executable, __file__, "--name", name, "--directory", str(directory), "--threads", str(threads)]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(WORKERS)}
    workers = [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORKERS)
    ]
    said = [process.communicate()[0].splitlines() for process in workers]
    if any(process.returncode for process in workers):
        raise SystemExit(f"{name} failed; its output stands above")
    return [int(lines[-1]) for lines in said]


def worker(name: str, directory: Path, threads: int) -> int:
    """Takes one step; returns the most bytes that it held meanwhile, beyond those before the judge was there."""
    import torch

    from carevl.training.loop import Loop
    from carevl.training.settings import Training
    from carevl.training.train import assign
    from carevl.training.worker import join_workers

    torch.set_num_threads(threads)
    join_workers("gloo")
    zero = ZERO[name]
    training = Training(lora=None, learning_rate=1e-5, batch_size=WORKERS, epochs=2, zero=zero)
    judge = Path(json.loads((directory / "judge.json").read_text()))
    out = directory / f"{name}-{os.environ['RANK']}"
    assignment, _, _ = assign("sft", [directory / "sft_single.parquet"], judge, out, training)
    before = peak()
    loop = Loop(assignment, int(os.environ["RANK"]), WORKERS)
    loop.step(0)
    after = peak()
    loop.engine.destroy()
    return after - before


if __name__ == "__main__":
    main()
