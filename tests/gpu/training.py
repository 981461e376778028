"""Steps of the product's own training loop, on the shipped judge: the same curve on a GPU as on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.gpu.figures import Check

_BOUNDS = {"float32": 2e-3, "bfloat16": 0.1}
"""Most that a loss may differ, as a share of it."""

_TRAINING = """
import json, os, sys, tempfile
from pathlib import Path
import carevl
import pyarrow.parquet as pq
from carevl.miniworld.weights import WEIGHTS
from carevl.settings.training import Training
from carevl.training.driver import prepare_training
from carevl.training.loop import Loop
from carevl.training.worker import join_workers
from tests.gpu.shipped import training_rows
alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[3]}
os.environ.update(alone)
join_workers(sys.argv[2])
with tempfile.TemporaryDirectory() as directory:
    rows = Path(directory) / "rows.parquet"
    pq.write_table(training_rows(16).drop_columns(["rejected"]).rename_columns({"chosen": "target"}), rows)
    settings = Training.model_validate({
        "dtype": sys.argv[1], "learning_rate": 1e-3, "batch_size": 8, "epochs": 3, "batch_tokens": 600,
        "gradient_checkpointing": True, "lora": {"rank": 16, "alpha": 32},
    })
    config, _, _ = prepare_training("sft", [rows], WEIGHTS / "judge", Path(directory) / "out", settings)
    loop = Loop(config, 0, 1)
    curve = [loop.step(n) for n in range(config.schedule.steps)]
print(json.dumps({"losses": [facts["loss"] for facts in curve], "remarks": loop.remarks}))
"""


def run(check: Check) -> None:
    """Write the largest difference between two curves of six steps, by format. Left out without DeepSpeed."""
    if find_spec("deepspeed") is None:
        check.figure("curve_from_cpu", None, skipped="deepspeed is not installed")
        return
    expected, _ = _train("float32", on_gpu=False)
    for dtype, most in _BOUNDS.items():
        losses, remarks = _train(dtype, on_gpu=check.on_gpu)
        off = max(abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True))
        rounded = [round(loss, 4) for loss in losses]
        check.figure("curve_from_cpu", off, most=most, dtype=dtype, losses=rounded, remarks=remarks)


def _train(dtype: str, *, on_gpu: bool) -> tuple[list[float], dict[str, str]]:
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    if not on_gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    arguments = [dtype, "nccl" if on_gpu else "gloo", "29517"]
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _TRAINING, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise RuntimeError(finished.stderr.strip()[-1500:])
    facts = json.loads(finished.stdout.strip().splitlines()[-1])
    return facts["losses"], facts["remarks"]
