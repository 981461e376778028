"""Judgments with a prompt of their own each, through the model's own forward pass: for what cannot share prefixes.

Shapes: M sequences `[prefix | branch]`, padded to L tokens; A answer tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from carevl.models.families import family_of
from carevl.models.families.base import Picture
from carevl.models.packing import Tree
from carevl.models.vocabulary import token_log_probabilities


@dataclass(frozen=True)
class Plain:
    """Sequences ready for a forward pass, trees and their branches in order.

    `ids` and `attention` int64 [M, L], 0 in `attention` for padding; `patches` and `grids` of the image of every
    sequence. `row`, `column`, `target` int64 [A] and `weight` float32 [A]: answer token a belongs to sequence `row[a]`,
    is `target[a]`, is predicted at `column[a]`, and counts `weight[a]`.
    """

    ids: Tensor
    attention: Tensor
    patches: Tensor | None
    grids: Tensor | None
    row: Tensor
    column: Tensor
    target: Tensor
    weight: Tensor

    def images(self, model: Any) -> dict[str, Tensor]:
        """Return the images as arguments of the model's forward pass; nothing for a text model."""
        if self.patches is None or self.grids is None:
            return {}
        return family_of(model).image_inputs(model, self.ids, self.patches, self.grids)

    def to(self, device: torch.device | str) -> Plain:
        """Return a copy on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in values.items() if value is not None})


def separate(trees: Sequence[Tree], pictures: Mapping[str, Picture], model: Any, *, left: bool = False) -> Plain:
    """Lay every branch out with its prefix.

    Args:
        pictures: the images that the trees name.
        left: pad at the left, as generation wants it.
    """
    sequences = [[*tree.prefix, *branch] for tree in trees for branch in tree.branches]
    ids = torch.full((len(sequences), max(map(len, sequences))), model.config.get_text_config().pad_token_id or 0)
    attention = torch.zeros_like(ids)
    answers: list[tuple[int, int, int]] = []
    weights: list[float] = []
    shown = [pictures[tree.image] for tree in trees if tree.image is not None for _ in tree.branches]
    branches = ((tree, b) for tree in trees for b in range(len(tree.branches)))
    for row, (sequence, (tree, b)) in enumerate(zip(sequences, branches, strict=True)):
        start = ids.shape[1] - len(sequence) if left else 0
        ids[row, start : start + len(sequence)] = torch.tensor(sequence)
        attention[row, start : start + len(sequence)] = 1
        first = start + len(tree.prefix) - 1
        answers += [(row, first + k, token) for k, token in enumerate(tree.branches[b])]
        weights += [1.0] * len(tree.branches[b]) if tree.weights is None else tree.weights[b]
    located = torch.tensor(answers, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Plain(
        ids=ids,
        attention=attention,
        patches=torch.cat([picture.patches for picture in shown]) if shown else None,
        grids=torch.stack([picture.grid for picture in shown]) if shown else None,
        row=located[0],
        column=located[1],
        target=located[2],
        weight=torch.tensor(weights, dtype=torch.float32),
    )


def plain_log_probabilities(model: Any, plain: Plain) -> Tensor:
    """Return the log-probability of every branch given its prefix, float32 [M]; tokens count by their weights."""
    hidden = model.base_model(
        input_ids=plain.ids, attention_mask=plain.attention, use_cache=False, **plain.images(model)
    ).last_hidden_state
    tokens = token_log_probabilities(model, hidden[plain.row, plain.column], plain.target)
    return tokens.new_zeros(len(plain.ids)).index_add(0, plain.row, tokens * plain.weight)
