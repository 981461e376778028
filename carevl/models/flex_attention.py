"""FlexAttention over packed trees, for GPUs: one kernel that skips the blocks in which nothing is seen."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from carevl.models.packing import Packed

FLEX = "carevl_flex"
"""Name of this attention in transformers; without `block_mask` it is the ordinary `sdpa`."""

BLOCK = 128
"""Tokens of a block of the kernel. Rows are filled up to whole ones: other lengths are a kernel of their own, and gave
wrong gradients in the past (pytorch issues 153799, 158212)."""


def block_mask(packed: Packed) -> BlockMask:
    """Return `Packed.mask` in FlexAttention's form, [1, 1, T, T]."""
    owner, side = packed.owner[0], packed.side[0]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        shared = side[key].eq(0) | side[key].eq(side[query])
        return query.ge(key) & owner[key].eq(owner[query]) & shared

    tokens = packed.ids.shape[1]
    return create_block_mask(sees, None, None, tokens, tokens, device=str(packed.ids.device))


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    block_mask: BlockMask | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it: query [1, heads, T, d] to [1, T, heads, d].

    Raises:
        NotImplementedError: the model caps attention scores or has attention sinks.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("capped attention scores and attention sinks are not computed here")
    if block_mask is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    attended = _compiled()(query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(FLEX, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLEX, sdpa_mask)
