"""FlexAttention tried on a training's own first micro-batch, against attention block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carevl.models.flex_attention import FLEX
from carevl.models.packing import Packed
from carevl.models.tree_attention import MASKED, TREES, branch_log_probabilities, set_attention

_PROBED = 2**27
"""Most numbers of a weight whose gradient is compared."""


_NOISE = 5.0
"""How many times the noise of the model FlexAttention may be off."""
_FLOOR = {torch.float32: 1e-4, torch.bfloat16: 2**-8}
"""What may be off anyhow: of a log-probability relative to 1 + its size, of the gradient's direction 1 - cosine.

In a small model the two ways that are right may agree to the bit; bfloat16 rounds by 2**-8.
"""


def find_flaw(model: Any, packed: Packed) -> str | None:
    """Return why a model that is set to FlexAttention cannot be trained with it; None where it can.

    Its kernels are compiled for the card and the lengths at hand, and not every card has room for them. A row is
    computed with it, block by block, and under a mask; the last two are both right, so that what lies between them is
    the noise of the model's format. The model is left as it was.

    Args:
        packed: a row on the model's device.
    """
    try:
        flex = _compute(model, packed)
    except Exception as error:  # the compiler raises anything: no valid configuration, no compiler, out of memory
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    try:
        set_attention(model, TREES)
        blocks = _compute(model, packed)
        set_attention(model, MASKED)
        mask = _compute(model, packed)
    finally:
        set_attention(model, FLEX)
    (off, turned), noise = _difference(flex, blocks), _difference(mask, blocks)
    floor = _FLOOR.get(model.dtype, 2**-8)
    if off <= floor + _NOISE * noise[0] and turned <= floor + _NOISE * noise[1]:
        return None
    return (
        f"log-probabilities are off by {off:.2g} of their size, where the noise is {noise[0]:.2g}, and the gradient's "
        f"direction by {turned:.2g}, where it is {noise[1]:.2g}"
    )


def _difference(computed: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return how far log-probabilities are off, relative to 1 + their size, and the gradient turned, 1 - cosine."""
    (values, gradient), (right, direction) = computed, expected
    off = float(((values - right).abs() / (1 + right.abs())).max())
    return off, 1 - float(torch.nn.functional.cosine_similarity(gradient, direction, dim=0))


def _compute(model: Any, packed: Packed) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities [M], and the probed part of the gradient of their sum."""
    values = branch_log_probabilities(model, packed)
    # Not `backward`: a gradient that is asked for by name goes past whoever gathers those of a step.
    gradients = torch.autograd.grad(values.sum(), _probes(model), allow_unused=True)
    return values.detach(), torch.cat([part.flatten().float() for part in gradients if part is not None])


def _probes(model: Any) -> list[Tensor]:
    """Return the first and the last weights that are trained, but for an embedding's."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    small = [weight for weight in trained if weight.numel() <= _PROBED] or trained[-1:]
    return small[:8] + small[8:][-8:]
