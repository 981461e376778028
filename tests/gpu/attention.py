"""FlexAttention, forward and backward, against float64 under the mask of a packed row."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from carevl.models import flex_attention
from carevl.models.flex_attention import BLOCK, block_mask
from carevl.models.packing import dense_mask, pack
from tests.gpu.figures import Check, relative
from tests.gpu.models import TextModel, text_trees

_BOUNDS = {torch.float32: 2e-3, torch.bfloat16: 2e-2}  # the kernel multiplies float32 in TF32 at most


def run(check: Check) -> None:
    """Write the largest differences by length, the kernels that were compiled, and what a block mask costs."""
    lengths = [77, 300, 1000] if check.small else [77, 129, 300, 1000, 2048, 4095, 6001, 8192]
    for filled_up in (True, False):
        compiled = _compile_afresh()
        for n, length in enumerate(lengths if filled_up else lengths[:3]):
            dtype = torch.float32 if n % 2 else torch.bfloat16
            _compare(check, length, n, dtype, filled_up=filled_up)
        check.figure("flex_graphs", compiled(), lengths=len(lengths), filled_up=filled_up)
    packed = pack(text_trees(lengths[-1], 3), TextModel).padded(BLOCK).to(check.device)
    check.free()
    seconds = check.seconds(lambda: block_mask(packed))
    check.figure("block_mask_ms", 1e3 * seconds, tokens=packed.ids.shape[1], peak_gib=check.peak_gib())


def _compile_afresh() -> Any:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    flex_attention._compiled.cache_clear()
    return lambda: float(counters["stats"]["unique_graphs"])


def _compare(check: Check, length: int, seed: int, dtype: torch.dtype, *, filled_up: bool) -> None:
    packed = pack(text_trees(length, seed), TextModel).to(check.device)
    packed = packed.padded(BLOCK) if filled_up else packed
    tokens, size = packed.ids.shape[1], 64 if check.small else 128
    torch.manual_seed(seed)
    query, key, value = (
        torch.randn(1, heads, tokens, size, device=check.device, dtype=dtype, requires_grad=check.on_gpu)
        for heads in (14, 2, 2)
    )
    attended, _ = flex_attention.attend(torch.nn.Identity(), query, key, value, block_mask(packed), scaling=None)
    expected = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), attn_mask=dense_mask(packed), enable_gqa=True
    ).transpose(1, 2)
    facts = {"tokens": tokens, "dtype": str(dtype).removeprefix("torch."), "filled_up": filled_up}
    most = _BOUNDS[dtype] if filled_up else None
    check.figure("flex_forward_difference", relative(attended, expected), most=most, **facts)
    if check.on_gpu:  # there is no backward kernel for CPUs
        weights = torch.randn_like(attended)
        gradients = torch.autograd.grad((attended * weights).sum(), (query, key, value))
        right = torch.autograd.grad((expected * weights.double()).sum(), (query, key, value))
        worst = max(relative(a, b) for a, b in zip(gradients, right, strict=True))
        check.figure("flex_gradient_difference", worst, most=most, **facts)
    del query, key, value, attended, expected
    check.free()
