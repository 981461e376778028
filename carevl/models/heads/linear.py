"""One linear map, with or without a bias: most reward models.

By whatever name: `score` (transformers' `…ForSequenceClassification`), `v_head` (InternLM2), `v_head.summary` (TRL's
`AutoModelForCausalLMWithValueHead`), `value_head`, `regression_head`, `classifier`. It is the only matrix outside the
body that is as wide as a hidden state.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from carevl.models.heads.base import FoundHead, HeadKind, HeadTensors

if TYPE_CHECKING:
    from torch import Tensor, nn


class LinearKind(HeadKind):
    """A weight [outputs, hidden] or [hidden], and a bias [outputs] beside it."""

    name = "linear"

    def find(self, stored: HeadTensors) -> FoundHead | None:
        """Return the only matrix that reads hidden states, with its bias."""
        weights = [name for name, shape in stored.shapes.items() if name.endswith("weight") and reads(stored, shape)]
        if len(weights) != 1:
            return None
        [weight] = weights
        shape = stored.shapes[weight]
        outputs = shape[0] if len(shape) == 2 else 1
        bias = f"{weight.removesuffix('weight')}bias"
        biases = (bias,) if list(stored.shapes.get(bias, ())) == [outputs] else ()
        return FoundHead(self.name, (weight, *biases), outputs, partial(_make, weight, bias))


def reads(stored: HeadTensors, shape: object) -> bool:
    """Tell whether a tensor of this shape maps hidden states."""
    return isinstance(shape, list | tuple) and len(shape) in (1, 2) and shape[-1] == stored.hidden


def _make(weight: str, bias: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    return make_linear(tensors[weight], tensors.get(bias))


def make_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer of stored tensors."""
    from torch import nn

    weight = weight.reshape(-1, weight.shape[-1])
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


KIND = LinearKind()
