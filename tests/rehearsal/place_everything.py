"""A script: places what `multi-node` reserves, in full numbers, on a Ray cluster that runs; nothing is loaded.

Arguments: the cluster's address, a directory. Every actor and worker waits until all of its stage are there, and writes
what Ray gave it to DIRECTORY/STAGE/NAME.json: {"node": …, "gpus": CUDA_VISIBLE_DEVICES, "share": of each of them}.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from carevl.cluster.connect import ray_cluster
from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.pools import run_jobs
from carevl.pipeline.admission import admit, reservations
from carevl.settings.loader import load_settings
from carevl.settings.tree import Cluster
from carevl.stages import STAGES
from carevl.store.schemas import ITEMS
from carevl.store.table import Table


def report_and_wait(directory: Path, share: float, together: int) -> None:
    """Write what this process has, and wait for those that have to be there at the same time."""
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","),
        "share": share,
    }
    unfinished = directory / f".{uuid.uuid4().hex}"
    unfinished.write_text(json.dumps(facts))
    unfinished.rename(directory / f"{unfinished.name[1:]}.json")
    while len(list(directory.glob("*.json"))) < together:
        time.sleep(0.1)


@dataclass
class Placed(Processor):
    """Loads nothing: reports where it is."""

    directory: Path
    share: float
    together: int

    def setup(self) -> None:
        report_and_wait(self.directory, self.share, self.together)

    def preprocess(self, tables: Mapping[str, pa.Table]) -> Mapping[str, pa.Table]:
        return tables

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        items = tables["items"]
        return pa.table({"item_id": items["item_id"], "error": pa.nulls(len(items))})


def main(address: str, out: str) -> None:
    """Place the pools of the captioner, of all experts together and of the judge, and the workers of a training."""
    directory = Path(out)
    settings = load_settings("multi-node", [f"data.sources.0.path={__file__}"])
    items = Table(directory / "items")
    with ray_cluster(Cluster(address=address, rehearse=True)):
        admit(settings, [stage.name for stage in STAGES])
        for stage, pools in (
            ("caption", {"caption": settings.captioner.pool}),
            ("score", {f"score/{expert.name}": expert.pool for expert in settings.experts}),
            ("sample", {"sample": settings.judge.pool}),
        ):
            together = sum(pool.bounds[1] for pool in pools.values())
            n_parts = 3 * max(pool.bounds[1] for pool in pools.values())
            for part in range(n_parts):
                items.write(part, pa.Table.from_pylist([{"item_id": str(part), "responses": ["a", "b"]}], ITEMS))
            jobs = [
                PoolJob(
                    name,
                    Placed(directory / stage, pool.num_gpus, together),
                    {"items": items},
                    Table(directory / "tables" / name),
                    pool,
                    "item_id",
                    (),
                )
                for name, pool in pools.items()
            ]
            run_jobs(jobs, range(n_parts), 0.0, lambda name, tally, n: None)
        [workers] = [need for need in reservations(settings) if need.stage == "sft"]
        group = placement_group([dict(workers.resources)] * workers.most, strategy=workers.placement)
        ray.get(group.ready())
        strategy = PlacementGroupSchedulingStrategy(group)
        worker = ray.remote(num_cpus=workers.resources["CPU"], num_gpus=workers.resources["GPU"])(report_and_wait)
        started = [
            worker.options(scheduling_strategy=strategy).remote(directory / "sft", 1.0, workers.most)
            for _ in range(workers.most)
        ]
        ray.get(started)


if __name__ == "__main__":
    main(*sys.argv[1:])
