"""A script: one of several workers, without Ray, that takes trainings up from their last checkpoints.

Arguments: rank, workers, port, a file of pickled {name: WorkerConfig}, steps after which to stop. Worker 0 adds the
losses to `losses-NAME.json` beside that file.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path

import torch.distributed as dist

from carevl.errors import UserError
from carevl.training.checkpoints import Checkpoints
from carevl.training.loop import Loop
from carevl.training.worker import join_workers


def main(rank: int, world: int, port: str, file: Path, last: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    join_workers("gloo")
    for name, config in pickle.loads(file.read_bytes()).items():
        loop, checkpoints = Loop(config, rank, world), Checkpoints(config.out / "checkpoints", keep=1)
        try:
            done = checkpoints.restore(loop)
            said = [loop.step(k)["loss"] for k in range(done, last)]
            checkpoints.save(loop, last)
        except UserError as error:
            said = [str(error)]
        if rank == 0:
            log = file.with_name(f"losses-{name}.json")
            log.write_text(json.dumps([*(json.loads(log.read_text()) if log.exists() else []), *said]))
    dist.barrier()  # none leaves while another still hears from it: gloo's threads end a process that they outlive
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
