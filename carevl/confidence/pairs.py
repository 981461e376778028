"""Pairs of responses as columns: the router's view of items and expert scores.

A margin is the score of the first response minus that of the second. Every sign is read that way: positive favours
`first`, negative `second`. NaN is unknown throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NO_CAPTION = "none"
"""The view in which an expert scores the response without any caption."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of responses, `first` < `second`; an item with fewer than two responses, or an error, has one row (-1, -1).

    n_views counts caption views only; `no_caption` holds the view `none`.
    """

    experts: tuple[str, ...]
    views: tuple[str, ...]
    item_id: pa.Array
    """string [n_items]"""
    image_id: pa.Array
    """string [n_items], the first image of an item, by which items belong together; its own id where it has none"""
    item: NDArray[np.int32]
    """[n_pairs], index into `item_id` and `image_id`"""
    first: NDArray[np.int32]
    """[n_pairs], index of a response of the item"""
    second: NDArray[np.int32]
    """[n_pairs]"""
    margins: NDArray[np.float32]
    """[n_pairs, n_experts, n_views], in each expert's own scale"""
    no_caption: NDArray[np.float32]
    """[n_pairs, n_experts], in each expert's own scale"""
    lengths: NDArray[np.int32]
    """[n_pairs, 2], characters of the two responses"""
    equal: NDArray[np.bool_]
    """[n_pairs], whether the responses are the same text, white space at the ends aside"""
    source: NDArray[np.float32]
    """[n_pairs], the source's preference: 1 first, -1 second, 0 a tie"""
    gold: NDArray[np.float32]
    """[n_pairs], the label: 1 first, -1 second, 0 a tie"""

    def __len__(self) -> int:
        return len(self.item)

    def select(self, rows: NDArray[Any]) -> Pairs:
        """Select the pairs at `rows`, indices or a mask of pairs; the items stay as they are."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _PER_PAIR})

    def without(self, expert: str) -> Pairs:
        """Return the pairs as if an expert had not been asked."""
        kept = [n for n, name in enumerate(self.experts) if name != expert]
        names = tuple(self.experts[n] for n in kept)
        return replace(self, experts=names, margins=self.margins[:, kept], no_caption=self.no_caption[:, kept])

    def sorted(self) -> Pairs:
        """Sort the pairs by image, item, first and second, whatever order they came in."""
        ids = pa.table(
            {
                "image": self.image_id.take(pa.array(self.item)),
                "item": self.item_id.take(pa.array(self.item)),
                "first": self.first,
                "second": self.second,
            }
        )
        return self.select(pc.sort_indices(ids, [(name, "ascending") for name in ids.column_names]).to_numpy())

    def images(self) -> NDArray[np.int64]:
        """Number the distinct images, [n_pairs], in the order of their ids."""
        encoded = self.image_id.dictionary_encode()
        rank = np.argsort(np.argsort(encoded.dictionary.to_numpy(zero_copy_only=False)))
        numbers: NDArray[np.int64] = rank[encoded.indices.to_numpy()][self.item]
        return numbers

    @staticmethod
    def concat(parts: Sequence[Pairs]) -> Pairs:
        """Join the pairs of blocks with the same experts and views, in order."""
        starts = np.cumsum([0, *(len(part.item_id) for part in parts)])
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PER_PAIR}
        columns["item"] = np.concatenate([part.item + start for part, start in zip(parts, starts, strict=False)])
        columns["item"] = columns["item"].astype(np.int32)
        return replace(
            parts[0],
            item_id=pa.concat_arrays([part.item_id for part in parts]),
            image_id=pa.concat_arrays([part.image_id for part in parts]),
            **columns,
        )

    @staticmethod
    def from_arrow(
        items: pa.Table | pa.RecordBatch,
        scores: pa.Table | pa.RecordBatch,
        experts: Sequence[str],
        views: Sequence[str],
    ) -> Pairs:
        """Build every pair of the items, with the margins of the named experts in the named caption views.

        Args:
            items: rows of `items`; `source_preference`, `gold` and `error` may be left out.
            scores: every row of `scores` of these items; other experts and views are passed over, and a row
                without scores, or with one that is not finite, is a missing score.

        Raises:
            ValueError: an item is there twice, a score row belongs to none of the items or comes twice, or a list
                does not have one value per response.
        """
        item_id = _strings(items, "item_id")
        if pc.count_distinct(item_id).as_py() != len(item_id):
            raise ValueError("items: an item_id occurs twice; drop the duplicates before routing")
        responses = _column(items, "responses")
        sizes = pc.fill_null(pc.list_value_length(responses), 0).to_numpy().astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        usable = sizes >= 2
        if "error" in items.schema.names:
            usable &= _column(items, "error").is_null().to_numpy(zero_copy_only=False)
        item, first, second = _pair_up(np.where(usable, sizes, 0))
        real = first >= 0
        left, right = (starts[item] + first)[real], (starts[item] + second)[real]

        def spread(values: NDArray[Any], fill: float) -> NDArray[Any]:
            out = np.full((len(item), *values.shape[1:]), fill, dtype=values.dtype)
            out[real] = values
            return out

        matrix = _score_matrix(item_id, scores, starts, sizes, experts, [*views, NO_CAPTION])
        margins = spread(matrix[left] - matrix[right], np.nan)
        texts = pc.fill_null(pc.utf8_trim_whitespace(responses.flatten()), "")
        characters = pc.utf8_length(texts).to_numpy().astype(np.int32)
        equal = characters[left] == characters[right]
        equal[equal] = pc.equal(texts.take(pa.array(left[equal])), texts.take(pa.array(right[equal])))
        source, gold = (_per_response(items, name, starts, sizes, item_id) for name in ("source_preference", "gold"))
        return Pairs(
            experts=tuple(experts),
            views=tuple(views),
            item_id=item_id,
            image_id=_first_images(items, item_id),
            item=item,
            first=first,
            second=second,
            margins=margins[:, :, :-1],
            no_caption=margins[:, :, -1],
            lengths=spread(np.stack([characters[left], characters[right]], axis=1), 0),
            equal=spread(equal, False),
            source=spread(np.sign(source[left] - source[right]), np.nan),
            gold=spread(np.sign(gold[left] - gold[right]), np.nan),
        )


_PER_PAIR = tuple(
    field.name for field in fields(Pairs) if field.name not in ("experts", "views", "item_id", "image_id")
)


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    column = table.column(name)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _strings(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    return _column(table, name).cast(pa.string())


def _first_images(items: pa.Table | pa.RecordBatch, item_id: pa.Array) -> pa.Array:
    """Return the first of each item's `images`, or its item_id where it has none."""
    images = _column(items, "images")
    n_images = pc.fill_null(pc.list_value_length(images), 0)
    padded = pc.if_else(pc.greater(n_images, 0), images, pa.scalar([""], images.type))
    return pc.if_else(pc.greater(n_images, 0), pc.list_element(padded, 0).cast(pa.string()), item_id)


def _values(lists: pa.Array) -> NDArray[np.float32]:
    """Return the values of all lists in a row; NaN where a value is missing or not finite."""
    values: NDArray[np.float32] = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    return values


def _per_response(
    items: pa.Table | pa.RecordBatch, name: str, starts: NDArray[np.int64], sizes: NDArray[np.int64], item_id: pa.Array
) -> NDArray[np.float32]:
    """Return float32 [n_responses], the values of a column of lists; NaN where there is none."""
    values = np.full(int(sizes.sum()), np.nan, dtype=np.float32)
    if name in items.schema.names:
        lists = _column(items, name)
        values[_places(lists, starts, sizes, f"items: {name}", item_id)] = _values(lists)
    return values


def _places(
    lists: pa.Array, starts: NDArray[np.int64], sizes: NDArray[np.int64], what: str, item_id: pa.Array
) -> NDArray[np.int64]:
    """Return the place of each value's response; list i belongs to an item with `sizes[i]` responses."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    bad = np.flatnonzero((lengths != sizes) & lists.is_valid().to_numpy(zero_copy_only=False))
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{what} of item {item_id[row].as_py()}: {lengths[row]} values for {sizes[row]} responses; "
            "there must be one per response, or null"
        )
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places: NDArray[np.int64] = np.repeat(starts, lengths) + within
    return places


def _pair_up(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Return item, first and second of every pair; an item of size 0 gets the row (-1, -1)."""
    parts = []
    for size in np.union1d(sizes, [0]):
        owners = np.flatnonzero(sizes == size)
        first, second = np.triu_indices(size, 1) if size else (np.array([-1]), np.array([-1]))
        parts.append((np.repeat(owners, len(first)), np.tile(first, len(owners)), np.tile(second, len(owners))))
    columns = [np.concatenate(column).astype(np.int32) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    return columns[0][order], columns[1][order], columns[2][order]


def _score_matrix(
    item_id: pa.Array,
    scores: pa.Table | pa.RecordBatch,
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    experts: Sequence[str],
    views: Sequence[str],
) -> NDArray[np.float32]:
    """Return float32 [n_responses, n_experts, n_views], the score of every response; NaN where there is none."""
    owner = pc.index_in(_strings(scores, "item_id"), value_set=item_id)
    if owner.null_count:
        stray = _strings(scores, "item_id").filter(owner.is_null())[0].as_py()
        raise ValueError(f"scores: item {stray} is not among the items given; pass the scores with their own items")
    expert = pc.index_in(_strings(scores, "expert"), value_set=pa.array(experts, pa.string()))
    view = pc.index_in(_strings(scores, "view"), value_set=pa.array(views, pa.string()))
    chosen = pc.and_(expert.is_valid(), view.is_valid())
    owners, column, depth = (codes.filter(chosen).to_numpy().astype(np.int64) for codes in (owner, expert, view))
    seen = np.zeros((len(item_id), len(experts), len(views)), dtype=np.bool_)
    seen[owners, column, depth] = True
    if seen.sum() != len(owners):
        raise ValueError("scores: an (item_id, expert, view) occurs twice; drop the duplicates before routing")
    lists = _column(scores, "scores").filter(chosen)
    places = _places(lists, starts[owners], sizes[owners], "scores", item_id.take(pa.array(owners)))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    matrix = np.full((int(sizes.sum()), len(experts), len(views)), np.nan, dtype=np.float32)
    matrix[places, np.repeat(column, lengths), np.repeat(depth, lengths)] = _values(lists)
    return matrix
