"""A script: one of two workers whose process group gives up after 4 seconds, the first of them slow.

Worker 0 takes 6 seconds to load, to write a checkpoint, and to export. Arguments: rank, port, a pickled WorkerConfig.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from carevl.training import loop as training_loop
from carevl.training.loop import Loop
from carevl.training.worker import join_workers, run_loop

_SECONDS = 6.0


def main(rank: int, port: str, file: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", timeout=timedelta(seconds=4))
    join_workers("gloo")
    if rank == 0:
        for name in ("load_judge", "export"):
            setattr(training_loop, name, _slowly(getattr(training_loop, name)))
        Loop.save = _slowly_after(Loop.save)  # type: ignore[method-assign]
    assert run_loop(Loop(pickle.loads(file.read_bytes()), rank, 2)) is None


def _slowly(work):
    def slow(*arguments):
        time.sleep(_SECONDS)
        return work(*arguments)

    return slow


def _slowly_after(work):
    def slow(*arguments):
        work(*arguments)
        time.sleep(_SECONDS)

    return slow


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
