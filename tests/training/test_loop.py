"""What a worker learns, alone and in this process."""

from __future__ import annotations

import math

import pytest
import torch
import transformers as hf
from peft import PeftModel

from carevl.models.tree_attention import TREES, set_attention
from carevl.training.judge import log_probabilities
from carevl.training.reference import Reference

pytestmark = pytest.mark.train


def _curve(loop, steps=None):
    return [loop.step(k) for k in range(loop.config.schedule.steps if steps is None else steps)]


def _losses(curve):
    return [facts["loss"] for facts in curve]


def _log_probabilities(model, loop):
    set_attention(model, TREES)
    batch = loop.items.collate(range(len(loop.items)), loop.processor, model, "shared")
    with torch.no_grad():
        return log_probabilities(model, batch)


def test_sft_learns_a_handful_of_rows_by_heart(begin, sft_rows, quick):
    loop, _ = begin("sft", sft_rows, quick(epochs=25, lora=None))
    curve = _curve(loop)
    assert curve[0]["loss"] > 5
    assert curve[-1]["loss"] < 0.3
    assert all(facts["gradient_norm"] > 0 for facts in curve)


def test_dpo_begins_at_its_reference_and_raises_the_margin(begin, judge, dpo_rows, quick):
    training = quick(epochs=15, lora=None, learning_rate=2e-3)
    loop, _ = begin("dpo", Reference(judge, training)(dpo_rows), training)
    curve = _curve(loop)
    assert curve[0]["reference_gap"] < 1e-4
    assert curve[0]["preference_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert curve[-1]["rewards/margins"] > 0.2
    assert curve[-1]["rewards/accuracies"] == 1.0
    assert curve[-1]["chosen_loss"] < curve[0]["chosen_loss"]


def test_phase_1_rows_are_replayed_in_every_step(begin, judge, dpo_rows, sft_rows, quick, write):
    training = quick(epochs=2, dpo={"replay_share": 0.5})
    rows = Reference(judge, training)(dpo_rows)
    loop, _ = begin("dpo", rows, training, replay=[write(sft_rows, "replay")])
    curve = _curve(loop)
    assert [facts["items"] for facts in curve] == [6] * 4
    assert all(facts["target_loss"] > 0 for facts in curve)


def test_the_cut_into_micro_batches_does_not_change_the_curve(begin, sft_rows, quick, tmp_path):
    curves = []
    for n, (batch_tokens, packing) in enumerate([(300, "shared"), (4000, "shared"), (600, "plain")]):
        training = quick(epochs=3, batch_tokens=batch_tokens, packing=packing)
        curves.append(_curve(begin("sft", sft_rows, training, out=tmp_path / str(n))[0]))
    for other in curves[1:]:
        assert _losses(curves[0]) == pytest.approx(_losses(other), abs=1e-4)
        assert curves[0][0]["gradient_norm"] == pytest.approx(other[0]["gradient_norm"], rel=1e-3)


def test_a_training_goes_on_with_fewer_tokens_at_a_time(begin, sft_rows, quick, tmp_path):
    training = quick(epochs=3, batch_size=3, batch_tokens=4000)
    loop, _ = begin("sft", sft_rows, training, out=tmp_path / "out")
    whole = _curve(loop, 4)
    loop.save(str(tmp_path / "checkpoint"), 4)
    whole += [loop.step(k) for k in range(4, 9)]
    smaller = training.model_copy(update={"batch_tokens": max(loop.items.lengths)})
    resumed, _ = begin("sft", sft_rows, smaller, out=tmp_path / "out")
    assert len(resumed.shard(resumed.config.schedule.step(0))) == 3 > len(loop.shard(loop.config.schedule.step(0)))
    assert resumed.load(str(tmp_path / "checkpoint")) == 4
    rest = [resumed.step(k) for k in range(4, 9)]
    assert _losses(rest) == pytest.approx(_losses(whole[4:]), abs=1e-4)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_checkpoint_in_mid_epoch_goes_on_with_the_same_curve(begin, sft_rows, quick, tmp_path, stage):
    training = quick(epochs=3, batch_size=3, schedule="cosine", warmup=0.3, zero={"stage": stage})
    loop, _ = begin("sft", sft_rows, training)
    whole = _curve(loop, 4)
    loop.save(str(tmp_path / "checkpoint"), 4)
    whole += [loop.step(k) for k in range(4, 9)]
    resumed, _ = begin("sft", sft_rows, training)
    assert resumed.load(str(tmp_path / "checkpoint")) == 4
    rest = [resumed.step(k) for k in range(4, 9)]
    assert _losses(rest) == pytest.approx(_losses(whole[4:]), abs=1e-6)
    assert [facts["learning_rate"] for facts in rest] == [facts["learning_rate"] for facts in whole[4:]]


def test_trained_adapter_and_merged_judge_agree(begin, judge, sft_rows, quick):
    loop, _ = begin("sft", sft_rows, quick(epochs=3))
    before = _log_probabilities(loop.judge.model, loop)
    _curve(loop)
    loop.judge.eval()
    trained = _log_probabilities(loop.judge.model, loop)
    loop.export()
    out = loop.config.out
    base = hf.AutoModelForImageTextToText.from_pretrained(judge)
    reloaded = PeftModel.from_pretrained(base, out / "adapter").get_base_model()
    merged = hf.AutoModelForImageTextToText.from_pretrained(out / "judge")
    assert (trained - before).abs().max() > 1
    assert (_log_probabilities(reloaded, loop) - trained).abs().max() < 1e-4
    assert (_log_probabilities(merged, loop) - trained).abs().max() < 1e-4
    for name in ("judge", "adapter"):
        assert len({file.stat().st_mode for file in (out / name).iterdir()}) == 1
    processor = hf.AutoProcessor.from_pretrained(out / "judge")
    assert processor.chat_template == hf.AutoProcessor.from_pretrained(judge).chat_template
    files = ["adapter", "data", "judge", "rounding.json", "trained.json", "training.json"]
    assert sorted(path.name for path in out.iterdir()) == files


def test_all_weights_but_those_of_the_vision_tower_are_trained(begin, judge, sft_rows, quick):
    loop, _ = begin("sft", sft_rows, quick(lora=None, learning_rate=1e-3, gradient_checkpointing=True))
    _curve(loop)
    loop.export()
    before = hf.AutoModelForImageTextToText.from_pretrained(judge).state_dict()
    after = hf.AutoModelForImageTextToText.from_pretrained(loop.config.out / "judge").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert {name for name in before if name not in changed} >= {name for name in before if ".visual." in name}
    assert not any(".visual." in name for name in changed)
    assert sum(".layers." in name for name in changed) == sum("language_model.layers." in name for name in before)
    assert not (loop.config.out / "adapter").exists()


def test_the_vision_tower_is_trained_when_it_is_not_frozen(begin, sft_rows, quick):
    loop, _ = begin("sft", sft_rows, quick(lora=None, train="all", learning_rate=1e-3))
    before = {name: weight.detach().clone() for name, weight in loop.judge.named_parameters() if ".visual." in name}
    _curve(loop, 1)
    after = dict(loop.judge.named_parameters())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_loss_that_is_no_number_names_its_items_and_changes_nothing(
    begin, judge, sft_rows, quick, tmp_path, break_judge
):
    directory, number = break_judge(judge, sft_rows, tmp_path / "broken")
    loop, _ = begin("sft", sft_rows, quick(batch_size=8), judge=directory)
    before = [weight.detach().clone() for weight in loop.weights]
    facts = loop.step(0)
    assert facts["broken"] == [f"item-{number}"]
    assert all(torch.equal(was, weight) for was, weight in zip(before, loop.weights, strict=True))
