"""What is held out decides which checkpoint is exported, and when to end."""

from __future__ import annotations

import math
import shutil

import pytest

from carevl.training.checkpoints import HeldOut
from carevl.training.progress import read_log
from carevl.training.worker import run_loop


def test_the_earliest_smallest_loss_is_the_best():
    held_out = HeldOut(2, {2: 3.0, 4: 1.0, 6: 1.0})
    assert held_out.best == 4
    assert not held_out.exhausted
    held_out.losses[8] = math.nan
    assert held_out.exhausted
    assert not HeldOut(0, held_out.losses).exhausted
    assert HeldOut(2).best is None


def test_training_ends_when_it_only_learns_by_heart_and_exports_the_best(begin, sft_rows, quick, tmp_path):
    training = quick(epochs=200, holdout=0.3, patience=3, learning_rate=1e-2, checkpoint_steps=2, keep_checkpoints=1)
    loop, _ = begin("sft", sft_rows, training)
    assert run_loop(loop) is None
    out = loop.assignment.out
    curve = read_log(out / "steps.jsonl")
    losses = {facts["step"]: facts["held_out"]["loss"] for facts in curve if "held_out" in facts}
    best = min(losses, key=losses.get)
    assert best < curve[-1]["step"] == best + 6 < loop.assignment.schedule.steps
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        f"step-{best:08d}",
        f"step-{best + 6:08d}",
    ]
    exported, _ = begin("sft", sft_rows, training, judge=out / "judge", out=tmp_path / "again")
    assert exported.evaluate()["loss"] == pytest.approx(losses[best], abs=1e-4)


def test_a_training_that_was_ended_early_only_exports_when_it_is_taken_up(begin, sft_rows, quick):
    training = quick(epochs=100, holdout=0.3, patience=1, checkpoint_steps=1, learning_rate=0.3)
    loop, _ = begin("sft", sft_rows, training)
    assert run_loop(loop) is None
    log, judge = loop.assignment.out / "steps.jsonl", loop.assignment.out / "judge"
    lines = read_log(log)
    assert len(lines) < 50
    shutil.rmtree(judge)
    assert run_loop(begin("sft", sft_rows, training)[0]) is None
    assert read_log(log) == lines
    assert judge.exists()
