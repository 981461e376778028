"""Estimates of an audit by path, each with its 95 % interval and the number of pairs behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carevl.stats.bootstrap import Statistic, bootstrap, divide
from carevl.stats.estimate import Estimate
from carevl.stats.exact import clopper_pearson

Tree = dict[str, Any]
Floats = NDArray[np.float64]
RESAMPLES = 1000
_BINS = 10


class Ledger:
    """Collects statistics and evaluates them together: one resampling of the images serves them all.

    Args:
        images: [n_pairs], a number per distinct image.
    """

    def __init__(self, images: NDArray[np.int64]) -> None:
        self._units = images.astype(str).tolist()
        self._rows: list[tuple[tuple[str, ...], Statistic, int]] = []
        self._means = _Means()

    def put(self, *path: str, statistic: Statistic, n: int) -> None:
        """Add a statistic of the pairs' weights, of n pairs."""
        self._rows.append((path, statistic, n))

    def put_mean(self, *path: str, values: NDArray[Any]) -> None:
        """Add the mean of the values [n_pairs] that are not NaN."""
        numbers = np.asarray(values, np.float64)
        self.put(*path, statistic=self._means.add(numbers), n=int((~np.isnan(numbers)).sum()))

    def estimate(self) -> Tree:
        """Estimate every statistic, nested by path; the same for the same pairs."""
        statistics = {str(k): statistic for k, (_, statistic, _) in enumerate(self._rows)}
        estimates = bootstrap(statistics, self._units, resamples=RESAMPLES, seed=0)
        tree: Tree = {}
        for k, ((*branch, leaf), _, n) in enumerate(self._rows):
            node = tree
            for name in branch:
                node = node.setdefault(name, {})
            node[leaf] = Estimate(**estimates[str(k)], n=n)
        return tree


class _Means:
    """Weighted means of many columns by one matrix product for each block of weights."""

    def __init__(self) -> None:
        self.columns: list[Floats] = []
        self.matrix: Floats | None = None
        self.weights: Floats | None = None
        self.values: Floats = np.empty((0, 0))

    def add(self, column: Floats) -> Statistic:
        """Add a column [n_pairs]; return its statistic, the mean of what is not NaN."""
        place = len(self.columns)
        self.columns.append(column)
        return lambda weights: self._all(weights)[:, place]

    def _all(self, weights: Floats) -> Floats:
        if self.matrix is None:
            stacked = np.stack(self.columns, axis=1)
            self.matrix = np.concatenate([np.nan_to_num(stacked), ~np.isnan(stacked)], axis=1)
        if weights is not self.weights:
            top, bottom = np.split(weights @ self.matrix, 2, axis=1)
            self.weights, self.values = weights, divide(top, bottom)
        return self.values


def calibration_gaps(p: Floats, right: Floats) -> Floats:
    """Return [n_pairs], whose mean is the expected calibration error: confidence less accuracy, by the sign of its bin.

    The error is the mean over ten equal bins of confidence of |confidence - accuracy| (Naeini et al. 2015). The signs
    are those of all pairs and stay as they are under resampling, which would otherwise add its own noise to the error.
    """
    confidence = np.abs(p - 0.5) + 0.5
    gaps = confidence - right
    place = _bins(confidence)
    for b in range(_BINS):
        inside = (place == b) & ~np.isnan(gaps)
        gaps[inside] *= np.sign(gaps[inside].mean()) if inside.any() else 0
    return gaps


def reliability(p: Floats, right: Floats) -> list[Tree]:
    """List bins of confidence: mean confidence, accuracy, its Clopper-Pearson interval, n; empty bins are left out."""
    confidence = np.abs(p - 0.5) + 0.5
    counts, place = ~np.isnan(right) & (right != 0.5), _bins(confidence)
    rows = []
    for b in range(_BINS):
        inside = counts & (place == b)
        n = int(inside.sum())
        if n:
            low, high = clopper_pearson(int(right[inside].sum()), n)
            rows.append(
                {
                    "confidence": float(confidence[inside].mean()),
                    "accuracy": float(right[inside].mean()),
                    "low": low,
                    "high": high,
                    "n": n,
                }
            )
    return rows


def _bins(confidence: Floats) -> NDArray[np.int64]:
    """Return the bin of each confidence, 0.5 to 1 in ten; -1 where it is NaN."""
    places: NDArray[np.int64] = np.minimum((np.nan_to_num(confidence, nan=0.5) - 0.5) * 2 * _BINS, _BINS - 1).astype(
        int
    )
    return np.where(np.isnan(confidence), -1, places)
