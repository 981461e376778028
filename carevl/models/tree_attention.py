"""Packed trees through a model: attention block by block, and what is read at the ends and tokens of branches.

`carevl.models.packing` lays trees out; here each prefix attends to itself, and branches attend to their prefix and to
themselves. Costs grow with the trees, not with the square of the row: no mask over a whole row is made, and nothing is
computed between trees. Of what the last layer makes, only what is read afterwards is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from carevl.models.families import family_of
from carevl.models.flex_attention import BLOCK, FLEX, block_mask
from carevl.models.packing import Packed, Place
from carevl.models.vocabulary import token_log_probabilities

TREES = "carevl_trees"
"""Name of this attention in transformers; without `blocks` it is the ordinary `sdpa`."""

_TOGETHER = 256
"""A short tree, or short branches of one, attend in one call up to so many tokens: few calls, little in vain."""


@dataclass(frozen=True)
class Block:
    """The next `tokens` of a row: they attend to the block number `prefix` of the row, if any, and to themselves.

    `mask` bool [tokens, tokens of the prefix + tokens]; None: causal.
    """

    tokens: int
    prefix: int | None = None
    mask: Tensor | None = None


def blocks(packed: Packed) -> list[Block]:
    """Return who attends to whom, from left to right; every token is in one block."""
    row: list[Block] = []
    for place in packed.places:
        if place.ends[-1] - place.start <= _TOGETHER:
            row.append(_whole(place, packed.ids.device))
            continue
        prefix = len(row)
        row.append(Block(place.prefix_end - place.start))
        starts = (place.prefix_end, *place.ends[:-1])
        together: list[tuple[int, int]] = []
        for start, end in zip(starts, place.ends, strict=True):
            if together and end - together[0][0] > _TOGETHER:
                row.append(_branches(place, prefix, together, packed.ids.device))
                together = []
            if end > start:
                together.append((start, end))
        if together:
            row.append(_branches(place, prefix, together, packed.ids.device))
    return row


def _whole(place: Place, device: torch.device) -> Block:
    # Causal, but the tokens after the end of a branch do not see it: `tril` cuts the future, the loop the siblings.
    mask = torch.ones(place.ends[-1] - place.start, place.ends[-1] - place.start, dtype=torch.bool)
    for end in place.ends:
        mask[end - place.start :, place.prefix_end - place.start : end - place.start] = False
    return Block(len(mask), None, mask.tril().to(device))


def _branches(place: Place, prefix: int, spans: Sequence[tuple[int, int]], device: torch.device) -> Block:
    # Keys are the prefix's, then the branches' own: `tril(before)` makes the second part causal and leaves the first.
    start, end, before = spans[0][0], spans[-1][1], place.prefix_end - place.start
    mask = torch.zeros(end - start, before + end - start, dtype=torch.bool)
    mask[:, :before] = True
    for a, b in spans:
        mask[a - start : b - start, before + a - start : before + b - start] = True
    return Block(end - start, prefix, mask.tril(before).to(device))


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
    """Compute attention as transformers calls it: query [B, heads, T, d] to [B, T, heads, d].

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
    sizes = [block.tokens for block in blocks]
    queries = torch.split(query, sizes, dim=2)
    keys, values = (torch.split(repeat_kv(whole, groups), sizes, dim=2) for whole in (key, value))
    attended = []
    for block, q, own_keys, own_values in zip(blocks, queries, keys, values, strict=True):
        k, v = own_keys, own_values
        if block.prefix is not None:
            # Branches attend to [prefix | themselves]: what a mask over the whole row would let through, and no more.
            k, v = torch.cat([keys[block.prefix], k], 2), torch.cat([values[block.prefix], v], 2)
        causal = block.mask is None
        attended.append(scaled_dot_product_attention(q, k, v, attn_mask=block.mask, is_causal=causal, scale=scaling))
    return torch.cat(attended, 2).transpose(1, 2).contiguous(), None


def attention_of(model: Any) -> str:
    """Return the name of the attention that the text model of `model` is set to."""
    return str(model.config.get_text_config()._attn_implementation)


def lay_out(model: Any, packed: Packed) -> Packed:
    """Return the row as the attention of a text model wants it: in whole blocks of FlexAttention, else as it is."""
    return packed.padded(BLOCK) if attention_of(model) == FLEX else packed


def seen(model: Any, packed: Packed) -> dict[str, Any]:
    """Return who sees whom in a row, as arguments of the attention that a text model is set to."""
    kind = attention_of(model)
    already = packed.ids.new_ones((1, 1, 1, 1), dtype=torch.bool)  # a 4-D mask: transformers makes none
    if kind == TREES:
        return {"attention_mask": already, "blocks": blocks(packed)}
    if kind == FLEX:
        return {"attention_mask": already, "block_mask": block_mask(packed)}
    return {"attention_mask": packed.mask}


@contextmanager
def _read_at(model: Any, columns: Tensor) -> Iterator[None]:
    """Let the last layer's MLP compute these columns alone: inside, the last hidden states elsewhere are wrong.

    A prefix counts in the last layer through its keys and values only, so that most of that MLP is in vain. With
    gradient checkpointing everything is computed: the layer runs again in the backward pass, outside.
    """
    layers = getattr(model.base_model.get_decoder(), "layers", None)
    mlp: Any = getattr(layers[-1], "mlp", None) if layers is not None else None
    if not type(mlp).__name__.endswith("MLP") or model.is_gradient_checkpointing:
        yield
        return
    shape: list[int] = []

    def narrow(module: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
        del module
        shape[:] = inputs[0].shape
        return inputs[0].index_select(1, columns)

    def widen(module: torch.nn.Module, inputs: tuple[Tensor], narrowed: Tensor) -> Tensor:
        del module, inputs
        return narrowed.new_zeros(shape).index_copy(1, columns, narrowed)

    hooks = [mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def branch_states(model: Any, packed: Packed) -> Tensor:
    """Return the backbone's last hidden state at the last token of every branch, [M, hidden], in their order.

    Args:
        model: a text model. Where a branch is empty the prefix's last token is read.
    """
    packed = lay_out(model, packed)
    ends = torch.tensor([end - 1 for place in packed.places for end in place.ends], device=packed.ids.device)
    with _read_at(model, torch.unique(ends)):
        hidden: Tensor = model.base_model(
            input_ids=packed.ids, position_ids=packed.positions, use_cache=False, **seen(model, packed)
        ).last_hidden_state
    return hidden[0, ends]


def branch_log_probabilities(model: Any, packed: Packed) -> Tensor:
    """Return the log-probability of every branch given its prefix, float32 [M], trees and their branches in order.

    Tokens count by their weights: the sum of w log p. The vision tower runs once for every distinct image, and only
    the answer positions meet the vocabulary.

    Args:
        model: a causal model of transformers with a head, or the model inside a PEFT wrapper.
    """
    packed = lay_out(model, packed)
    embedded = model.get_input_embeddings()(packed.ids)
    if packed.features:
        features = _image_features(model, packed, embedded.dtype)
        used = torch.cat([features[i] for i in packed.picture.tolist()]).to(embedded.dtype)
        places = packed.ids.eq(family_of(model).image_token(model.config)).unsqueeze(-1)
        embedded = embedded.masked_scatter(places, used)
    with _read_at(model, torch.unique(packed.column)):
        hidden = model.base_model(
            inputs_embeds=embedded, position_ids=packed.positions, use_cache=False, **seen(model, packed)
        ).last_hidden_state
    tokens = token_log_probabilities(model, hidden[0, packed.column], packed.target)
    return tokens.new_zeros(int(packed.branch.max()) + 1).index_add(0, packed.branch, tokens * packed.weight)


def _image_features(model: Any, packed: Packed, dtype: torch.dtype) -> list[Tensor]:
    """Return the features of a row's distinct images, [tokens, size] each; those of a frozen tower are constants."""
    computed: Iterator[Tensor] = iter(())
    if packed.patches is not None:
        assert packed.grids is not None
        family = family_of(model)
        with torch.set_grad_enabled(torch.is_grad_enabled() and family.trains_vision(model)):
            computed = iter(family.features(model, packed.patches.to(dtype), packed.grids))
    return [next(computed) if features is None else features for features in packed.features]


ALL_ATTENTION_FUNCTIONS.register(TREES, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TREES, sdpa_mask)
