"""The finished run of `tests/data/finished_run` as rows to train on: few of them, and settings for two steps."""

from __future__ import annotations

import shutil
from pathlib import Path

from carevl.store.run import Run

FINISHED = Path(__file__).parents[1] / "data" / "finished_run"
QUICK = (
    "sft.batch_size=24",
    "sft.workers={count: 1, num_cpus: 0.5}",
    "dpo.batch_size=8",
    "dpo.workers={count: 1, num_cpus: 0.5}",
    "judge.pool.num_cpus=0.5",
)
"""Two steps of each phase on the rows of one part, or three."""


def copy_first_part(root: Path) -> Run:
    """Copy the run with the targets and pairs of its first part alone."""
    shutil.copytree(FINISHED, root)
    for file in [*root.glob("demonstrate/*/targets/part-*"), *root.glob("select/*/part-*")]:
        if file.stem != "part-00000":
            file.unlink()
    return Run(root)
