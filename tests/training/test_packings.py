"""A step of every family in both packings: log-probabilities, loss and gradients, under weights that attend to much.

Bounds are for float32. The largest differences that were measured over all families, phases and kinds of training:
log-probabilities of judgments 5e-5 nats of some 200, the loss 1e-6, gradients 2e-6 of the largest one.
"""

from __future__ import annotations

import io
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from carevl.models import tree_attention
from carevl.models.judge_files import load_processor
from carevl.models.prompts import Prompt, encode_prompts
from carevl.training.judge import load_judge
from carevl.training.trial import try_packing
from tests.helpers.families import FAMILIES, SHARING, VARIANTS
from tests.training.packed_step import WEIGHTS, Difference, PackedStep, draw_conversations, draw_rows

pytestmark = pytest.mark.train

BOUND = Difference(values=2e-4, loss=1e-5, gradients=4e-6)
NEEDS_AN_IMAGE = ("paligemma",)
"""Families whose processors refuse a prompt without an image."""
ONE_SIZE = ("minicpmv4_6",)
"""Families that take all images of a batch for as large as the first."""
_OFTEN = ("gemma3", "internvl", "llama4", "qwen3_vl")


def _each(names):
    return [pytest.param(name, marks=() if name in _OFTEN else pytest.mark.nightly) for name in names]


def _assert_within_bounds(difference):
    assert difference.values < BOUND.values
    assert difference.loss < BOUND.loss
    assert difference.gradients < BOUND.gradients


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("phase", ["sft", "dpo"])
@pytest.mark.parametrize("family", _each([*SHARING, *VARIANTS]))
def test_a_step_on_shared_prefixes_is_the_step_with_a_prompt_for_every_judgment(
    family, phase, weights, family_directory
):
    step = PackedStep(family_directory(family), phase, WEIGHTS[weights])
    _assert_within_bounds(Difference.between(step.compute("shared"), step.compute("plain")))


@pytest.mark.parametrize("phase", ["sft", "dpo"])
@pytest.mark.parametrize("family", _each([*SHARING, *VARIANTS]))
def test_several_images_none_and_one_in_a_later_turn_are_shared_as_exactly(family, phase, family_directory):
    draw = partial(draw_conversations, text_only=family not in NEEDS_AN_IMAGE)
    step = PackedStep(family_directory(family), phase, WEIGHTS["lora"], draw)
    assert step.items.n_images == [3, 2, 0][: len(step.items)]
    _assert_within_bounds(Difference.between(step.compute("shared"), step.compute("plain")))


@pytest.mark.parametrize("family", _each([*FAMILIES, *VARIANTS]))
def test_several_images_are_computed_as_the_model_computes_its_own_loss(family, family_directory):
    draw = partial(draw_conversations, text_only=family not in NEEDS_AN_IMAGE, one_size=family in ONE_SIZE)
    step = PackedStep(family_directory(family), "sft", WEIGHTS["lora"], draw)
    _assert_within_bounds(Difference.between(step.compute("plain"), step.compute_by_labels()))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("family", _each([*FAMILIES, *VARIANTS]))
def test_a_step_with_a_prompt_for_every_judgment_is_the_models_own_loss_of_labels(family, weights, family_directory):
    step = PackedStep(family_directory(family), "sft", WEIGHTS[weights])
    _assert_within_bounds(Difference.between(step.compute("plain"), step.compute_by_labels()))


def _leak(packed, rule=None):
    """The blocks of a row, in which a judgment sees the one before it."""

    def open_up(block):
        seen = block.mask
        if seen is None:
            return block
        return replace(block, mask=seen | torch.ones_like(seen).tril(seen.shape[1] - seen.shape[0]))

    return [open_up(block) for block in _blocks(packed, rule)]


_blocks = tree_attention.blocks


@pytest.mark.parametrize("family", _each([*SHARING, *VARIANTS]))
def test_judgments_that_see_each_other_are_found_when_a_judge_is_loaded(family, family_directory, monkeypatch):
    directory = family_directory(family)
    model, processor = load_judge(directory, "float32").eval(), load_processor(directory)
    monkeypatch.setattr(tree_attention, "blocks", _leak)
    trial = try_packing(model, processor)
    assert trial.packing == "plain"
    assert "nats off behind one prompt" in trial.reason
    assert trial.difference > 0.01
    step = PackedStep(directory, "dpo", WEIGHTS["lora"])
    difference = Difference.between(step.compute("shared"), step.compute("plain"))
    assert difference.values > 100 * BOUND.values
    assert difference.gradients > 100 * BOUND.gradients


@pytest.mark.nightly
@pytest.mark.parametrize("phase", ["sft", "dpo"])
def test_a_judge_whose_language_is_real_is_exact_too(phase, smollm_judge):
    """SmolLM2-135M: attention that was trained, and a tokenizer that merges across boundaries.

    Measured: log-probabilities within 2e-5 nats of 20 to 60, gradients within 2e-6 of the largest.
    """
    step = PackedStep(smollm_judge, phase, WEIGHTS["lora"])
    difference = Difference.between(step.compute("shared"), step.compute("plain"))
    assert difference.values < 1e-4
    assert difference.gradients < 1e-5
    for row in draw_rows(phase):
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        content = [{"type": "image", "image": image}, {"type": "text", "text": row["prompt"]}]
        [expected] = step.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        assert encode_prompts(step.processor, [Prompt(row["prompt"])], [[image]]).ids == (expected,)
