"""Losses, rewards and gradients against TRL, step by step, on a tiny Qwen2.5-VL."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from carevl.miniworld.models import make_processor, make_tokenizer
from carevl.training.reference import Reference
from carevl.training.steps import Objective

pytest.importorskip("trl", reason="trl is not installed; it is in the dev extra")

from tests.training import trl_peer

pytestmark = pytest.mark.train

EXACT = {"lora": None, "learning_rate": 1e-3, "epochs": 2}


@pytest.fixture(scope="module")
def qwen_2_5(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen_2_5")
    tokenizer = make_tokenizer()
    processor = make_processor(tokenizer)
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    torch.manual_seed(5)
    config = hf.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "pad_token_id": tokenizer.pad_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 64,
            "patch_size": processor.image_processor.patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 4 * processor.image_processor.patch_size,
            "fullatt_block_indexes": [1],
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    hf.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _both(begin, phase, rows, judge, tmp_path, training):
    """The curves of our loop and of TRL's trainer on the same steps."""
    loop, _ = begin(phase, rows, training, judge=judge)
    schedule = loop.config.schedule
    order = [i for step in range(schedule.steps) for i in schedule.step(step)]
    trainer = trl_peer.make_trainer(phase, rows, order, judge, tmp_path / "trl", training)
    trainer.train()
    return [loop.step(step) for step in range(schedule.steps)], trl_peer.history(trainer)


def _column(curve, name):
    return [facts[name] for facts in curve]


def test_sft_takes_the_steps_of_trl(begin, qwen_2_5, sft_rows, quick, tmp_path):
    ours, theirs = _both(begin, "sft", sft_rows, qwen_2_5, tmp_path, quick(**EXACT))
    assert len(ours) == len(theirs) == 4
    assert _column(ours, "loss") == pytest.approx(_column(theirs, "loss"), abs=1e-4)
    assert _column(ours, "gradient_norm") == pytest.approx(_column(theirs, "grad_norm"), abs=1e-4)
    assert ours[0]["loss"] - ours[-1]["loss"] > 0.1


def test_dpo_takes_the_steps_of_trl(begin, qwen_2_5, dpo_rows, quick, tmp_path):
    training = quick(**EXACT, dpo={"nll_weight": 0.5, "beta": 0.3})
    rows = Reference(qwen_2_5, training)(dpo_rows)
    ours, theirs = _both(begin, "dpo", rows, qwen_2_5, tmp_path, training)
    assert len(ours) == len(theirs) == 4
    assert _column(ours, "loss") == pytest.approx(_column(theirs, "loss"), abs=1e-4)
    sides = [f"{kind}/{side}" for kind in ("rewards", "logps") for side in ("chosen", "rejected")]
    for name in ("rewards/margins", "rewards/accuracies", *sides):
        assert _column(ours, name) == pytest.approx(_column(theirs, name), rel=1e-5, abs=1e-4), name
    assert _column(ours, "gradient_norm") == pytest.approx(_column(theirs, "grad_norm"), rel=1e-5, abs=1e-4)
    assert ours[-1]["rewards/chosen"] > 0.1 * training.dpo.beta


def test_gradients_of_dpo_are_those_of_trl(begin, qwen_2_5, dpo_rows, quick, tmp_path):
    training = quick(**EXACT | {"batch_size": 8})
    loop, _ = begin("dpo", Reference(qwen_2_5, training)(dpo_rows), training, judge=qwen_2_5)
    trainer = trl_peer.make_trainer("dpo", dpo_rows, range(8), qwen_2_5, tmp_path / "trl", training)
    mine, theirs = loop.judge.model, trainer.model
    for model in (mine, theirs):  # away from the reference, where every reward is 0
        weight = model.get_output_embeddings().weight.data
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    [batch] = trainer.get_train_dataloader()
    trainer.compute_loss(theirs.train(), batch).backward()
    packed = loop.items.collate(range(8), loop.processor, mine, training.packing)
    objective = Objective.of(training.dpo, loop.items, range(8))
    share, sums = objective.compute_share(loop.judge(packed), loop.items, range(8))
    share.backward()
    assert abs(sums.terms["rewards/chosen"]) > 0.1 * training.dpo.beta
    expected = {name: weight.grad for name, weight in theirs.named_parameters() if weight.grad is not None}
    found = {name: weight.grad for name, weight in mine.named_parameters() if weight.grad is not None}
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-4
