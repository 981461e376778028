"""How much of a change of some size is left when it is merged into bfloat16 weights."""

from __future__ import annotations

import torch

from tests.gpu.figures import Check


def run(check: Check) -> None:
    """Write the share of a low-rank change that is kept, by its root mean square."""
    size = 256 if check.small else 3584
    torch.manual_seed(0)
    weight = (torch.randn(size, size, device=check.device) * 0.02).bfloat16()
    for rms in (3e-6, 1e-5, 3e-5, 1e-4, 1e-3):
        change = torch.randn(size, 64, device=check.device) @ torch.randn(64, size, device=check.device)
        change *= rms / change.pow(2).mean().sqrt()
        kept = (weight.float() + change).bfloat16().float() - weight.float()
        error = float((kept - change).norm() / change.norm())
        unchanged = float((kept == 0).float().mean())
        projected = float((kept * change).sum() / change.pow(2).sum())
        check.figure("merge_error", error, rms=rms, unchanged=round(unchanged, 3), kept=round(projected, 3))
