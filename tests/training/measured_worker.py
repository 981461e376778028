"""A training worker of its own process: prints the most memory that it held beyond what it held before, in bytes.

    python tests/training/measured_worker.py JUDGE ROWS SETTINGS OUT

SETTINGS is a `Training` as JSON; two steps are taken, so that the optimiser has its states in the second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def read_memory(field: str) -> int:
    """Return bytes of this process, those of mapped files among them: VmRSS, what it has; VmHWM, the most it had."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    judge, rows, settings, out = sys.argv[1:]
    # Those of the caller, which may be a worker itself, are not this one's.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}

    import torch

    from carevl.settings.training import Training
    from carevl.training.driver import prepare_training
    from carevl.training.loop import Loop
    from carevl.training.worker import join_workers

    torch.set_num_threads(2)
    join_workers("gloo")
    phase = "sft" if "targets" in rows else "dpo"
    config, _, _ = prepare_training(phase, [Path(rows)], Path(judge), Path(out), Training.model_validate_json(settings))
    Path("/proc/self/clear_refs").write_text("5")  # the most that it had is what it has
    before = read_memory("VmRSS")
    loop = Loop(config, 0, 1)
    loop.step(0)
    loop.step(1)
    print(read_memory("VmHWM") - before, flush=True)
    loop.engine.destroy()


if __name__ == "__main__":
    main()
