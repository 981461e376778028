"""A script: one of two workers, without Ray, that runs several trainings one after another.

Arguments: rank, port, a file of pickled {name: WorkerConfig}. Writes `curve-RANK.json` beside that file, name to
losses.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import torch.distributed as dist

from carevl.training.loop import Loop
from carevl.training.worker import join_workers


def main(rank: int, port: str, file: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    join_workers("gloo")
    curves = {}
    for name, config in pickle.loads(file.read_bytes()).items():
        loop, checkpoint = Loop(config, rank, 2), str(config.out / "checkpoint")
        losses = [loop.step(k)["loss"] for k in range(3)]
        loop.save(checkpoint, 3)
        losses += [loop.step(k)["loss"] for k in range(3, 4)]
        assert loop.load(checkpoint) == 3
        losses += [loop.step(k)["loss"] for k in range(3, 6)]
        loop.export()
        curves[name] = losses
    file.with_name(f"curve-{rank}.json").write_text(json.dumps(curves))
    dist.barrier()  # none leaves while another still hears from it: gloo's threads end a process that they outlive
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
