"""A script: the driver of one training on a Ray cluster that runs.

Arguments: the cluster's address, rows, judge, out, settings as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import ray

from carevl.settings.training import Training
from carevl.training.driver import train


def main(address: str, rows: str, judge: str, out: str, settings: str) -> None:
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ray.init(address, log_to_driver=False, logging_level="warning", runtime_env={"env_vars": environment})
    train("sft", [Path(rows)], Path(judge), Path(out), Training.model_validate_json(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
