"""Packed trees through a model: attention block by block, and what is read at the ends and tokens of branches.

`carevl.models.packing` lays trees out; here each prefix attends to itself, and branches attend to their prefix and to
themselves. Costs grow with the trees, not with the square of the row: no mask over a whole row is made, and nothing is
computed between trees. Of what the last layer makes, only what is read afterwards is computed.

Every architecture makes its masks by calling transformers' mask functions with a rule of its own (causal, sliding,
chunked, both ways within an image), and those call what is registered here. The rule is asked not at the columns of the
row but where the tokens would stand in `[prefix | branch]`, so that no mask is known here and all are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from carevl.models.families import family_of
from carevl.models.families.base import Family
from carevl.models.flex_attention import BLOCK, FLEX
from carevl.models.packing import Packed, Place, Rule, ask_rule, dense_mask, laid_out, row_of
from carevl.models.parts import weights_outside_language
from carevl.models.vocabulary import token_log_probabilities

TREES = "carevl_trees"
"""Name of this attention in transformers; outside `laid_out` it is the ordinary `sdpa`."""
MASKED = "carevl_masked"
"""Name of the attention under one mask over the whole row, which the others are held against."""

_TOGETHER = 256
"""A short tree, or short branches of one, attend in one call up to so many tokens: few calls, little in vain."""


class NotSharedError(Exception):
    """A rule by which a prefix sees what follows it, so that it cannot be computed once for several branches."""


@dataclass(frozen=True)
class Block:
    """The next `tokens` of a row: they attend to the block number `prefix` of the row, if any, and to themselves.

    `mask` bool [tokens, tokens of the prefix + tokens]; None: causal.
    """

    tokens: int
    prefix: int | None = None
    mask: Tensor | None = None


class TreeMask(Tensor):
    """What stands for a mask: who attends to whom in a row, from left to right; every token is in one block.

    To transformers it is a mask that somebody made beforehand, bool [1, 1, 1, 1]: those it hands on as they are.
    """

    blocks: Sequence[Block]

    @classmethod
    def of(cls, blocks: Sequence[Block], device: torch.device) -> TreeMask:
        """Return the mask of these blocks."""
        mask = torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device).as_subclass(cls)
        mask.blocks = blocks
        return mask


def blocks(packed: Packed, rule: Rule | None = None) -> list[Block]:
    """Return the blocks of a row.

    Args:
        rule: of the architecture; None: causal.

    Raises:
        NotSharedError: see there.
    """
    row: list[Block] = []
    for place in packed.places:
        seen = None if rule is None else _seen_in_sequence(place, rule, packed)
        if place.ends[-1] - place.start <= _TOGETHER:
            row.append(_whole(place, seen, packed))
            continue
        prefix, n = len(row), place.prefix_end - place.start
        within = None if seen is None else seen[:n, :n]
        row.append(Block(n, None, None if within is None or _is_causal(within) else within))
        starts = (place.prefix_end, *place.ends[:-1])
        together: list[tuple[int, int]] = []
        for start, end in zip(starts, place.ends, strict=True):
            if together and end - together[0][0] > _TOGETHER:
                row.append(_branches(place, prefix, together, seen, packed.ids.device))
                together = []
            if end > start:
                together.append((start, end))
        if together:
            row.append(_branches(place, prefix, together, seen, packed.ids.device))
    if padding := packed.ids.shape[1] - sum(block.tokens for block in row):
        row.append(Block(padding))
    return row


def _seen_in_sequence(place: Place, rule: Rule, packed: Packed) -> Tensor | None:
    """Return who sees whom in `[prefix | longest branch]`, bool [n, n]; None where that is causal."""
    starts = (place.prefix_end, *place.ends[:-1])
    n = place.prefix_end - place.start
    longest = n + max(end - start for start, end in zip(starts, place.ends, strict=True))
    seen = ask_rule(rule, torch.arange(place.start, place.start + longest, device=packed.ids.device))
    if bool(seen[:n, n:].any()):
        raise NotSharedError("a prompt sees the response to it")
    return None if _is_causal(seen) else seen


def _is_causal(seen: Tensor) -> bool:
    return bool(seen.equal(torch.ones_like(seen).tril()))


def _whole(place: Place, seen: Tensor | None, packed: Packed) -> Block:
    span = slice(place.start, place.ends[-1])
    side, column = packed.side[0, span], packed.place[0, span] - place.start
    together = side.eq(0) | side.eq(side[:, None])
    # A branch sees no later token of its own, and stands behind the prefix, so that columns tell what is causal.
    return Block(len(side), None, together.tril() if seen is None else together & seen[column[:, None], column])


def _branches(
    place: Place, prefix: int, spans: Sequence[tuple[int, int]], seen: Tensor | None, device: torch.device
) -> Block:
    # Keys are the prefix's, then the branches' own: `tril(before)` makes the second part causal and leaves the first.
    start, end, before = spans[0][0], spans[-1][1], place.prefix_end - place.start
    mask = torch.zeros(end - start, before + end - start, dtype=torch.bool)
    mask[:, :before] = True
    for a, b in spans:
        mask[a - start : b - start, before + a - start : before + b - start] = True
    if seen is None:
        return Block(end - start, prefix, mask.tril(before).to(device))
    mask = mask.to(device)
    for a, b in spans:
        rows = slice(before, before + b - a)
        mask[a - start : b - start, :before] = seen[rows, :before]
        mask[a - start : b - start, before + a - start : before + b - start] = seen[rows, rows]
    return Block(end - start, prefix, mask)


def masks_of_trees(
    batch_size: int, q_length: int, kv_length: int, *, mask_function: Rule = causal_mask_function, **more: Any
) -> Any:
    """Return a `TreeMask` for the row at hand, as transformers asks for a mask; without a row, its own mask."""
    packed = row_of(batch_size, q_length, kv_length)
    if packed is None:
        return sdpa_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, mask_function=mask_function, **more
        )
    rule = None if mask_function is causal_mask_function else mask_function
    return TreeMask.of(blocks(packed, rule), packed.ids.device)


def whole_masks(
    batch_size: int, q_length: int, kv_length: int, *, mask_function: Rule = causal_mask_function, **more: Any
) -> Any:
    """Return the mask of the row at hand as one, bool [1, 1, T, T]; without a row, transformers' own."""
    packed = row_of(batch_size, q_length, kv_length)
    if packed is None:
        return sdpa_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, mask_function=mask_function, **more
        )
    return dense_mask(packed, mask_function)


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | TreeMask | None,
    *,
    scaling: float | None = None,
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
    if not isinstance(attention_mask, TreeMask):
        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return plain
    blocks = attention_mask.blocks
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


def set_attention(model: Any, name: str) -> None:
    """Set the attention of a model's language model; what sees keeps its own.

    Some architectures make their masks by the configuration of the whole model.
    """
    towers = [key for key in model.config.sub_configs if key != "text_config" and getattr(model.config, key, None)]
    model.set_attn_implementation({"": name, "text_config": name, **dict.fromkeys(towers, "sdpa")})


def lay_out(model: Any, packed: Packed) -> Packed:
    """Return the row as the attention of a text model wants it: in whole blocks of FlexAttention, else as it is.

    Raises:
        RuntimeError: the attention is another's, by which branches would see each other.
    """
    kind = attention_of(model)
    if kind not in (TREES, MASKED, FLEX):
        raise RuntimeError(f"attention {kind} knows no trees; call set_attention first")
    return packed.padded(BLOCK) if kind == FLEX else packed


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
    read = [
        (end if end > start else place.prefix_end) - 1
        for place in packed.places
        for start, end in zip((place.prefix_end, *place.ends[:-1]), place.ends, strict=True)
    ]
    ends = torch.tensor(read, device=packed.ids.device)
    with _read_at(model, torch.unique(ends)):
        hidden = _hidden_states(model, packed, Family(""), input_ids=packed.ids)
    return hidden[0, ends]


def branch_log_probabilities(model: Any, packed: Packed) -> Tensor:
    """Return the log-probability of every branch given its prefix, float32 [M], trees and their branches in order.

    Tokens count by their weights: the sum of w log p. Where images enter as embeddings the vision tower runs once for
    every distinct image, else once for every tree; and only the answer positions meet the vocabulary.

    Args:
        model: a causal model of transformers with a head, or the model inside a PEFT wrapper.
    """
    packed, family = lay_out(model, packed), family_of(model)
    inputs: dict[str, Any] = {"input_ids": packed.ids}
    if packed.features:
        embedded = model.get_input_embeddings()(packed.ids)
        features = _image_features(model, packed, family)
        used = torch.cat([features[i] for i in packed.picture.tolist()]).to(embedded.dtype)
        places = packed.ids.eq(family.image_token(model.config)).unsqueeze(-1)
        inputs = {"inputs_embeds": embedded.masked_scatter(places, used)}
    else:
        inputs |= packed.per_token | cast_floats(packed.images, model.dtype)
    with _read_at(model, torch.unique(packed.column)):
        hidden = _hidden_states(model, packed, family, **inputs)
    tokens = token_log_probabilities(model, hidden[0, packed.column], packed.target)
    return tokens.new_zeros(int(packed.branch.max()) + 1).index_add(0, packed.branch, tokens * packed.weight)


def _hidden_states(model: Any, packed: Packed, family: Family, **inputs: Any) -> Tensor:
    """Return the last hidden states of a row, [1, T, size]."""
    # Without a mask, positions that begin anew would be taken for texts that do not see each other.
    present = torch.ones_like(packed.ids)
    with laid_out(packed):
        return family.hidden_states(model, attention_mask=present, position_ids=packed.positions, **inputs)


def cast_floats(inputs: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Return inputs with their floating numbers in the format of the model, which not every processor knows."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _image_features(model: Any, packed: Packed, family: Family) -> list[Tensor]:
    """Return the features of a row's distinct images, [tokens, size] each; those of a frozen tower are constants."""
    computed: Iterator[Tensor] = iter(())
    if packed.images:
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains_vision(model)):
            features = family.features(model, cast_floats(packed.images, model.dtype))
        computed = iter(torch.split(features, list(packed.unseen)))
    return [next(computed) if features is None else features for features in packed.features]


def trains_vision(model: Any) -> bool:
    """Tell whether anything of a vision-language model is trained besides its language model."""
    return any(weight.requires_grad for weight in weights_outside_language(model))


ALL_ATTENTION_FUNCTIONS.register(TREES, tree_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(TREES, masks_of_trees)
ALL_ATTENTION_FUNCTIONS.register(MASKED, sdpa_attention_forward)
ALL_MASK_ATTENTION_FUNCTIONS.register(MASKED, whole_masks)
