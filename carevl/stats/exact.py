"""Exact intervals of a share (Clopper & Pearson 1934)."""

from __future__ import annotations

from collections.abc import Sequence

from scipy import special

from carevl.stats.estimate import Estimate


def clopper_pearson(n_right: int, n: int, confidence_level: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a share of which `n_right` of `n` draws were right; (0, 1) for no draws."""
    n_wrong, tail = n - n_right, (1 - confidence_level) / 2
    low = float(special.betaincinv(n_right, n_wrong + 1, tail)) if n_right else 0.0
    high = float(special.betaincinv(n_right + 1, n_wrong, 1 - tail)) if n_wrong else 1.0
    return low, high


def share(hits: Sequence[bool]) -> Estimate:
    """Return the share of hits with its exact 95 % interval.

    Raises:
        ZeroDivisionError: there are no hits and no misses.
    """
    low, high = clopper_pearson(sum(hits), len(hits))
    return {"value": sum(hits) / len(hits), "low": low, "high": high}
