"""One Ray per process for all tests that can share it, and one finished small run that several tests look at."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from carevl.cluster.connect import ray_cluster
from carevl.pipeline.run import StageReport, run_pipeline
from carevl.settings.loader import load_settings
from carevl.settings.tree import Cluster, Settings
from carevl.store.run import Run

SMALL = [
    "miniworld.items=60",
    "miniworld.calibration_images=40",
    "data.parts=4",
    "captioner.engine=transformers",
    "captioner.pool.num_cpus=0.5",
    "judge.engine=transformers",
    "judge.pool.concurrency=1",
    "router.policy=mean_margin",
    "router.threshold=0.7",
    "demonstrate.samples=2",
    "sft.workers.count=1",
    "sft.batch_size=8",
    "sft.epochs=1",
    "sample.samples=4",
    "select.min_gap=0.1",
    "dpo.batch_size=8",
    "dpo.epochs=1",
    "benchmarks.0.rows=12",
    "benchmarks.1.rows=12",
    "cluster.num_cpus=2",
]
_LINKED = (".parquet", ".safetensors")
"""Files that are replaced and never changed, so that a link does for a copy."""


@dataclass(frozen=True)
class SmallRun:
    """A finished run of `SMALL`, and what was done about each of its stages. Nobody may change its files."""

    run: Run
    settings: Settings
    done: list[StageReport]

    def copy(self, directory: Path, *stages: str) -> Run:
        """A run directory with these stages of this run, its world and its results; with all that it holds if none is
        named."""
        other = Run(directory / "run")
        other.root.mkdir()
        kept = [*self.run.root.glob("world-*"), *(self.run.root / stage for stage in stages)]
        for source in kept if stages else self.run.root.iterdir():
            target = other.root / source.name
            if source.is_dir():
                shutil.copytree(source, target, copy_function=_link)
            else:
                shutil.copy2(source, target)
        shutil.copy2(self.run.root / "results.json", other.root)
        return other


def _link(source: str, target: str) -> None:
    if source.endswith(_LINKED):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def ray() -> Iterator[None]:
    """A Ray of two CPUs, which every test of this process shares that needs none of its own."""
    with ray_cluster(Cluster(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def small_run(ray: None, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    run, settings = Run(tmp_path_factory.mktemp("small")), load_settings("mini", SMALL)
    return SmallRun(run, settings, run_pipeline(settings, run, lambda _: None))
