"""Prefix-shared sequences: a prompt is computed once for all the texts that continue it.

A tree is one sequence `[prefix | branch 1 | branch 2 | …]`. A branch sees the prefix and itself, and its positions
begin where the prefix's end, so its log-probability is what it would be in a sequence `[prefix | branch]` of its own.
Several short trees share a row; trees of a row do not see each other.

Shapes: B rows of T tokens, M branches, A answer tokens (all tokens of all branches), I distinct images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from carevl.errors import UserError

VISION_FAMILIES = ("qwen2_vl", "qwen2_5_vl")
_ATTENTION = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Tree:
    """Token ids of a prefix and of the branches that continue it.

    `image` names the image whose features stand at the prefix's image tokens; None for a text.
    """

    prefix: Sequence[int]
    branches: Sequence[Sequence[int]]
    image: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the packed sequence."""
        return len(self.prefix) + sum(map(len, self.branches))

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence `[prefix | branch]`."""
        return len(self.prefix) + max(map(len, self.branches))


@dataclass(frozen=True)
class Picture:
    """An image as the processor prepares it.

    `patches` float32 [n_patches, d]; `grid` int64 [3]: frames, rows and columns of patches.
    """

    patches: Tensor
    grid: Tensor


@dataclass(frozen=True)
class Place:
    """Where a tree lies: the columns of its row at which its prefix begins and ends and each of its branches ends."""

    row: int
    start: int
    prefix_end: int
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Trees in rows, ready for a forward pass.

    `ids` int64 [B, T]; `owner` and `side` int64 [B, T], the tree of a token (-1: padding) and 0 for its prefix or
    1, 2, … for its branches; `positions` int64 [3, B, T], or [B, T] for a text model; `patches` and `grids` of the I
    distinct images; `picture` int64, for every use of an image, in the order of the rows, which of the I it is.
    `row`, `column`, `target`, `branch` int64 [A]: answer token a belongs to `branch[a]`, is `target[a]` and is
    predicted at `(row[a], column[a])`. `places` has one entry per tree, in their order.
    """

    ids: Tensor
    owner: Tensor
    side: Tensor
    positions: Tensor
    patches: Tensor | None
    grids: Tensor | None
    picture: Tensor
    row: Tensor
    column: Tensor
    target: Tensor
    branch: Tensor
    places: tuple[Place, ...]

    @property
    def mask(self) -> Tensor:
        """bool [B, 1, T, T], True where query sees key."""
        owner, side = self.owner, self.side
        seen = side.unsqueeze(1).eq(0) | side.unsqueeze(1).eq(side.unsqueeze(2))
        return (seen & owner.unsqueeze(1).eq(owner.unsqueeze(2))).tril().unsqueeze(1)

    def to(self, device: torch.device | str) -> Packed:
        """A copy on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def sliding_window(model: Any) -> int | None:
    """Tokens that a layer of the model looks back on; None where every layer sees everything."""
    text = model.config.get_text_config()
    layers = getattr(text, "layer_types", None) or ()
    window: int | None = getattr(text, "sliding_window", None)
    return window if not layers or "sliding_attention" in layers else None


def check_packable(model: Any, longest: int) -> None:
    """Checks that packing is exact for a model's architecture; the model may lie on the meta device.

    Args:
        longest: tokens of the longest sequence `[prefix | branch]`.

    Raises:
        UserError: it has a state that runs over the tokens (linear attention, convolutions), a sliding window shorter
            than `longest`, or a vision architecture outside VISION_FAMILIES.
    """
    config, name = model.config, model.config.model_type
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if model._is_stateful or not layers.issubset(_ATTENTION):
        other = ", ".join(sorted(layers.difference(_ATTENTION))) or "a recurrent state"
        raise UserError(
            f"{name} cannot share prefixes: it has {other}, which runs over the tokens from left to right and "
            "would carry one judgment into the next; choose a judge with attention in every layer"
        )
    window = sliding_window(model)
    if window is not None and window < longest:
        raise UserError(
            f"{name} cannot share prefixes of this length: its sliding window is {window} tokens, and a prompt with "
            f"its judgment has {longest}; choose another judge, or leave out items of more than {window} tokens"
        )
    if hasattr(config, "vision_config") and name not in VISION_FAMILIES:
        raise UserError(
            f"{name} is no vision architecture that can share prefixes: those are {', '.join(VISION_FAMILIES)}"
        )


def fill_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Packs sequences into rows of at most `row_tokens`, first-fit decreasing; a longer one has a row of its own.

    Returns:
        Indices into `lengths`, row by row.
    """
    rows: list[list[int]] = []
    used: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = next((r for r, tokens in enumerate(used) if tokens + lengths[i] <= row_tokens), None)
        if fitting is None:
            rows.append([i])
            used.append(lengths[i])
        else:
            rows[fitting].append(i)
            used[fitting] += lengths[i]
    return rows


def padded_tokens(lengths: Sequence[int], row_tokens: int) -> int:
    """Tokens of the batch that `pack` makes, padding included."""
    rows = fill_rows(lengths, row_tokens)
    return len(rows) * max((sum(lengths[i] for i in row) for row in rows), default=0)


def pack(trees: Sequence[Tree], pictures: Mapping[str, Picture], model: Any, row_tokens: int) -> Packed:
    """Lays trees out in rows.

    Args:
        pictures: the images that the trees name.
        model: where positions come from (`get_rope_index`) and what the padding and image tokens are.
        row_tokens: longest row; a tree that is longer has a row of its own.
    """
    rows = fill_rows([tree.tokens for tree in trees], row_tokens)
    width = max(sum(trees[i].tokens for i in row) for row in rows)
    vision = hasattr(model.config, "vision_config")
    ids = torch.full((len(rows), width), model.config.get_text_config().pad_token_id or 0)
    owner = torch.full((len(rows), width), -1)
    side = torch.zeros_like(owner)
    positions = torch.zeros((3, len(rows), width) if vision else (len(rows), width), dtype=torch.long)
    names = list(dict.fromkeys(tree.image for tree in trees if tree.image is not None))
    first_branch = [sum(len(tree.branches) for tree in trees[:i]) for i in range(len(trees))]
    used: list[int] = []
    answers: list[tuple[int, int, int, int]] = []
    places: dict[int, Place] = {}
    for r, row in enumerate(rows):
        start = 0
        for i in row:
            tree = trees[i]
            end = start + tree.tokens
            ids[r, start:end] = torch.tensor([*tree.prefix, *(token for branch in tree.branches for token in branch)])
            owner[r, start:end] = i
            positions[..., r, start:end] = _positions(tree, pictures, model)
            if tree.image is not None:
                used.append(names.index(tree.image))
            last, at = start + len(tree.prefix) - 1, start + len(tree.prefix)
            for b, branch in enumerate(tree.branches):
                side[r, at : at + len(branch)] = b + 1
                columns = [last, *range(at, at + len(branch) - 1)][: len(branch)]
                answers += [(r, column, t, first_branch[i] + b) for column, t in zip(columns, branch, strict=True)]
                at += len(branch)
            ends = [last + 1 + tokens for tokens in accumulate(map(len, tree.branches))]
            places[i] = Place(r, start, last + 1, tuple(ends))
            start = end
    located = torch.tensor(answers, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Packed(
        ids=ids,
        owner=owner,
        side=side,
        positions=positions,
        patches=torch.cat([pictures[name].patches for name in names]) if names else None,
        grids=torch.stack([pictures[name].grid for name in names]) if names else None,
        picture=torch.tensor(used, dtype=torch.long),
        row=located[0],
        column=located[1],
        target=located[2],
        branch=located[3],
        places=tuple(places[i] for i in range(len(trees))),
    )


def _positions(tree: Tree, pictures: Mapping[str, Picture], model: Any) -> Tensor:
    """int64 [3, tokens], or [tokens] for a text model: each branch counts on from the prefix's end."""
    n = len(tree.prefix)
    longest = max(tree.branches, key=len)
    if hasattr(model.config, "vision_config"):
        ids = torch.tensor([[*tree.prefix, *longest]])
        kinds = ids.eq(model.config.image_token_id).int()
        grid = None if tree.image is None else pictures[tree.image].grid.unsqueeze(0)
        whole = model.base_model.get_rope_index(ids, mm_token_type_ids=kinds, image_grid_thw=grid)[0][:, 0]
    else:
        whole = torch.arange(tree.longest)
    return torch.cat([whole[..., :n], *(whole[..., n : n + len(branch)] for branch in tree.branches)], dim=-1)


def branch_log_probabilities(model: Any, packed: Packed) -> Tensor:
    """The log-probability of every branch given its prefix, float32 [M], trees and their branches in order.

    The vision tower runs once for every distinct image, and only the answer positions meet the vocabulary.

    Args:
        model: a causal model of transformers with a head, or the model inside a PEFT wrapper.
    """
    embedded = model.get_input_embeddings()(packed.ids)
    if packed.patches is not None:
        features = model.base_model.get_image_features(packed.patches.to(embedded.dtype), packed.grids).pooler_output
        used = torch.cat([features[i] for i in packed.picture.tolist()]).to(embedded.dtype)
        places = packed.ids.eq(model.config.image_token_id).unsqueeze(-1)
        embedded = embedded.masked_scatter(places, used)
    hidden = model.base_model(
        inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
    ).last_hidden_state
    logits = model.get_output_embeddings()(hidden[packed.row, packed.column]).float()
    tokens = -torch.nn.functional.cross_entropy(logits, packed.target, reduction="none")
    return tokens.new_zeros(int(packed.branch.max()) + 1).index_add(0, packed.branch, tokens)
