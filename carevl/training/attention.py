"""FlexAttention tried on a training's own first micro-batch, against attention block by block."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from carevl.models.flex_attention import FLEX
from carevl.models.packing import Packed
from carevl.models.tree_attention import TREES, attention_of, branch_log_probabilities

_PROBED = 2**27
"""Most numbers of a weight whose gradient is compared."""


class Tolerance(NamedTuple):
    """Most that two kinds of attention may differ: in a log-probability, as a share of it, and in the gradient's
    direction, as 1 - cosine."""

    values: float
    direction: float


TOLERANCES = {torch.float32: Tolerance(1e-4, 1e-4), torch.bfloat16: Tolerance(1e-2, 3e-2)}
"""By the format of the weights. On an H100, a 7B judge in bfloat16 has 6e-4 and 2e-3 from the mask with either kind."""


def find_flaw(model: Any, packed: Packed) -> str | None:
    """Return why a model that is set to FlexAttention cannot be trained with it; None where it can.

    Its kernels are compiled for the card and the lengths at hand, and not every card has room for them. Both kinds
    compute the log-probabilities of a row, and the gradient of their sum; the model is left as it was.

    Args:
        packed: a row on the model's device.
    """
    if attention_of(model) != FLEX:
        return None
    tolerance = TOLERANCES.get(model.dtype, TOLERANCES[torch.bfloat16])
    try:
        values, gradient = _compute(model, packed)
    except Exception as error:  # the compiler raises anything: no valid configuration, no compiler, out of memory
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    model.set_attn_implementation({"text_config": TREES})
    expected, right = _compute(model, packed)
    model.set_attn_implementation({"text_config": FLEX})
    off = float(((values - expected).abs() / (1 + expected.abs())).max())
    turned = 1 - float(torch.nn.functional.cosine_similarity(gradient, right, dim=0))
    if off <= tolerance.values and turned <= tolerance.direction:
        return None
    return (
        f"log-probabilities differ by {off:.2g} of their size ({tolerance.values:g} is allowed), and the gradient's "
        f"direction by {turned:.2g} ({tolerance.direction:g} is allowed)"
    )


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
