"""The check for GPUs, in small, on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm

CHECK = Path(__file__).with_name("check.py")


ABSENT = ("pydantic", "mistral_common", "ray", "vllm", "deepspeed", "datasets", "trl", "matplotlib")
"""Packages that a machine for the check need not have."""


def _check(*arguments, without=()):
    hidden = dict(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(map(str, without))}
    return subprocess.run(
        [sys.executable, CHECK, *arguments], env=hidden, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize(
    "steps",
    [
        ("shipped", "reward", "decoding", "merging"),
        pytest.param(("step", "attention", "families"), marks=pytest.mark.nightly),
    ],
)
def test_pytorch_transformers_peft_and_pyarrow_are_enough(steps, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    _expect_within_bounds(_check("--small", *steps, without=[tmp_path]), steps)


@pytest.mark.nightly
def test_deepspeed_is_checked_where_there_is_one():
    _expect_within_bounds(_check("--small", "training", "optimisers"), ("training", "optimisers"))


def _expect_within_bounds(finished, steps):
    assert finished.returncode == 0, finished.stderr[-3000:]
    lines = [json.loads(line) for line in finished.stdout.splitlines() if line.startswith("{")]
    assert [line["step"] for line in lines if line["figure"] == "step_of_the_check_seconds"] == list(steps)
    bounded = [line for line in lines if "most" in line]
    assert bounded
    assert all(line["value"] <= line["most"] for line in bounded)


def test_what_cannot_be_checked_is_said():
    unknown = _check("--small", "rewards")
    assert unknown.returncode == 2
    assert "there is no step rewards; there are shipped" in unknown.stderr
    without = _check("decoding")
    assert without.returncode == 2
    assert "torch sees no GPU here; --small runs on a CPU" in without.stderr
