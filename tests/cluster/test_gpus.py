"""GPUs that Ray offers and torch does not see, as on a node with a broken driver: refused before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
