"""Comparing two judges on the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from carevl.errors import DataError
from carevl.stats.bootstrap import RESAMPLES, FloatArray, Scored, Statistic, bootstrap
from carevl.stats.estimate import Estimate


@dataclass(frozen=True)
class Comparison:
    """Judge A against judge B.

    `only_a` and `only_b` count the rows that one got right and the other wrong; `p_value` is McNemar's exact
    two-sided test on them (the chance of a split at least as uneven if both were equally likely to win a row).
    """

    differences: dict[str, Estimate]
    """A - B of each figure, with the 95 % interval of the paired bootstrap: both judges on the same resamples."""
    only_a: int
    only_b: int
    p_value: float


def compare(a: Scored, b: Scored, *, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Return A - B in every figure that both have.

    Raises:
        DataError: the two were not scored on the same rows in the same order.
    """
    if a.keys != b.keys:
        only = set(a.keys) ^ set(b.keys)
        raise DataError(f"judges were scored on different rows: {len(only)} rows belong to one only, or order differs")
    differences = {
        name: _difference(a.statistics[name], b.statistics[name]) for name in a.statistics if name in b.statistics
    }
    both = ~np.isnan(a.right) & ~np.isnan(b.right)
    only_a, only_b = int((a.right > b.right)[both].sum()), int((a.right < b.right)[both].sum())
    return Comparison(
        differences=bootstrap(differences, a.units, resamples=resamples, seed=seed),
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b),
    )


def _difference(a: Statistic, b: Statistic) -> Statistic:
    def statistic(weights: FloatArray) -> FloatArray:
        return a(weights) - b(weights)

    return statistic


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p-value: min(1, 2 P(X <= min(only_a, only_b))), X ~ Binomial(only_a + only_b, 1/2)."""
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, float(2 * tail / 2**n))
