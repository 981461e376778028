"""A training step of a 7B judge with LoRA of rank 64 and gradient checkpointing, with and without each saving."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from carevl.models import tree_attention, vocabulary
from carevl.models.families import family_of
from carevl.models.flex_attention import FLEX
from carevl.models.packing import Packed
from carevl.models.tree_attention import MASKED, TREES, branch_log_probabilities, cast_floats, set_attention
from carevl.training.attention import find_flaw
from carevl.training.trainable import make_trainable
from tests.gpu.figures import Check, relative
from tests.gpu.models import H100_FLOPS, judge_row, language_weights, make_judge


class _Training:
    """The settings of the presets that `make_trainable` reads."""

    gradient_checkpointing = True
    train = "language"

    class lora:  # noqa: N801
        """Adapters on the language model."""

        rank, alpha, dropout = 64, 128.0, 0.0
        targets = None


def run(check: Check) -> None:
    """Write seconds, peak memory and agreement of a step, by kind of attention and by saving."""
    model = make_judge(check)
    make_trainable(model, _Training)
    model.to(torch.bfloat16).train()  # adapters too, as DeepSpeed makes them
    row = judge_row(model, check, 2 if check.small else 10)
    tokens = row.ids.numel()
    kinds = [FLEX, TREES] if check.on_gpu else [TREES]
    steps = {kind: _measure(check, model, row, kind, "as it is") for kind in kinds}
    for kind, seconds in steps.items():
        share = 6 * language_weights(model) * tokens / seconds / H100_FLOPS
        check.figure("step_useful_mfu", share if check.on_gpu else None, attention=kind, tokens=tokens)
    set_attention(model, kinds[0])
    with _differentiated_vision(model):
        _measure(check, model, row, kinds[0], "vision differentiated")
    with patch.object(vocabulary, "_LOGITS", 2**60):
        _measure(check, model, row, kinds[0], "logits of all answers at once")
    family = family_of(model)
    with torch.no_grad():
        images = cast_floats(row.images, torch.bfloat16)
        features = family.features(model, images)
        seconds = check.seconds(lambda: family.features(model, images), 2)
        check.figure("vision_forward_seconds", seconds, images=len(row.unseen))
    with patch.object(type(family), "features", lambda *_: features):
        _measure(check, model, row, kinds[0], "features from a table")
    _agree(check, model, kinds)
    if check.on_gpu:
        _try_flex(check, model, row)
    check.free()


def _step(model: Any, row: Packed) -> None:
    (-branch_log_probabilities(model, row).sum()).backward()
    model.zero_grad(set_to_none=True)


def _measure(check: Check, model: Any, row: Packed, kind: str, way: str) -> float:
    set_attention(model, kind)
    check.free()
    seconds = check.seconds(lambda: _step(model, row), 2)
    check.figure("step_seconds", seconds, attention=kind, way=way, peak_gib=check.peak_gib())
    return seconds


@contextmanager
def _differentiated_vision(model: Any) -> Iterator[None]:
    """As it was before: the hook of transformers lies on the vision tower's embedding too."""
    model.enable_input_require_grads()
    try:
        with patch.object(tree_attention, "trains_vision", lambda *_: True):
            yield
    finally:
        model.disable_input_require_grads()


def _try_flex(check: Check, model: Any, row: Packed) -> None:
    """Write what a training finds before it trusts FlexAttention."""
    set_attention(model, FLEX)
    started = time.monotonic()
    flaw = find_flaw(model, row)
    check.figure("flex_flaws", float(flaw is not None), most=0, flaw=flaw, took=round(time.monotonic() - started, 2))


def _agree(check: Check, model: Any, kinds: list[str]) -> None:
    """Compare log-probabilities and gradients in bfloat16 with those under the mask, as far as a row fits."""
    row = judge_row(model, check, 2, seed=1)
    trained = [weight for weight in model.parameters() if weight.requires_grad][:8]
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zero in a new adapter, which would leave half of the gradients zero
                weight.normal_(std=0.01)

    def compute(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        set_attention(model, kind)
        values = branch_log_probabilities(model, row)
        gradients = torch.autograd.grad(values.sum(), trained)
        return values.detach(), torch.cat([gradient.flatten().float() for gradient in gradients])

    values, gradients = compute(MASKED)
    size = float(values.abs().mean())
    for kind in kinds:
        other, moved = compute(kind)
        nats = float((other - values).abs().max())
        check.figure("step_nats_from_mask", nats, most=0.03 * size, attention=kind, mean_nats=round(size, 1))
        cosine = float(torch.nn.functional.cosine_similarity(moved, gradients, dim=0))
        check.figure("step_gradient_angle", 1 - cosine, most=0.02, attention=kind, relative=relative(moved, gradients))
