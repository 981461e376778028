"""Judgments with a prompt of their own each, through the model's own forward pass: for what cannot share prefixes.

Shapes: M sequences `[prefix | branch]`, padded to L tokens; A answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from carevl.models.families import family_of
from carevl.models.families.base import Family
from carevl.models.packing import Tree
from carevl.models.prompts import EncodedPrompts
from carevl.models.tree_attention import cast_floats
from carevl.models.vocabulary import token_log_probabilities


@dataclass(frozen=True)
class Plain:
    """Sequences ready for a forward pass, trees and their branches in order.

    `ids` and `attention` int64 [M, L], 0 in `attention` for padding; `inputs` are the model's others, as for a batch of
    M. `row`, `column`, `target` int64 [A] and `weight` float32 [A]: answer token a belongs to sequence `row[a]`, is
    `target[a]`, is predicted at `column[a]`, and counts `weight[a]`.
    """

    ids: Tensor
    attention: Tensor
    inputs: dict[str, Any]
    row: Tensor
    column: Tensor
    target: Tensor
    weight: Tensor

    def to(self, device: torch.device | str) -> Plain:
        """Return a copy on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        inputs = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in self.inputs.items()}
        return replace(self, inputs=inputs, **moved)


def separate(trees: Sequence[Tree], model: Any, prompts: EncodedPrompts | None = None, *, left: bool = False) -> Plain:
    """Lay every branch out with its prefix.

    Args:
        prompts: what the processor wrote for the prompt and the image of every branch; None for texts.
        left: pad at the left, as generation wants it.
    """
    sequences = [[*tree.prefix, *branch] for tree in trees for branch in tree.branches]
    branches = [(tree, b) for tree in trees for b in range(len(tree.branches))]
    length = max(map(len, sequences))
    ids = torch.full((len(sequences), length), model.config.get_text_config().pad_token_id or 0)
    attention = torch.zeros_like(ids)
    answers: list[tuple[int, int, int]] = []
    weights: list[float] = []
    for row, (sequence, (tree, b)) in enumerate(zip(sequences, branches, strict=True)):
        start = length - len(sequence) if left else 0
        ids[row, start : start + len(sequence)] = torch.tensor(sequence)
        attention[row, start : start + len(sequence)] = 1
        first = start + len(tree.prefix) - 1
        answers += [(row, first + k, token) for k, token in enumerate(tree.branches[b])]
        weights += [1.0] * len(tree.branches[b]) if tree.weights is None else tree.weights[b]
    inputs: dict[str, Any] = {}
    if prompts is not None:
        family, ends = family_of(model), [len(tree.branches[b]) for tree, b in branches]
        inputs = dict(prompts.images)
        for name, values in prompts.per_token.items():
            wide = [_widen(name, own, end, length, family, left) for own, end in zip(values, ends, strict=True)]
            inputs[name] = torch.stack(wide)
    located = torch.tensor(answers, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Plain(
        ids=ids,
        attention=attention,
        inputs=inputs,
        row=located[0],
        column=located[1],
        target=located[2],
        weight=torch.tensor(weights, dtype=torch.float32),
    )


def _widen(name: str, values: Tensor, n_answer: int, length: int, family: Family, left: bool) -> Tensor:
    """Return an input per token of a prompt for its answer, too, and for padding."""
    whole = torch.cat([values, family.continue_inputs(name, values, n_answer)])
    padding = whole[:1] if left else whole[-1:]
    padding = padding.expand(length - len(whole), *whole.shape[1:])
    return torch.cat([padding, whole] if left else [whole, padding])


def plain_log_probabilities(model: Any, plain: Plain) -> Tensor:
    """Return the log-probability of every branch given its prefix, float32 [M]; tokens count by their weights."""
    inputs = cast_floats(plain.inputs, model.dtype)
    hidden = family_of(model).hidden_states(model, input_ids=plain.ids, attention_mask=plain.attention, **inputs)
    tokens = token_log_probabilities(model, hidden[plain.row, plain.column], plain.target)
    return tokens.new_zeros(len(plain.ids)).index_add(0, plain.row, tokens * plain.weight)
