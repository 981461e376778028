"""`multi-node` on four raylets with four pretended GPUs each, and a head that only schedules."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.helpers.rehearsal import (
    FEW_PAIRS,
    LEARNED,
    REPOSITORY,
    Rehearsal,
    check_offline,
    check_rehearsal,
    data_of,
    environment_for,
    words_of,
)

pytestmark = [pytest.mark.train, pytest.mark.nightly]
PLACE = Path(__file__).with_name("place_everything.py")
NODES, GPUS, CPUS = 4, 4, 48
LOWERED = [
    "captioner.pool.concurrency=1..2",
    *(f"experts.{n}.pool.concurrency=1..2" for n in range(3)),
    "judge.pool.concurrency=1..2",
    "judge.pool.num_gpus=1",
    "judge.tensor_parallel=1",
    "sft.workers.count=2",
    "dpo.workers.count=2",
]
"""This machine has no room for more engines and workers; the full numbers are placed without them."""


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory):
    return environment_for(hub, tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def address(environment, ray_directory):
    """Where drivers join."""
    from ray.cluster_utils import Cluster

    quiet = {"include_dashboard": False, "dashboard_agent_listen_port": None, "object_store_memory": 200_000_000}
    with pytest.MonkeyPatch.context() as patch, ray_directory() as directory:
        for name, value in {**environment, "RAY_TMPDIR": str(directory)}.items():
            patch.setenv(name, value)
        cluster = Cluster()
        cluster.add_node(num_cpus=0, **quiet)
        for _ in range(NODES):
            cluster.add_node(num_cpus=CPUS, num_gpus=GPUS, **quiet)
        yield str(cluster.address)
        cluster.shutdown()


def test_everything_that_the_preset_reserves_finds_its_place_and_no_gpu_is_given_out_twice(address, tmp_path):
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run([sys.executable, PLACE, address, tmp_path], stdout=log, stderr=log, check=False)
    assert done.returncode == 0, (tmp_path / "log").read_text()
    for stage, actors, gpus in (("caption", 16, 16), ("score", 30, 16), ("sample", 4, 16), ("sft", 4, 4)):
        reports = [json.loads(file.read_text()) for file in (tmp_path / stage).glob("*.json")]
        assert len(reports) == actors
        taken = defaultdict(float)
        for report in reports:
            for gpu in report["gpus"]:
                taken[report["node"], gpu] += min(report["share"], 1)
        assert len({node for node, _ in taken}) <= NODES
        assert {gpu for _, gpu in taken} <= {str(n) for n in range(GPUS)}
        assert max(taken.values()) <= 1
        assert len(taken) <= gpus


@pytest.fixture(scope="module", params=["as in the preset", "with labels and a benchmark"])
def rehearsal(request, address, environment, world, tmp_path_factory):
    directory = tmp_path_factory.mktemp("multi")
    overrides = [*data_of(world, labels=request.param.startswith("with")), f"cluster.address={address}"]
    overrides += [*LOWERED, *LEARNED, *FEW_PAIRS]
    command = [sys.executable, REPOSITORY / "ray_jobs" / "pipeline.py", "--settings", "multi-node", "--rehearse"]
    rehearsal = Rehearsal([*command, *words_of(overrides)], directory / "run", environment)
    done = rehearsal.run_again()
    assert done.returncode == 0, done.stdout + done.stderr
    return rehearsal


def test_it_ends_in_a_judge_and_says_everywhere_that_it_is_a_rehearsal(rehearsal):
    check_rehearsal(rehearsal.run)


def test_offline_the_same_command_makes_nothing_again(rehearsal, hub):
    hub.forget()
    check_offline(rehearsal)
    assert not hub.requests
