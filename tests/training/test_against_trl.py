"""Losses, rewards and gradients of every family that TRL trains against TRL's, step by step, and the tokens of both.

The largest differences that were measured over all of them: losses 5e-6, rewards 2e-5, log-probabilities of judgments
4e-4 nats of some 160, norms of gradients 2e-5 of themselves in the first step and 1.3e-4 in the third.
"""

from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from carevl.training.reference import Reference
from carevl.training.steps import Objective
from tests.helpers.families import FAMILIES
from tests.training.packed_step import draw_rows

pytest.importorskip("trl", reason="trl is not installed; it is in the dev extra")

from tests.training import trl_peer

pytestmark = pytest.mark.train

REFUSED = {
    "llama4": (RuntimeError, "same dtype"),  # pixels stay in bfloat16, whatever the model is in
    "minicpmv4_6": (RuntimeError, "is invalid for input of size"),  # images of several sizes in one batch
    "mllama": (IndexError, "is out of bounds"),  # its cross_attention_mask ends with the prompt
    "paligemma": (ValueError, "`images` are expected"),  # its processor takes no completion without an image
}
"""How a step of a family ends that TRL does not train, and why."""
_OFTEN = ("gemma3", "internvl", "paligemma", "qwen3_vl")
EVERY = [pytest.param(name, marks=() if name in _OFTEN else pytest.mark.nightly) for name in FAMILIES]
EXACT = {"lora": None, "train": "all", "learning_rate": 1e-3, "epochs": 3, "batch_size": 3, "batch_tokens": 4000}
REWARDS = [f"{kind}/{side}" for kind in ("rewards", "logps") for side in ("chosen", "rejected")]


def _rows(phase):
    """Three items about images of several sizes, of one target each in sft."""
    rows = draw_rows(phase)
    return pa.Table.from_pylist(rows[::2] if phase == "sft" else rows)


def _train(begin, phase, judge, tmp_path, training):
    """The curves of our loop and of TRL's trainer on the same steps, and their tokens in the order of the rows."""
    rows = _rows(phase)
    with_reference = Reference(judge, training)(rows) if phase == "dpo" else rows
    loop, errors = begin(phase, with_reference, training, judge=judge)
    assert errors == []
    schedule = loop.config.schedule
    order = [i for step in range(schedule.steps) for i in schedule.step(step)]
    trainer = trl_peer.make_trainer(phase, rows, order, judge, tmp_path / "trl", training)
    trees = [loop.items.tree(i) for i in order]
    ours = [[[*tree.prefix, *branch] for branch in tree.branches] for tree in trees]
    theirs = [row for batch in trainer.get_train_dataloader() for row in _read_tokens(batch, phase)]
    assert ours == theirs
    trainer.train()
    return [loop.step(step) for step in range(schedule.steps)], trl_peer.history(trainer)


def _read_tokens(batch, phase):
    """The tokens of every row of a batch; of a pair those of chosen, then those of rejected."""
    rows = [ids[seen.bool()].tolist() for ids, seen in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    n = len(rows) // (2 if phase == "dpo" else 1)
    return [list(sides) for sides in zip(*(rows[start : start + n] for start in range(0, len(rows), n)), strict=True)]


def _column(curve, name):
    return [facts[name] for facts in curve]


@pytest.mark.parametrize("phase", ["sft", "dpo"])
@pytest.mark.parametrize("family", EVERY)
def test_it_takes_the_steps_of_trl(family, phase, begin, family_directory, quick, tmp_path):
    training = quick(**EXACT, dpo={"nll_weight": 0.5, "beta": 0.3})
    if family in REFUSED:
        kind, sentence = REFUSED[family]
        trainer = trl_peer.make_trainer(phase, _rows(phase), range(3), family_directory(family), tmp_path, training)
        with pytest.raises(kind, match=sentence):
            trainer.train()
        return
    ours, theirs = _train(begin, phase, family_directory(family), tmp_path, training)
    assert len(ours) == len(theirs) == 3
    assert _column(ours, "loss") == pytest.approx(_column(theirs, "loss"), abs=5e-5)
    assert ours[0]["loss"] - ours[-1]["loss"] > 0.1
    mine, expected = _column(ours, "gradient_norm"), _column(theirs, "grad_norm")
    assert mine[0] == pytest.approx(expected[0], rel=2e-5)
    # Adam's first steps are as long for a gradient that is rounding as for any other, so that rounding grows by them.
    assert mine[1:] == pytest.approx(expected[1:], rel=1e-3)
    if phase == "dpo":
        for name in ("rewards/margins", "rewards/accuracies", *REWARDS):
            assert _column(ours, name) == pytest.approx(_column(theirs, name), abs=3e-4, rel=1e-5), name
        assert ours[-1]["rewards/chosen"] > 0.1 * training.dpo.beta


def test_gradients_of_dpo_are_those_of_trl(begin, family_directory, quick, tmp_path):
    judge, training = family_directory("qwen2_5_vl"), quick(**EXACT)
    rows = _rows("dpo")
    loop, _ = begin("dpo", Reference(judge, training)(rows), training, judge=judge)
    trainer = trl_peer.make_trainer("dpo", rows, range(3), judge, tmp_path / "trl", training)
    mine, theirs = loop.judge.model, trainer.model
    for model in (mine, theirs):  # away from the reference, where every reward is 0
        weight = model.get_output_embeddings().weight.data
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    [batch] = trainer.get_train_dataloader()
    trainer.compute_loss(theirs.train(), batch).backward()
    packed = loop.items.collate(range(3), loop.processor, mine, training.packing)
    objective = Objective.of(training.dpo, loop.items, range(3))
    share, sums = objective.compute_share(loop.judge(packed), loop.items, range(3))
    share.backward()
    assert abs(sums.terms["rewards/chosen"]) > 0.1 * training.dpo.beta
    expected = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in mine.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-4
