"""A training worker of its own process: prints the most memory that it held beyond what it held before, in bytes.

    python tests/training/measured_worker.py JUDGE ROWS SETTINGS OUT

SETTINGS is a `Training` as JSON; two steps are taken, so that the optimiser has its states in the second.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path


def resident() -> int:
    """Return the bytes of this process in memory, those of mapped files among them."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


class Highest:
    """The most memory, looked at every few milliseconds."""

    def __enter__(self) -> Highest:
        self.value, self.over = resident(), threading.Event()
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.watcher.join()

    def _watch(self) -> None:
        while not self.over.wait(0.005):
            self.value = max(self.value, resident())


def main() -> None:
    judge, rows, settings, out = sys.argv[1:]
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("WORLD_SIZE", "1")

    import torch

    from carevl.settings.training import Training
    from carevl.training.driver import prepare_training
    from carevl.training.loop import Loop
    from carevl.training.worker import join_workers

    torch.set_num_threads(2)
    join_workers("gloo")
    phase = "sft" if "targets" in rows else "dpo"
    config, _, _ = prepare_training(phase, [Path(rows)], Path(judge), Path(out), Training.model_validate_json(settings))
    time.sleep(0.1)
    before = resident()
    with Highest() as highest:
        loop = Loop(config, 0, 1)
        loop.step(0)
        loop.step(1)
    loop.engine.destroy()
    print(highest.value - before, flush=True)


if __name__ == "__main__":
    main()
