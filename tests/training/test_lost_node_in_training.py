"""Two training workers on two raylets, one of which is killed and replaced.

Nightly: four raylets on one machine take minutes; a worker and a driver that are killed are tested in test_train.py.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from carevl.training.progress import read_log

SCRIPT = Path(__file__).with_name("train_on_nodes.py")
WORKERS = {"count": 2, "num_cpus": 0.5, "resources": {"trainer": 1}, "placement": "STRICT_SPREAD"}


@pytest.mark.fault
@pytest.mark.nightly
def test_a_lost_node_costs_the_steps_since_the_last_checkpoint(raylets, begin, judge, sft_rows, write, quick, tmp_path):
    training = quick(epochs=20, checkpoint_steps=2, workers=WORKERS)
    loop, _ = begin("sft", sft_rows, training)
    expected = [loop.step(k)["loss"] for k in range(loop.config.schedule.steps)]
    raylets.add()
    nodes = [raylets.add(trainer=1) for _ in range(2)]
    out, log = tmp_path / "shared", tmp_path / "log"
    command = [sys.executable, SCRIPT, raylets.address, write(sft_rows), judge, out, training.model_dump_json()]
    with log.open("w") as stream:
        driver = subprocess.Popen(command, stdout=stream, stderr=stream)
    while len(before := read_log(out / "steps.jsonl")) < 6:
        assert driver.poll() is None, log.read_text()
        time.sleep(0.02)
    assert all(raylets.busy(node, "RayTrainWorker") for node in nodes)
    raylets.kill(nodes[1])
    raylets.add(trainer=1)
    assert driver.wait() == 0, log.read_text()

    curve = read_log(out / "steps.jsonl")
    assert [facts["step"] for facts in curve] == list(range(1, 41))
    assert [facts["loss"] for facts in curve] == pytest.approx(expected, abs=1e-4)
    # The times of a step would differ, had it been taken again.
    assert curve[:2] == before[:2]
    assert (out / "judge" / "config.json").exists()
