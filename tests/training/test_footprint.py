"""The memory that a training takes is known beforehand: computed from the configuration, held against a worker's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from carevl.models.memory_count import MemoryCounter
from carevl.settings.training import Lora, Training, Zero
from carevl.training.footprint import training_footprint
from tests.helpers.sized_judge import write_pairs, write_sized_judge

SCRIPT = Path(__file__).parent / "measured_worker.py"
SMALL = {"batch_tokens": 2048, "batch_size": 8, "epochs": 2}
LARGE = {"batch_tokens": 1024, "batch_size": 2, "epochs": 2, "gradient_checkpointing": True}
CASES = {
    "0.1B, adapters": ("0.1B", "sft", Training(**SMALL)),
    "0.1B, all weights": ("0.1B", "dpo", Training(**SMALL, lora=None)),
    "0.5B, adapters, bfloat16": ("0.5B", "dpo", Training(**LARGE, dtype="bfloat16")),
    "0.5B, all weights": ("0.5B", "sft", Training(**LARGE, lora=None)),
    "1.5B, adapters, bfloat16": ("1.5B", "sft", Training(**LARGE, dtype="bfloat16")),
    "3B, adapters, bfloat16": (
        "3B",
        "sft",
        Training(**{**LARGE, "batch_tokens": 640, "batch_size": 1}, dtype="bfloat16"),
    ),
}
"""Size of the judge, phase, settings; two steps of rows that are full."""


@pytest.mark.train
@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=() if name == "0.1B, adapters" else pytest.mark.nightly) for name in CASES]
)
def test_what_a_worker_takes_is_what_was_computed(case, tmp_path):
    size, phase, training = CASES[case]
    judge = write_sized_judge(tmp_path / "judge", size, training.dtype)
    targets, pairs = write_pairs(tmp_path, 16)
    rows = targets if phase == "sft" else pairs
    command = [sys.executable, SCRIPT, judge, rows, training.model_dump_json(), tmp_path / "out"]
    # What is freed goes back at once, as it does on a card.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    assert training_footprint(judge, training).total == pytest.approx(measured, rel=0.15)
    shutil.rmtree(tmp_path)  # gigabytes, which pytest would keep


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """A judge of 8 B without its weights."""
    return write_sized_judge(tmp_path_factory.mktemp("8B") / "judge", "8B", "bfloat16", weights=False)


def test_zero_spreads_what_it_spreads(configuration):
    def compute(stage, workers):
        zero, count = Zero(stage=stage), {"count": workers}
        training = Training(lora=None, dtype="bfloat16", zero=zero, workers=count, gradient_checkpointing=True)
        return training_footprint(configuration, training)

    alone = compute(0, 1)
    numbers = alone.gradients // 2
    assert alone.weights == pytest.approx(2 * (numbers + 676_550_144), rel=0.001)  # the vision tower is not trained
    assert alone.optimizer == 16 * numbers
    assert (compute(1, 4).optimizer, compute(1, 4).gradients) == (alone.optimizer // 4, alone.gradients)
    assert compute(2, 4).gradients == alone.gradients // 4
    assert compute(3, 4).weights == pytest.approx(alone.weights / 4 + 2e9, rel=0.01)
    assert compute(2, 4).activations == alone.activations


def test_activations_grow_with_the_row_and_checkpointing_saves_most(configuration):
    def compute(tokens, checkpointing):
        training = Training(dtype="bfloat16", batch_tokens=tokens, gradient_checkpointing=checkpointing)
        return training_footprint(configuration, training).activations

    assert compute(4096, False) == pytest.approx(2 * compute(2048, False), rel=0.15)
    assert compute(4096, True) < compute(4096, False) / 5


def test_a_reference_keeps_nothing_for_a_backward_pass(configuration):
    training = Training(dtype="bfloat16")
    trained, reference = (training_footprint(configuration, training, learns=learns) for learns in (True, False))
    assert reference.weights == trained.weights
    assert (reference.trained, reference.gradients, reference.optimizer) == (0, 0, 0)
    assert 0 < reference.activations < trained.activations / 20


def test_fewer_bits_make_the_base_smaller(configuration):
    full = training_footprint(configuration, Training(dtype="bfloat16")).weights
    four = training_footprint(configuration, Training(dtype="bfloat16", lora=Lora(base_bits=4))).weights
    assert 0.25 < four / full < 0.45


def test_what_was_there_before_and_what_is_freed_is_not_counted():
    with torch.device("meta"):
        weight = torch.empty(1000)
    with MemoryCounter() as counter:
        view = weight.view(10, 100).t()
        doubled = weight + weight
        del doubled
        tripled = 3 * weight
    assert view.shape == (100, 10)
    assert (counter.now, counter.peak) == (4000, 4000)
    assert tripled.nbytes == 4000


def test_an_architecture_that_computes_by_numbers_says_so(family_directory):
    footprint = training_footprint(family_directory("lfm2_vl"), Training())
    assert footprint.activations is None
    assert footprint.total == footprint.weights + footprint.trained + footprint.gradients + footprint.optimizer
    assert json.dumps(footprint.parts())
