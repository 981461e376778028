"""Attention over packed trees, block by block: no mask over a whole row, nothing computed between trees.

`carevl.packing` lays trees out; here each prefix attends to itself, and branches attend to their prefix and to
themselves. Costs grow with the trees, not with the square of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from carevl.packing import Packed, Place

TREES = "carevl_trees"
"""Name of this attention in transformers; without `blocks` it is the ordinary `sdpa`."""

_TOGETHER = 256
"""Short branches attend in one call up to so many tokens; beyond, what they compute of each other costs too much."""


@dataclass(frozen=True)
class Block:
    """Queries in columns [start, end) of a row attend to the keys of a prefix, [prefix, prefix_end), and to themselves.

    `mask` bool [queries, keys]; None: causal.
    """

    row: int
    prefix: int
    prefix_end: int
    start: int
    end: int
    mask: Tensor | None


def blocks(packed: Packed) -> list[Block]:
    """What attends to what, for every token that is no padding."""
    made = []
    for place in packed.places:
        made.append(Block(place.row, place.start, place.start, place.start, place.prefix_end, None))
        starts = (place.prefix_end, *place.ends[:-1])
        together: list[tuple[int, int]] = []
        for start, end in zip(starts, place.ends, strict=True):
            if together and end - together[0][0] > _TOGETHER:
                made.append(_branches(place, together, packed.ids.device))
                together = []
            if end > start:
                together.append((start, end))
        if together:
            made.append(_branches(place, together, packed.ids.device))
    return made


def _branches(place: Place, spans: Sequence[tuple[int, int]], device: torch.device) -> Block:
    start, end, prefix = spans[0][0], spans[-1][1], place.prefix_end - place.start
    mask = torch.zeros(end - start, prefix + end - start, dtype=torch.bool)
    mask[:, :prefix] = True
    for a, b in spans:
        mask[a - start : b - start, prefix + a - start : prefix + b - start] = True
    return Block(place.row, place.start, place.prefix_end, start, end, mask.tril(prefix).to(device))


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    blocks: Sequence[Block] | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B, heads, T, d] to [B, T, heads, d].

    Raises:
        NotImplementedError: the model caps attention scores or has attention sinks.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("capped attention scores and attention sinks are not computed here")
    if blocks is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    attended = torch.zeros_like(query)
    for block in blocks:
        r, prefix, own = block.row, slice(block.prefix, block.prefix_end), slice(block.start, block.end)
        q, k, v = query[r : r + 1, :, own], key[r : r + 1, :, own], value[r : r + 1, :, own]
        if block.mask is not None:
            k = torch.cat([key[r : r + 1, :, prefix], k], 2)
            v = torch.cat([value[r : r + 1, :, prefix], v], 2)
        attended[r : r + 1, :, own] = scaled_dot_product_attention(
            q, k, v, attn_mask=block.mask, is_causal=block.mask is None, scale=scaling
        )
    return attended.transpose(1, 2).contiguous(), None


def branch_states(model: Any, packed: Packed) -> Tensor:
    """The backbone's last hidden state at the last token of every branch, [M, hidden], trees and branches in order.

    Args:
        model: a text model whose attention is `TREES`. Where a branch is empty the prefix's last token is read.
    """
    already = packed.ids.new_ones((1, 1, 1, 1), dtype=torch.bool)  # a 4-D mask: transformers makes none
    hidden: Tensor = model.base_model(
        input_ids=packed.ids,
        attention_mask=already,
        position_ids=packed.positions,
        use_cache=False,
        blocks=blocks(packed),
    ).last_hidden_state
    rows = [place.row for place in packed.places for _ in place.ends]
    return hidden[rows, [end - 1 for place in packed.places for end in place.ends]]


ALL_ATTENTION_FUNCTIONS.register(TREES, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TREES, sdpa_mask)
