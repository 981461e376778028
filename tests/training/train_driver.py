"""A script: the driver of one training, on a Ray of its own.

Arguments: phase, rows, judge, out, settings as JSON. Prints a line per piece of progress.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import ray

from carevl.cli.ending import ending
from carevl.settings.training import Training
from carevl.training.driver import train


def start_ray() -> None:
    """Starts a Ray of two CPUs, for this process alone."""
    on_end = signal.getsignal(signal.SIGTERM)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        _node_ip_address="127.0.0.1",
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}},
    )
    signal.signal(signal.SIGTERM, on_end)


def main(phase: str, rows: str, judge: str, out: str, settings: str) -> None:
    start_ray()
    training = Training.model_validate_json(settings)
    train(
        phase,
        [Path(rows)],
        Path(judge),
        Path(out),
        training,
        on_progress=lambda progress: print(progress.line(), flush=True),
    )


if __name__ == "__main__":
    with ending("train"):
        main(*sys.argv[1:])
