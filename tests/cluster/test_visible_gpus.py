"""Workers see the GPUs that they reserve, and no others, in a private Ray and in one that somebody else started.

The GPUs are pretended: Ray hands out what it is told that a node has, and sets CUDA_VISIBLE_DEVICES accordingly.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

DRIVER = """
import json, os, sys
from carevl.cluster.connect import ray_cluster
from carevl.settings.tree import Cluster

class Worker:
    def __call__(self, batch):
        return {"devices": [str(os.environ.get("CUDA_VISIBLE_DEVICES"))]}

def train(_):
    from carevl.training.worker import join_workers
    join_workers("gloo")
    from deepspeed.accelerator import get_accelerator
    return os.environ.get("CUDA_VISIBLE_DEVICES"), get_accelerator().device_name()

with ray_cluster(Cluster(**json.loads(sys.argv[1]))):
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    def devices(num_gpus):
        pool = ray.data.ActorPoolStrategy(size=1)
        reserved = {"compute": pool, "batch_size": 1, "num_cpus": 1, "num_gpus": num_gpus}
        rows = ray.data.range(1, override_num_blocks=1).map_batches(Worker, **reserved)
        return rows.take_all()[0]["devices"]

    found = {"none": devices(None), "half": devices(0.5)}
    trainer = TorchTrainer(
        train,
        train_loop_config={},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name="train", storage_path=sys.argv[2]),
    )
    if "address" in sys.argv[1]:  # the same mechanism, and Ray Train is slow to start
        found["training"] = trainer.fit().return_value
print(json.dumps(found))
"""


@pytest.fixture(params=["private", "joined"])
def cluster(request):
    """Settings of a cluster with one node of 2 CPUs and GPU 0."""
    if request.param == "private":
        return {"num_cpus": 2}
    raylets = request.getfixturevalue("raylets")
    raylets.cluster.add_node(num_cpus=2, num_gpus=1, include_dashboard=False, dashboard_agent_listen_port=None)
    return {"address": raylets.address}


def test_workers_without_a_reserved_gpu_see_none_and_the_others_see_theirs(cluster, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if "num_cpus" in cluster:
        environment["RAY_OVERRIDE_RESOURCES"] = json.dumps({"GPU": 1})
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    done = subprocess.run(
        [sys.executable, script, json.dumps(cluster), str(tmp_path)],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    training = found.pop("training", ["", "cpu"])
    assert (found, training) == ({"none": "", "half": "0"}, ["", "cpu"])
