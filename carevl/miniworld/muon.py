"""Muon in float32, for the matrices inside a transformer's blocks.

The step is that of `torch.optim.Muon` (Jordan 2024, with the scale of Liu et al., arXiv 2502.16982), which computes in
bfloat16: CPUs without such instructions take sixteen times as long over that as over float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Updates by the orthogonalised momentum of the gradient, as large as AdamW's.

    Args:
        weights: matrices only.
        lr: learning rate, to be chosen as for AdamW.
    """

    def __init__(
        self, weights: Iterable[torch.nn.Parameter], *, lr: float, weight_decay: float, momentum: float
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                buffer = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(buffer, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-0.2 * math.sqrt(max(weight.shape)) * group["lr"])


def orthogonal(matrix: Tensor) -> Tensor:
    """Return nearly the closest matrix whose singular values are all alike, by Newton-Schulz iterations."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), wide, beta=_A)
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
