"""Trains nothing on two workers of a private Ray; each writes what it computed with the other and where it listens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil

from carevl.cluster.connect import ray_cluster
from carevl.settings.tree import Cluster


def _listen() -> list[tuple[str, int]]:
    found = psutil.Process().net_connections("inet")
    return [(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN]


def main(out: Path) -> None:
    """Run the workers."""
    with ray_cluster(Cluster(num_cpus=3)):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        from carevl.training.process_group import GroupConfig

        def work(settings: dict[str, Any]) -> None:
            import ray.train
            import torch
            from torch import distributed as dist

            from carevl.training.worker import join_workers

            rank = ray.train.get_context().get_world_rank()
            total = torch.tensor([float(rank + 1)])
            dist.all_reduce(total)
            dist.all_reduce(total, group=dist.new_group(backend="gloo"))
            join_workers("gloo")
            dist.barrier()
            facts = {"total": total.item(), "world": dist.get_world_size(), "listening": _listen()}
            Path(settings["out"], f"{rank}.json").write_text(json.dumps(facts))

        trainer = TorchTrainer(
            work,
            train_loop_config={"out": str(out)},
            torch_config=GroupConfig(backend="gloo", timeout_s=120),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=str(out / "run")),
        )
        trainer.fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
