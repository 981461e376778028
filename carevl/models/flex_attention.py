"""FlexAttention over packed trees, for GPUs: one kernel that skips the blocks in which nothing is seen."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from carevl.models.packing import Packed, Rule, dense_mask, row_of

FLEX = "carevl_flex"
"""Name of this attention in transformers; outside `laid_out` it is the ordinary `sdpa`."""

BLOCK = 128
"""Tokens of a block of the kernel. Rows are filled up to whole ones: other lengths are a kernel of their own, and gave
wrong gradients in the past (pytorch issues 153799, 158212)."""


def block_mask(packed: Packed, rule: Rule = causal_mask_function) -> BlockMask:
    """Return who sees whom in a row in FlexAttention's form, [1, 1, T, T].

    Every function that says it is a kernel of its own: there are two, for causal rows and for all other rules, which
    are asked beforehand.
    """
    owner, side = packed.owner[0], packed.side[0]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        shared = side[key].eq(0) | side[key].eq(side[query])
        return query.ge(key) & owner[key].eq(owner[query]) & shared

    tokens, device = packed.ids.shape[1], str(packed.ids.device)
    if rule is causal_mask_function:
        return create_block_mask(sees, None, None, tokens, tokens, device=device)
    seen = dense_mask(packed, rule)[0, 0]

    def looks_up(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        del batch, head
        return seen[query, key]

    return create_block_mask(looks_up, None, None, tokens, tokens, device=device)


def block_masks(
    batch_size: int, q_length: int, kv_length: int, *, mask_function: Rule = causal_mask_function, **more: Any
) -> Any:
    """Return the mask of the row at hand, as transformers asks for one; without a row, its own."""
    packed = row_of(batch_size, q_length, kv_length)
    if packed is None:
        return sdpa_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, mask_function=mask_function, **more
        )
    return block_mask(packed, mask_function)


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=True)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    *,
    scaling: float | None = None,
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
    if not isinstance(attention_mask, BlockMask):
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    attended = _compiled()(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(FLEX, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLEX, block_masks)
