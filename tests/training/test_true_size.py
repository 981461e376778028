"""At the size that people use: a judge of 3 billion weights through both phases, one of 8 billion through the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import psutil
import pyarrow.parquet as pq
import pytest

from carevl.models.engines.card import GIB
from carevl.models.judge_files import check_judge
from carevl.settings.training import Lora, Training
from carevl.training.adapters import Adapter
from carevl.training.footprint import training_footprint
from carevl.training.trainable import lora_config
from tests.helpers.sized_judge import write_pairs, write_sized_judge

pytestmark = [pytest.mark.train, pytest.mark.nightly]
STEPS = {
    "batch_size": 1,
    "batch_tokens": 640,
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
    "lora": Lora(rank=16),
}
"""Two steps of one row; a row has some 550 tokens."""


@pytest.fixture(autouse=True)
def _room(tmp_path):
    """Skip where there is too little; give back what files take, which pytest would keep."""
    if psutil.virtual_memory().total < 20 * GIB:
        pytest.skip("needs 20 GiB of memory")
    if shutil.disk_usage(tmp_path).free < 50e9:
        pytest.skip("needs 50 GB of disk")
    yield
    shutil.rmtree(tmp_path)


def test_a_judge_of_three_billion_weights_is_trained_in_both_phases_merged_and_asked(tmp_path):
    from carevl import RewardModel
    from carevl.cluster.connect import ray_cluster
    from carevl.settings.tree import Cluster
    from carevl.training.driver import train
    from carevl.training.reference import Reference

    judge = write_sized_judge(tmp_path / "judge", "3B", "bfloat16")
    targets, pairs = write_pairs(tmp_path, 2, words=80)
    training = Training(**STEPS)
    with ray_cluster(Cluster(num_cpus=2)):
        first = train("sft", [targets], judge, tmp_path / "sft", training)
        known = Reference(judge, training, first.adapter)(
            pq.read_table(pairs).drop_columns(["reference_chosen", "reference_rejected"])
        )
        pq.write_table(known, tmp_path / "known.parquet")
        second = train("dpo", [tmp_path / "known.parquet"], judge, tmp_path / "dpo", training, adapter=first.adapter)
    for trained in (first, second):
        assert [len(trained.curve), trained.errors] == [2, []]
        assert trained.rounding is not None
    assert second.curve[0]["reference_gap"] < 0.05 * 40
    model = RewardModel(second.judge, max_tokens=8, max_model_len=1024)
    image = pq.read_table(targets)["image"][0].as_py()
    assert model.judge(image, "What is it?", ("A cat.", "A dog.")).status in ("ok", "none", "truncated")


MERGE = """
import json, resource, sys
from pathlib import Path
from carevl.training.judge import merge_judge
merge_judge(Path(sys.argv[1]), Path(sys.argv[2]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_a_judge_of_eight_billion_weights_goes_through_all_that_needs_no_forward_pass(tmp_path):
    import torch

    from carevl.training.skeleton import load_skeleton

    judge = write_sized_judge(tmp_path / "judge", "8B", "bfloat16")
    check_judge(str(judge))
    training = Training(**STEPS)
    footprint = training_footprint(judge, training)
    stored = sum(file.stat().st_size for file in judge.glob("*.safetensors"))
    assert footprint.weights == pytest.approx(stored, rel=0.01)
    skeleton = load_skeleton(judge)
    config = lora_config(skeleton, training)
    shapes = {name: skeleton.get_submodule(name).weight.shape for name in config.target_modules}
    tensors = {}
    for name, (outputs, inputs) in shapes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(16, inputs) * inputs**-0.5
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, 16) * 0.01
    facts = json.loads(json.dumps(config.to_dict(), default=sorted))
    Adapter(facts, tensors).write(tmp_path / "out" / "adapter")
    done = subprocess.run(
        [sys.executable, "-c", MERGE, judge, tmp_path / "out"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    merged = tmp_path / "out" / "judge"
    check_judge(str(merged))
    assert sum(file.stat().st_size for file in merged.glob("*.safetensors")) == pytest.approx(stored, rel=1e-3)
    # A shard of 2 GB, what is added to it in float32, and the libraries.
    assert int(done.stdout.split()[-1]) < 7 * GIB
