"""The memory that a training worker takes: counted on the meta device, before anything is loaded.

A row of `batch_tokens` tokens goes through the judge's own code forward and backward there, so that what is kept for
the backward pass is what the architecture keeps. Weights, gradients and the states of AdamW are counted from their
shapes, and spread over the workers as ZeRO does (arXiv 1910.02054, section 3).
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carevl.models.families import family_of
from carevl.models.footprint import Footprint
from carevl.models.memory_count import COUNTED, MemoryCounter
from carevl.models.tree_attention import set_attention
from carevl.models.vocabulary import token_log_probabilities
from carevl.settings.training import Training
from carevl.training.engine import zero_stage
from carevl.training.skeleton import load_skeleton
from carevl.training.trainable import find_quantizable, make_trainable

_log = logging.getLogger(__name__)

_ANSWERS = 0.25
"""Share of a row's tokens that are answers, which alone meet the vocabulary."""
_LIVE = 10**9
"""Numbers that DeepSpeed keeps gathered under ZeRO 3 (`stage3_max_live_parameters`)."""


def training_footprint(judge: Path, training: Training, *, learns: bool = True) -> Footprint:
    """Return what each worker of a training takes.

    Args:
        judge: directory of the base; its configuration is enough.
        learns: whether it is trained; else it gives log-probabilities alone, as the reference of phase 2 does.
    """
    return _footprint(judge, training.model_dump_json(include=_RELEVANT), training.workers.count, learns)


_RELEVANT = {"batch_tokens", "packing", "dtype", "lora", "train", "gradient_checkpointing", "zero"}


@cache
def _footprint(judge: Path, settings: str, workers: int, learns: bool) -> Footprint:
    training = Training.model_validate_json(settings)
    model = load_skeleton(judge, training.dtype)
    quantized = set(find_quantizable(model)) if training.base_bits else set()
    weights = _weight_bytes(model, quantized, training.base_bits)
    set_attention(model, COUNTED)
    if not learns:
        model.requires_grad_(requires_grad=False)
        return Footprint(weights, activations=_activations(model, 0, training))
    with torch.device("meta"):
        trained = make_trainable(model, training)
    trained.train()
    own = [weight for weight in trained.parameters() if weight.requires_grad]
    numbers = sum(weight.numel() for weight in own)
    adapters = sum(weight.nbytes for weight in own) if training.lora else 0
    gradients = sum(weight.nbytes for weight in own)
    stage = zero_stage(training)
    spread = workers if stage >= 1 else 1
    states = 8 * numbers  # both moments, in float32
    if training.dtype == "bfloat16":
        states += 8 * numbers  # weights, and gradients of all micro-batches added up
    on_host = training.zero.offload_optimizer
    if stage == 3:
        weights = weights // workers + min(weights, _LIVE * model.dtype.itemsize)
    return Footprint(
        weights=weights,
        trained=adapters if stage < 3 else adapters // workers,
        gradients=gradients if stage < 2 else gradients // workers,
        optimizer=0 if on_host else states // spread,
        activations=_activations(model, gradients, training),
    )


def _weight_bytes(model: Any, quantized: set[str], bits: int | None) -> int:
    """Return the bytes of a model's weights; scales of quantised ones take about 6 % more of their own."""
    total: int = 0
    for name, weight in model.named_parameters():
        if bits and name.removesuffix(".weight") in quantized:
            total += int(weight.numel() * bits / 8 * 1.06)
        else:
            total += weight.nbytes
    return total + sum(int(buffer.nbytes) for buffer in model.buffers())


def _activations(model: Any, gradients: int, training: Training) -> int | None:
    """Return the most that a row of tokens takes, forward and backward, besides the gradients that stay."""
    family = family_of(model)
    positions = family.positions(model, torch.zeros((1, training.batch_tokens), dtype=torch.long), {})
    ids = torch.zeros((1, training.batch_tokens), dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "position_ids": positions.unsqueeze(-2).to("meta")}
    # Without a mask some architectures look for texts in the numbers of positions, with one others at its numbers.
    for more in ({"attention_mask": torch.ones_like(ids)}, {}):
        try:
            return max(0, _count_step(model, {**inputs, **more}) - gradients)
        except Exception as error:
            _log.info("activations of %s cannot be counted: %s", model.config.model_type, error)
            model.zero_grad()
    return None


def _count_step(model: Any, inputs: dict[str, Tensor]) -> int:
    answers = max(1, int(inputs["input_ids"].shape[1] * _ANSWERS))
    with MemoryCounter() as counter:
        states = family_of(model).hidden_states(model, **inputs)
        read = token_log_probabilities(model, states[0, :answers], inputs["input_ids"][0, :answers])
        if read.requires_grad:
            read.sum().backward()  # type: ignore[no-untyped-call]
        del states, read
    return int(counter.peak)
