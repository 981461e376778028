"""GPUs that Ray offers and torch does not see, as on a node with a broken driver: refused before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from carevl.cluster.actors import PoolActor
from carevl.cluster.jobs import PoolJob, Processor
from carevl.models import device as devices
from carevl.models.device import REHEARSAL, device
from carevl.settings.models import Pool
from carevl.settings.training import Workers
from carevl.store.schemas import ITEMS
from carevl.store.table import Table
from carevl.training.engine import select_backend

pytestmark = [pytest.mark.ray, pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU here")]
CAREVL = Path(sys.executable).with_name("carevl")
PRETENDED = ["cluster.num_cpus=4", "cluster.num_gpus=2", "captioner.pool.num_gpus=1", "sft.workers.num_gpus=1"]


def test_a_gpu_that_torch_does_not_see_ends_the_run_at_its_start(tmp_path):
    words = [word for override in PRETENDED for word in ("--set", override)]
    command = [CAREVL, "run", "mini", *words, "--set", "miniworld.items=20", "--run-dir", tmp_path / "run"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("carevl: node ")
    assert "1 GPU reserved (CUDA_VISIBLE_DEVICES=" in line
    assert "sees 0; it is a build without CUDA: install carevl[gpu] there" in line
    assert not list((tmp_path / "run").glob("ingest/*"))


class Loading(Processor):
    """Says on what it was loaded."""

    def setup(self):
        self.on = device()

    def process(self, tables):
        return pa.table({"item_id": tables["items"]["item_id"], "error": pa.nulls(1)})


@pytest.mark.parametrize("rehearsed", [False, True])
def test_an_actor_loads_nothing_without_the_gpu_that_it_reserves_but_in_a_rehearsal(rehearsed, monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_reserved", None)
    monkeypatch.setenv(REHEARSAL, str(int(rehearsed)))
    items, target = Table(tmp_path / "items"), Table(tmp_path / "made")
    items.write(0, pa.Table.from_pylist([{"item_id": "a", "responses": ["b", "c"]}], ITEMS))
    actor = PoolActor(PoolJob("caption", Loading(), {"items": items}, target, Pool(num_gpus=0.5), "item_id", ()))
    [stopped] = actor({"part": np.array([0])})["stopped"]
    if rehearsed:
        assert (stopped, actor.loaded.on, target.parts()) == ("", "cpu", [0])
    else:
        assert "0.5 GPU reserved" in stopped
        assert (actor.loaded, target.parts()) == (None, [])


def test_workers_of_a_rehearsal_talk_through_gloo(monkeypatch):
    monkeypatch.setattr(devices, "_reserved", None)
    monkeypatch.delenv(REHEARSAL, raising=False)
    assert select_backend(Workers(num_gpus=1)) == "nccl"
    monkeypatch.setenv(REHEARSAL, "1")
    assert select_backend(Workers(num_gpus=1)) == "gloo"


@pytest.mark.parametrize("rehearsed", [False, True])
def test_a_rehearsal_and_a_run_have_directories_of_their_own(rehearsed, tmp_path):
    first, second = ([], ["--rehearse"]) if rehearsed else (["--rehearse"], [])
    run = tmp_path / "run"
    words = ["mini", "--set", "miniworld.items=20", "--set", "miniworld.calibration_images=1", "--run-dir", run]
    made = subprocess.run(
        [CAREVL, "run", *words, "--until", "ingest", *first], capture_output=True, text=True, check=True, timeout=300
    )
    said = "a rehearsal: reserved GPUs that torch does not see are CPUs here; nothing of it is a result"
    assert (said in made.stderr.splitlines(), said in made.stdout.splitlines()) == ((not rehearsed,) * 2)
    [manifest] = run.glob("ingest/*/manifest.json")
    assert json.loads(manifest.read_text()).get("rehearsal", False) is not rehearsed
    for command in ("plan", "run"):
        done = subprocess.run(
            [CAREVL, command, *words, *second], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 2
        holds = "a run that is no rehearsal; choose another --run-dir for --rehearse"
        holds = holds if rehearsed else "a rehearsal, of which nothing is a result; choose another --run-dir"
        assert done.stderr.strip().splitlines()[-1] == f"carevl: {run} holds {holds}"
