"""A ranking of an item's responses from the probabilities of its pairs (Bradley & Terry 1952)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from carevl.confidence.pairs import Pairs


def bradley_terry(wins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the log-strengths that best explain the pairs, by the MM iteration of Hunter (2004), each item on its own.

    Args:
        wins: float64 [n_items, n, n], P(i beats j), with 0 on the diagonal and wins[i, j] + wins[j, i] = 1.

    Returns:
        float64 [n_items, n], with mean 0.
    """
    wins = np.where(np.eye(wins.shape[1], dtype=np.bool_), 0, np.clip(wins, 0.001, 0.999))
    games, won = wins + wins.transpose(0, 2, 1), wins.sum(axis=2)
    strength = np.ones_like(won)
    for _ in range(1000):
        updated = won / (games / (strength[:, :, None] + strength[:, None, :])).sum(axis=2)
        updated /= np.exp(np.log(updated).mean(axis=1, keepdims=True))
        moved, strength = np.abs(updated / strength - 1).max(initial=0), updated
        if moved < 1e-6:
            break
    log_strength: NDArray[np.float64] = np.log(strength)
    return log_strength


def rank_items(pairs: Pairs, probability: NDArray[np.float32]) -> pa.Array:
    """Rank the responses of each item, best first, equals by index.

    Args:
        pairs: all pairs of each of its items, in the order `Pairs.from_arrow` gives them.
        probability: float32 [n_pairs], P(first is better).

    Returns:
        list<int32> [n_items], null for an item with a pair that has no probability.
    """
    n_pairs = np.bincount(pairs.item, minlength=len(pairs.item_id))
    starts = np.cumsum(n_pairs) - n_pairs
    unknown = np.bincount(pairs.item, weights=np.isnan(probability), minlength=len(pairs.item_id))
    missing = (unknown > 0) | (n_pairs == 0)
    rankings: list[list[int] | None] = [None] * len(pairs.item_id)
    for count in np.unique(n_pairs[~missing]):
        owners = np.flatnonzero((n_pairs == count) & ~missing)
        rows = starts[owners][:, None] + np.arange(count)
        n = int(pairs.second[rows].max()) + 1
        wins = np.zeros((len(owners), n, n))
        each = np.arange(len(owners))[:, None]
        wins[each, pairs.first[rows], pairs.second[rows]] = probability[rows]
        wins[each, pairs.second[rows], pairs.first[rows]] = 1 - probability[rows]
        order = np.argsort(-bradley_terry(wins).round(4), axis=1, kind="stable")
        for owner, ranking in zip(owners.tolist(), order.tolist(), strict=True):
            rankings[owner] = ranking
    return pa.array(rankings, pa.list_(pa.int32()))
