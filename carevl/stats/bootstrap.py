"""Estimates with 95 % intervals: percentile bootstrap over images.

A statistic is a function of row weights. Its value is that at weight 1 for every row; a resample of the images gives
each row the number of times its image was drawn. Rows of one image are therefore drawn together, and a statistic is
evaluated for many resamples in a few matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from carevl.stats.estimate import Estimate

FloatArray = NDArray[np.float64]
Statistic = Callable[[FloatArray], FloatArray]
"""Weights float64 [n_resamples, n_rows] to values float64 [n_resamples]; nan where undefined."""

RESAMPLES = 2000
_CHUNK = 250


@dataclass(frozen=True)
class Scored:
    """A judge's scores on rows: enough for every estimate with its interval, and to compare with another judge."""

    keys: tuple[str, ...]
    units: tuple[str, ...]
    """One per row: rows of the same unit (image) are resampled together."""
    right: FloatArray
    """[n_rows]: 1 right, 0 wrong, nan where the row does not count or is not a matter of right and wrong."""
    statistics: dict[str, Statistic] = field(default_factory=dict)
    counted: NDArray[np.bool_] | None = None
    """[n_rows]: whether the row counts in any figure; None: where `right` is a number."""

    @property
    def n_counted(self) -> int:
        """Number of rows that count in any figure."""
        return int((~np.isnan(self.right) if self.counted is None else self.counted).sum())


def ratio(numerator: ArrayLike, denominator: ArrayLike) -> Statistic:
    """Return the weighted sum over the weighted sum of two arrays [n_rows]; nan where the second is 0."""
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)

    def statistic(weights: FloatArray) -> FloatArray:
        return divide(weights @ top, weights @ bottom)

    return statistic


def mean(values: ArrayLike) -> Statistic:
    """Return the weighted mean of the values [n_rows] that are not nan."""
    numbers = np.asarray(values, np.float64)
    return ratio(np.nan_to_num(numbers), ~np.isnan(numbers))


def average(statistics: Sequence[Statistic]) -> Statistic:
    """Return the unweighted mean of the statistics that are defined."""

    def statistic(weights: FloatArray) -> FloatArray:
        values = np.stack([each(weights) for each in statistics])
        return divide(np.nansum(values, axis=0), np.sum(~np.isnan(values), axis=0))

    return statistic


def pearson(x: ArrayLike, y: ArrayLike, *, constant: float = np.nan) -> Statistic:
    """Return the weighted Pearson correlation over the rows where x and y [n_rows] are not nan.

    Args:
        constant: its value where either is constant.
    """
    left, right = np.asarray(x, np.float64), np.asarray(y, np.float64)
    member = (~np.isnan(left) & ~np.isnan(right)).astype(np.float64)
    a, b = _centre(left, member), _centre(right, member)

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


def _centre(values: FloatArray, member: FloatArray) -> FloatArray:
    """Take the members' mean off their values, so that rounding stays small; 0 outside."""
    numbers = np.where(member > 0, values, 0.0)
    return np.asarray(member * (numbers - numbers.sum() / max(member.sum(), 1.0)))


def divide(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Divide element by element; nan where `bottom` is 0."""
    undefined: FloatArray = np.full(np.shape(top), np.nan)
    return np.divide(top, bottom, out=undefined, where=bottom != 0)


def accuracy_statistics(right: FloatArray, groups: Sequence[str]) -> dict[str, Statistic]:
    """Return `overall` (over rows), `macro` (unweighted mean of the groups), and each group, of `right` [n_rows]."""
    names = sorted(set(groups))
    per_group = {name: mean(np.where([group == name for group in groups], right, np.nan)) for name in names}
    return {"overall": mean(right), "macro": average(list(per_group.values())), **per_group}


def estimate(scored: Scored, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """Estimate every statistic of the scores, as `bootstrap` does."""
    return bootstrap(scored.statistics, scored.units, resamples=resamples, seed=seed)


def bootstrap(
    statistics: Mapping[str, Statistic], units: Sequence[str], *, resamples: int, seed: int
) -> dict[str, Estimate]:
    """Estimate every statistic, with its 95 % percentile interval over resampled units.

    Resamples on which a statistic is undefined (a small group drawn zero times) are left out of its interval.

    Args:
        units: of every row; rows of one unit (image) are drawn together.
    """
    once = np.ones((1, len(units)))
    drawn: dict[str, list[FloatArray]] = {name: [] for name in statistics}
    for weights in _resample(units, resamples, seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(weights))
    return {
        name: percentile_interval(statistic(once)[0], np.concatenate([*drawn[name], np.empty(0)]))
        for name, statistic in statistics.items()
    }


def _resample(units: Sequence[str], resamples: int, seed: int) -> Iterator[FloatArray]:
    """Yield row weights float64 [up to _CHUNK, n_rows]; the same for the same units, number and seed."""
    n_units, unit_of_row = index_units(units)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples if n_units else 0, _CHUNK):
        yield draw_counts(rng, n_units, min(_CHUNK, resamples - start))[:, unit_of_row]


def index_units(units: Sequence[str]) -> tuple[int, NDArray[np.intp]]:
    """Return the number of distinct units and the index of each row's unit, [n_rows]."""
    names, unit_of_row = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    return len(names), unit_of_row


def draw_counts(rng: np.random.Generator, n: int, resamples: int) -> FloatArray:
    """Draw n things n times with replacement: how often each was drawn, float64 [resamples, n]."""
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile_interval(value: float | np.float64, drawn: FloatArray) -> Estimate:
    """Return a value with the 95 % percentile interval of what the resamples gave, [n_resamples]; nan is undefined."""
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not defined.size:
        return {"value": None if np.isnan(value) else float(value), "low": None, "high": None}
    low, high = np.percentile(defined, [2.5, 97.5])
    return {"value": float(value), "low": float(low), "high": float(high)}
