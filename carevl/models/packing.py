"""Prefix-shared sequences: a prompt is computed once for all the texts that continue it.

A tree is one sequence `[prefix | branch 1 | branch 2 | …]`. A branch sees the prefix and itself, and its positions
begin where the prefix's end, so its log-probability is what it would be in a sequence `[prefix | branch]` of its own.
The trees of a batch stand one after the other in one row without padding, and do not see each other.

Shapes: a row of T tokens, M branches, A answer tokens (all tokens of all branches), I distinct images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.masking_utils import causal_mask_function

from carevl.models.families import family_of
from carevl.models.families.base import Family, Picture

if TYPE_CHECKING:
    from carevl.settings.training import Packing

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


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
    branches; `place` int64 [1, T], the column at which a token would stand if its branch came right after its prefix;
    `positions` int64 [axes, 1, T] or [1, T]. `images` and `per_token` are the model's other inputs, those per token
    [1, T, ...]. Where images enter as embeddings, `features` of the I distinct images are [tokens, size], or None
    where the vision tower has to make them: `images` are those of these, and `unseen` their tokens. `picture` int64,
    for every use of an image, in the order of the row, which of the I it is.
    `column`, `target`, `branch` int64 [A]: answer token a belongs to `branch[a]`, is `target[a]` and is predicted at
    `column[a]`; `weight` float32 [A] is what it counts. `places` has one entry per tree, in their order.
    """

    ids: Tensor
    owner: Tensor
    side: Tensor
    place: Tensor
    positions: Tensor
    images: dict[str, Tensor]
    per_token: dict[str, Tensor]
    picture: Tensor
    unseen: tuple[int, ...]
    features: tuple[Tensor | None, ...]
    column: Tensor
    target: Tensor
    branch: Tensor
    weight: Tensor
    places: tuple[Place, ...]

    def padded(self, multiple: int) -> Packed:
        """Return the row filled up to a multiple of tokens: the padding is a tree of its own, in no one's sight."""
        n, length = -self.ids.shape[1] % multiple, self.ids.shape[1]
        if not n:
            return self

        def repeat_last(values: Tensor) -> Tensor:  # a row ends with an answer, never in an image
            return torch.cat([values, values[:, -1:].expand(-1, n, *values.shape[2:])], 1)

        return replace(
            self,
            ids=repeat_last(self.ids),
            owner=pad(self.owner, (0, n), value=len(self.places)),
            side=pad(self.side, (0, n)),
            place=torch.cat([self.place, torch.arange(length, length + n, device=self.place.device)[None]], 1),
            positions=pad(self.positions, (0, n)),
            per_token={name: repeat_last(values) for name, values in self.per_token.items()},
        )

    def to(self, device: torch.device | str) -> Packed:
        """Return a copy on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        for name in ("images", "per_token"):
            moved[name] = {key: value.to(device) for key, value in values[name].items()}
        features = tuple(value if value is None else value.to(device) for value in self.features)
        return replace(self, features=features, **moved)


Rule = Callable[..., Any]
"""Who sees whom by column: `rule(batch, head, query, key)`, as transformers' mask functions are given it."""

_row: ContextVar[Packed | None] = ContextVar("row", default=None)


@contextmanager
def laid_out(packed: Packed) -> Iterator[None]:
    """Let masks that are made inside be those of a row of trees."""
    before = _row.set(packed)
    try:
        yield
    finally:
        _row.reset(before)


def row_of(batch_size: int, q_length: int, kv_length: int) -> Packed | None:
    """Return the row that a mask of this size is asked for; None where it is another one's mask."""
    packed = _row.get()
    if packed is None or (batch_size, q_length, kv_length) != (1, packed.ids.shape[1], packed.ids.shape[1]):
        return None
    return packed


def ask_rule(rule: Rule, columns: Tensor) -> Tensor:
    """Return what a rule says of every pair of columns, bool [n, n]."""
    zero = columns.new_zeros((1, 1, 1, 1))
    seen: Tensor = rule(zero, zero, columns.view(1, 1, -1, 1), columns.view(1, 1, 1, -1))
    return seen.expand(1, 1, len(columns), len(columns))[0, 0]


def dense_mask(packed: Packed, rule: Rule = causal_mask_function) -> Tensor:
    """Return who sees whom in a row, bool [1, 1, T, T], True where query sees key."""
    owner, side = packed.owner, packed.side
    together = side.unsqueeze(1).eq(0) | side.unsqueeze(1).eq(side.unsqueeze(2))
    together = together & owner.unsqueeze(1).eq(owner.unsqueeze(2))
    # Padding sees itself: a row that sees nothing gives no numbers.
    itself = torch.eye(packed.ids.shape[1], dtype=torch.bool, device=owner.device)
    return ((together[0] & ask_rule(rule, packed.place[0])) | itself)[None, None]


def find_state(model: Any) -> str | None:
    """Return what a model carries from token to token besides keys and values; None where prefixes can be shared.

    The model may lie on the meta device.
    """
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if other := sorted(layers.difference(_ATTENTION)):
        return ", ".join(other)
    return "a recurrent state" if model._is_stateful else None


def usable_packing(model: Any, packing: Packing) -> tuple[Packing, str | None]:
    """Return how items of a model can be computed where `packing` is wanted, and why it is not that.

    The model may lie on the meta device.
    """
    state = find_state(model)
    if packing == "plain" or state is None:
        return packing, None
    return "plain", (
        f"{model.config.model_type} cannot share prefixes: it has {state}, which runs over the tokens from left to "
        "right and would carry one judgment into the next; so every judgment is computed with a prompt of its own"
    )


def row_tokens(model: Any, packing: Packing, batch_tokens: int) -> int:
    """Return the tokens up to which items share a micro-batch; an item that is longer has one of its own.

    Where trees cannot lie in one row, or images of several sizes in one batch, every item is longer.
    """
    family = family_of(model)
    together = family.mixes_sizes if packing == "plain" else family.joins
    return batch_tokens if together else 1


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


def pack(trees: Sequence[Tree], model: Any, pictures: Sequence[Picture | None] = ()) -> Packed:
    """Lay trees out in a row.

    Args:
        model: its family says where tokens are.
        pictures: one for every tree, none at all for texts. Where images enter as embeddings, trees about one image may
            have one picture in common, and a tree without an image has None.
    """
    ids: list[int] = []
    owner: list[int] = []
    side: list[int] = []
    place: list[int] = []
    answers: list[tuple[int, int, int]] = []
    weights: list[float] = []
    places = []
    n_branches = 0
    for i, tree in enumerate(trees):
        start, prefix_end = len(ids), len(ids) + len(tree.prefix)
        ids += tree.prefix
        side += [0] * len(tree.prefix)
        place += range(start, prefix_end)
        ends = [prefix_end + tokens for tokens in accumulate(map(len, tree.branches))]
        for b, branch in enumerate(tree.branches):
            columns = [prefix_end - 1, *range(len(ids), len(ids) + len(branch) - 1)][: len(branch)]
            answers += [(column, token, n_branches + b) for column, token in zip(columns, branch, strict=True)]
            weights += [1.0] * len(branch) if tree.weights is None else tree.weights[b]
            ids += branch
            side += [b + 1] * len(branch)
            place += range(prefix_end, prefix_end + len(branch))
        owner += [i] * tree.tokens
        places.append(Place(start, prefix_end, tuple(ends)))
        n_branches += len(tree.branches)
    located = torch.tensor(answers, dtype=torch.long).reshape(-1, 3).unbind(1)
    shown = pictures or [None] * len(trees)
    positions = [_positions(tree, picture, model) for tree, picture in zip(trees, shown, strict=True)]
    return Packed(
        ids=torch.tensor([ids]),
        owner=torch.tensor([owner]),
        side=torch.tensor([side]),
        place=torch.tensor([place]),
        positions=torch.cat(positions, dim=-1).unsqueeze(-2),
        **_images(trees, pictures, model),
        column=located[0],
        target=located[1],
        branch=located[2],
        weight=torch.tensor(weights, dtype=torch.float32),
        places=tuple(places),
    )


def _images(trees: Sequence[Tree], pictures: Sequence[Picture | None], model: Any) -> dict[str, Any]:
    """Return the fields of `Packed` that images fill."""
    nothing = {"images": {}, "per_token": {}, "picture": torch.empty(0, dtype=torch.long), "unseen": (), "features": ()}
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        return nothing
    family = family_of(model)
    if not family.embeds:
        named = [_per_token(tree, picture, family) for tree, picture in zip(trees, shown, strict=True)]
        per_token = {name: torch.cat([own[name] for own in named])[None] for name in named[0]}
        return nothing | {"images": family.join(shown), "per_token": per_token}
    distinct = list(dict.fromkeys(shown))
    unseen = [picture for picture in distinct if picture.features is None]
    token = family.image_token(model.config)
    return nothing | {
        "images": family.join(unseen) if unseen else {},
        "picture": torch.tensor([distinct.index(picture) for picture in shown], dtype=torch.long),
        "unseen": tuple(list(trees[pictures.index(picture)].prefix).count(token) for picture in unseen),
        "features": tuple(picture.features for picture in distinct),
    }


def _per_token(tree: Tree, picture: Picture, family: Family) -> dict[str, Tensor]:
    """Return the inputs per token of a tree, [tokens, ...]."""
    more = tree.tokens - len(tree.prefix)
    return {
        name: torch.cat([values, family.continue_inputs(name, values, more)])
        for name, values in picture.per_token.items()
    }


def _positions(tree: Tree, picture: Picture | None, model: Any) -> Tensor:
    """Return positions [axes, tokens], or [tokens]: each branch counts on from the prefix's end."""
    n = len(tree.prefix)
    longest = max(tree.branches, key=len)
    sequence = torch.tensor([[*tree.prefix, *longest]])
    if hasattr(model.config, "vision_config"):
        whole = family_of(model).positions(model, sequence, {} if picture is None else picture.images)
    else:
        whole = torch.arange(tree.shape.longest)
    return torch.cat([whole[..., :n], *(whole[..., n : n + len(branch)] for branch in tree.branches)], dim=-1)
