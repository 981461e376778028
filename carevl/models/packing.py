"""Prefix-shared sequences: a prompt is computed once for all the texts that continue it.

A tree is one sequence `[prefix | branch 1 | branch 2 | …]`. A branch sees the prefix and itself, and its positions
begin where the prefix's end, so its log-probability is what it would be in a sequence `[prefix | branch]` of its own.
The trees of a batch stand one after the other in one row without padding, and do not see each other.

Shapes: a row of T tokens, M branches, A answer tokens (all tokens of all branches), I distinct images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from carevl.errors import UserError
from carevl.models.families import family_of
from carevl.models.families.base import Picture

if TYPE_CHECKING:
    from carevl.settings.training import Packing

_ATTENTION = ("full_attention", "sliding_attention")


class Shape(NamedTuple):
    """Tokens of a tree's prefix and of each of its branches."""

    prefix: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of the packed sequence."""
        return self.prefix + sum(self.branches)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence `[prefix | branch]`."""
        return self.prefix + max(self.branches)


def computed_tokens(shapes: Sequence[Shape], packing: Packing) -> int:
    """Return the tokens that a batch of trees costs: packed, or as separate sequences padded to the longest."""
    if packing == "shared":
        return sum(shape.tokens for shape in shapes)
    return sum(len(shape.branches) for shape in shapes) * max((shape.longest for shape in shapes), default=0)


@dataclass(frozen=True)
class Tree:
    """Token ids of a prefix and of the branches that continue it.

    `image` names the image whose features stand at the prefix's image tokens; None for a text. `weights` are those of
    the branches' tokens, None when all are 1.
    """

    prefix: Sequence[int]
    branches: Sequence[Sequence[int]]
    image: str | None = None
    weights: Sequence[Sequence[float]] | None = None

    @property
    def shape(self) -> Shape:
        """How long its parts are."""
        return Shape(len(self.prefix), tuple(map(len, self.branches)))

    @property
    def tokens(self) -> int:
        """Tokens of the packed sequence."""
        return self.shape.tokens


@dataclass(frozen=True)
class Place:
    """Where a tree lies: the columns at which its prefix begins and ends and each of its branches ends."""

    start: int
    prefix_end: int
    ends: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Trees in a row, ready for a forward pass.

    `ids` int64 [1, T]; `owner` and `side` int64 [1, T], the tree of a token and 0 for its prefix or 1, 2, … for its
    branches; `positions` int64 [3, 1, T], or [1, T] for a text model; `picture` int64, for every use of
    an image, in the order of the row, which of the I distinct images it is. `features` of the I images, [tokens, size],
    None where the vision tower has to make them; `patches` and `grids` of these, in their order.
    `column`, `target`, `branch` int64 [A]: answer token a belongs to `branch[a]`, is `target[a]` and is predicted at
    `column[a]`; `weight` float32 [A] is what it counts. `places` has one entry per tree, in their order.
    """

    ids: Tensor
    owner: Tensor
    side: Tensor
    positions: Tensor
    patches: Tensor | None
    grids: Tensor | None
    picture: Tensor
    column: Tensor
    target: Tensor
    branch: Tensor
    weight: Tensor
    places: tuple[Place, ...]
    features: tuple[Tensor | None, ...]

    @property
    def mask(self) -> Tensor:
        """bool [1, 1, T, T], True where query sees key."""
        owner, side = self.owner, self.side
        seen = side.unsqueeze(1).eq(0) | side.unsqueeze(1).eq(side.unsqueeze(2))
        return (seen & owner.unsqueeze(1).eq(owner.unsqueeze(2))).tril().unsqueeze(1)

    def padded(self, multiple: int) -> Packed:
        """Return the row filled up to a multiple of tokens: the padding is a tree of its own, in no one's sight."""
        n = -self.ids.shape[1] % multiple
        if not n:
            return self
        last = self.ids[:, -1:].expand(-1, n)  # a row ends with an answer, never in an image
        return replace(
            self,
            ids=torch.cat([self.ids, last], 1),
            owner=pad(self.owner, (0, n), value=len(self.places)),
            side=pad(self.side, (0, n)),
            positions=pad(self.positions, (0, n)),
        )

    def to(self, device: torch.device | str) -> Packed:
        """Return a copy on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        features = tuple(value if value is None else value.to(device) for value in self.features)
        return replace(self, features=features, **moved)


def sliding_window(model: Any) -> int | None:
    """Return the tokens that a layer of the model looks back on; None where every layer sees everything."""
    text = model.config.get_text_config()
    layers = getattr(text, "layer_types", None) or ()
    window: int | None = getattr(text, "sliding_window", None)
    return window if not layers or "sliding_attention" in layers else None


def check_packable(model: Any, longest: int) -> None:
    """Check that packing is exact for a model's architecture; the model may lie on the meta device.

    Args:
        longest: tokens of the longest sequence `[prefix | branch]`.

    Raises:
        UserError: it has a state that runs over the tokens (linear attention, convolutions), a sliding window shorter
            than `longest`, or a vision architecture that no family serves, or whose family cannot share.
    """
    config, name = model.config, model.config.model_type
    text = config.get_text_config()
    layers = set(getattr(text, "layer_types", None) or ())
    if model._is_stateful or not layers.issubset(_ATTENTION):
        other = ", ".join(sorted(layers.difference(_ATTENTION))) or "a recurrent state"
        raise UserError(
            f"{name} cannot share prefixes: it has {other}, which runs over the tokens from left to right and "
            "would carry one judgment into the next"
        )
    window = sliding_window(model)
    if window is not None and window < longest:
        raise UserError(
            f"{name} cannot share prefixes of this length: its sliding window is {window} tokens, and a prompt with "
            f"its judgment has {longest}"
        )
    if hasattr(config, "vision_config") and not family_of(model).shares_prefixes:
        raise UserError(f"{name} cannot share prefixes: with one, its images and positions come out differently")


def fill_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Pack sequences into rows of at most `row_tokens`, first-fit decreasing; a longer one has a row of its own.

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


def pack(trees: Sequence[Tree], pictures: Mapping[str, Picture], model: Any) -> Packed:
    """Lay trees out in a row.

    Args:
        pictures: the images that the trees name.
        model: its family says where tokens are.
    """
    names = list(dict.fromkeys(tree.image for tree in trees if tree.image is not None))
    unseen = [pictures[name] for name in names if pictures[name].features is None]
    ids: list[int] = []
    owner: list[int] = []
    side: list[int] = []
    answers: list[tuple[int, int, int]] = []
    weights: list[float] = []
    places = []
    n_branches = 0
    for i, tree in enumerate(trees):
        start, prefix_end = len(ids), len(ids) + len(tree.prefix)
        ids += tree.prefix
        side += [0] * len(tree.prefix)
        ends = [prefix_end + tokens for tokens in accumulate(map(len, tree.branches))]
        for b, branch in enumerate(tree.branches):
            columns = [prefix_end - 1, *range(len(ids), len(ids) + len(branch) - 1)][: len(branch)]
            answers += [(column, token, n_branches + b) for column, token in zip(columns, branch, strict=True)]
            weights += [1.0] * len(branch) if tree.weights is None else tree.weights[b]
            ids += branch
            side += [b + 1] * len(branch)
        owner += [i] * tree.tokens
        places.append(Place(start, prefix_end, tuple(ends)))
        n_branches += len(tree.branches)
    located = torch.tensor(answers, dtype=torch.long).reshape(-1, 3).unbind(1)
    return Packed(
        ids=torch.tensor([ids]),
        owner=torch.tensor([owner]),
        side=torch.tensor([side]),
        positions=torch.cat([_positions(tree, pictures, model) for tree in trees], dim=-1).unsqueeze(-2),
        patches=torch.cat([picture.patches for picture in unseen]) if unseen else None,
        grids=torch.stack([picture.grid for picture in unseen]) if unseen else None,
        picture=torch.tensor([names.index(tree.image) for tree in trees if tree.image is not None], dtype=torch.long),
        column=located[0],
        target=located[1],
        branch=located[2],
        weight=torch.tensor(weights, dtype=torch.float32),
        places=tuple(places),
        features=tuple(pictures[name].features for name in names),
    )


def _positions(tree: Tree, pictures: Mapping[str, Picture], model: Any) -> Tensor:
    """Return positions [3, tokens], or [tokens] for a text model: each branch counts on from the prefix's end."""
    n = len(tree.prefix)
    longest = max(tree.branches, key=len)
    if hasattr(model.config, "vision_config"):
        grid = None if tree.image is None else pictures[tree.image].grid.unsqueeze(0)
        whole = family_of(model).positions(model, torch.tensor([[*tree.prefix, *longest]]), grid)
    else:
        whole = torch.arange(tree.shape.longest)
    return torch.cat([whole[..., :n], *(whole[..., n : n + len(branch)] for branch in tree.branches)], dim=-1)
