"""What is held out, or labelled, decides which checkpoint is exported, and when to end."""

from __future__ import annotations

import math
import shutil

import pyarrow as pa
import pytest

from carevl.judging.prompts import write_judgment
from carevl.training.progress import read_log
from carevl.training.validation import CheckpointSelector, validate
from carevl.training.worker import run_loop


def _held_out(*losses, rates=None):
    rates = rates or [1.0] * len(losses)
    pairs = enumerate(zip(losses, rates, strict=True), 1)
    return {2 * n: {"held_out": {"loss": loss, "parse_rate": rate}} for n, (loss, rate) in pairs}


def test_the_earliest_smallest_loss_is_the_best():
    selector = CheckpointSelector(2, _held_out(3.0, 1.0, 1.0))
    assert selector.best == 4
    assert not selector.exhausted
    selector.validations |= {8: {"held_out": {"loss": math.nan, "parse_rate": 1.0}}}
    assert selector.exhausted
    assert not CheckpointSelector(0, selector.validations).exhausted
    assert CheckpointSelector(2).best is None


def test_a_judge_that_lost_the_form_is_not_the_best():
    assert CheckpointSelector(0, _held_out(3.0, 2.0, 1.0, rates=[0.9, 1.0, 0.5])).best == 4
    assert CheckpointSelector(0, _held_out(3.0, 2.0, 1.0, rates=[0.9, 1.0, 0.95])).best == 6


def test_labelled_pairs_decide_before_losses():
    seen = {
        2: {"dev_accuracy": 0.5, "held_out": {"loss": 1.0, "parse_rate": 1.0}},
        4: {"dev_accuracy": 0.6, "held_out": {"loss": 3.0, "parse_rate": 1.0}},
        6: {"dev_accuracy": 0.6, "held_out": {"loss": 2.0, "parse_rate": 1.0}},
    }
    assert CheckpointSelector(0, seen).best == 6
    assert (
        CheckpointSelector(0, {step: {"dev_accuracy": facts["dev_accuracy"]} for step, facts in seen.items()}).best == 4
    )


def _labelled(rows, right):
    """Every row twice, as if in both orders, with `Answer {right}` as the right verdict."""
    verdicts = {"chosen": write_judgment("", winner=right), "rejected": write_judgment("", winner=3 - right)}
    prompts = rows.select(["item_id", "image", "prompt"]).to_pylist()
    return pa.Table.from_pylist([row | verdicts for row in prompts for _ in range(2)])


def test_the_checkpoint_that_is_right_in_both_orders_is_exported(begin, sft_rows, quick, write, tmp_path):
    dev = _labelled(sft_rows, 1)
    targets = dev.select(["item_id", "image", "prompt"]).append_column("target", dev["chosen"])
    training = quick(epochs=8, patience=2, checkpoint_steps=2, batch_size=16, verdict_weight=2.0)
    loop, _ = begin("sft", targets, training, dev=[write(dev, "dev")])
    assert len(loop.dev) == 16
    assert len(loop.held_out) == 0
    assert run_loop(loop) is None
    curve = read_log(loop.config.out / "steps.jsonl")
    accuracies = {facts["step"]: facts["dev_accuracy"] for facts in curve if "dev_accuracy" in facts}
    assert max(accuracies.values()) == 1.0
    assert validate(loop)["dev_accuracy"] == 1.0
    wrong, _ = begin("sft", targets, training, dev=[write(_labelled(sft_rows, 2), "wrong")], out=tmp_path / "wrong")
    wrong.judge.load_state_dict(loop.judge.state_dict())
    assert validate(wrong)["dev_accuracy"] == 0.0


def test_training_ends_when_it_only_learns_by_heart_and_exports_the_best(begin, sft_rows, quick, tmp_path):
    training = quick(epochs=200, holdout=0.3, patience=3, learning_rate=1e-2, checkpoint_steps=2, keep_checkpoints=1)
    loop, _ = begin("sft", sft_rows, training)
    assert run_loop(loop) is None
    out = loop.config.out
    curve = read_log(out / "steps.jsonl")
    validations = {facts["step"]: facts for facts in curve if "held_out" in facts}
    best = CheckpointSelector(0, validations).best
    assert validations[2]["held_out"]["parse_rate"] < validations[best]["held_out"]["parse_rate"] == 1.0
    assert best < curve[-1]["step"] == best + 6 < loop.config.schedule.steps
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        f"step-{best:08d}",
        f"step-{best + 6:08d}",
    ]
    exported, _ = begin("sft", sft_rows, training, judge=out / "judge", out=tmp_path / "again")
    assert validate(exported)["held_out"]["loss"] == pytest.approx(validations[best]["held_out"]["loss"], abs=1e-4)


def test_a_training_that_was_ended_early_only_exports_when_it_is_taken_up(begin, sft_rows, quick):
    training = quick(epochs=100, holdout=0.3, patience=1, checkpoint_steps=1, learning_rate=0.3)
    loop, _ = begin("sft", sft_rows, training)
    assert run_loop(loop) is None
    log, judge = loop.config.out / "steps.jsonl", loop.config.out / "judge"
    lines = read_log(log)
    assert len(lines) < 50
    shutil.rmtree(judge)
    assert run_loop(begin("sft", sft_rows, training)[0]) is None
    assert read_log(log) == lines
    assert judge.exists()
