"""Figures with 95 % intervals: percentile bootstrap over images.

A figure is a function of row weights. The figure itself is its value at weight 1 for every row; a resample of the
images gives each row the number of times its image was drawn. Rows of one image are therefore drawn together, and a
statistic is evaluated for many resamples in a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""Weights float64 [n_resamples, n_rows] to values float64 [n_resamples]; nan where undefined."""

RESAMPLES = 2000
_CHUNK = 250


class Figure(TypedDict):
    """A value with its 95 % interval; None where it is undefined (no row counts, or a correlation of a constant)."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Scored:
    """What a scorer returns: enough to compute every figure, its interval, and a comparison with another judge."""

    keys: tuple[str, ...]
    units: tuple[str, ...]
    """One per row: rows of the same unit (image) are resampled together."""
    right: FloatArray
    """[n_rows]: 1 right, 0 wrong, nan where the row does not count or is not a matter of right and wrong."""
    statistics: dict[str, Statistic] = field(default_factory=dict)


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Statistic:
    """Weighted sum over weighted sum of two arrays [n_rows]; nan where the second is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def statistic(weights: FloatArray) -> FloatArray:
        return divide(weights @ top, weights @ bottom)

    return statistic


def mean(values: ArrayLike) -> Statistic:
    """Weighted mean of the values [n_rows] that are not nan."""
    numbers = np.asarray(values, np.float64)
    return ratio(np.nan_to_num(numbers), ~np.isnan(numbers))


def average(statistics: Sequence[Statistic]) -> Statistic:
    """Unweighted mean of the statistics that are defined."""

    def statistic(weights: FloatArray) -> FloatArray:
        values = np.stack([each(weights) for each in statistics])
        return divide(np.nansum(values, axis=0), np.sum(~np.isnan(values), axis=0))

    return statistic


def pearson(x: ArrayLike, y: ArrayLike, *, constant: float = np.nan) -> Statistic:
    """Weighted Pearson correlation over the rows where x and y [n_rows] are not nan; `constant` where either is."""
    left, right = np.asarray(x, np.float64), np.asarray(y, np.float64)
    member = (~np.isnan(left) & ~np.isnan(right)).astype(np.float64)
    a, b = _centred(left, member), _centred(right, member)

    def statistic(weights: FloatArray) -> FloatArray:
        total = weights @ member
        mean_a, mean_b = divide(weights @ a, total), divide(weights @ b, total)
        covariance = divide(weights @ (a * b), total) - mean_a * mean_b
        variances = (divide(weights @ (a * a), total) - mean_a**2, divide(weights @ (b * b), total) - mean_b**2)
        flat = np.minimum(*variances) < _FLAT
        spread = np.sqrt(np.where(flat, 1.0, variances[0] * variances[1]))
        undefined = np.where(total > 0, constant, np.nan)
        value: FloatArray = np.where(flat, undefined, covariance / spread)
        return value

    return statistic


_FLAT = 1e-12
"""Variance of whole numbers from 1 to 5 is either above or, but for rounding, 0."""


def _centred(values: FloatArray, member: FloatArray) -> FloatArray:
    """Values less the members' mean (so that rounding stays small), 0 outside."""
    numbers = np.where(member > 0, values, 0.0)
    return np.asarray(member * (numbers - numbers.sum() / max(member.sum(), 1.0)))


def divide(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Element by element; nan where `bottom` is 0."""
    undefined: FloatArray = np.full(np.shape(top), np.nan)
    return np.divide(top, bottom, out=undefined, where=bottom != 0)


def accuracy_statistics(right: FloatArray, groups: Sequence[str]) -> dict[str, Statistic]:
    """`overall` (over rows), `macro` (unweighted mean of the groups), and each group, of `right` [n_rows]."""
    names = sorted(set(groups))
    per_group = {name: mean(np.where([group == name for group in groups], right, np.nan)) for name in names}
    return {"overall": mean(right), "macro": average(list(per_group.values())), **per_group}


def figures(scored: Scored, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Figure]:
    """Every figure with its 95 % percentile interval over resampled units.

    Resamples on which a figure is undefined (a small group drawn zero times) are left out of its interval.
    """
    return evaluate(scored.statistics, scored.units, resamples=resamples, seed=seed)


def evaluate(
    statistics: Mapping[str, Statistic], units: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Figure]:
    """As `figures`, for statistics of rows with these units."""
    once = np.ones((1, len(units)))
    drawn: dict[str, list[FloatArray]] = {name: [] for name in statistics}
    for weights in _resampled(units, resamples, seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    return {name: _figure(statistic(once)[0], drawn[name]) for name, statistic in statistics.items()}


def _resampled(units: Sequence[str], resamples: int, seed: int) -> Iterator[FloatArray]:
    """Row weights float64 [up to _CHUNK, n_rows]; the same for the same units, number and seed."""
    names, unit_of_row = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples if len(names) else 0, _CHUNK):
        size = min(_CHUNK, resamples - start)
        counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        yield counts[:, unit_of_row].astype(np.float64)


def _figure(value: np.float64, drawn: list[FloatArray]) -> Figure:
    values = np.concatenate([*drawn, np.empty(0)])
    values = values[~np.isnan(values)]
    if np.isnan(value) or not values.size:
        return {"value": None if np.isnan(value) else float(value), "low": None, "high": None}
    low, high = np.percentile(values, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}
