"""Margins to probabilities, per expert: only calibrated experts can be compared with each other.

With labels, p = sigmoid(margin / T), T by logistic regression without bias (Platt 1999; Guo et al. 2017), or
isotonic regression. Both are antisymmetric: swapping the responses turns p into 1 - p. Without labels the margins'
own spread gives the scale, which is an assumption and is reported as one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from carevl.settings.router import CalibrationMethod

MIN_LABELS = 50
"""Labelled pairs below which an expert's scale is not read from labels."""


@dataclass(frozen=True)
class Calibration:
    """The map from one expert's margins to probabilities."""

    expert: str
    method: CalibrationMethod
    n_labels: int
    """labelled pairs that the expert scored; `spread` does not use them"""
    slope: float = math.nan
    """1 / T in p = sigmoid(slope * margin); 0 for an expert whose margins carry nothing. Not used by `isotonic`."""
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    """`isotonic` only: margins, ascending, and their probabilities; linear between them, flat outside."""

    def probability(self, margins: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return P(the first response is better), float32 of the same shape; NaN stays NaN."""
        if self.method == "isotonic":
            return np.interp(margins, *self.knots).astype(np.float32)
        p: NDArray[np.float32] = special.expit(margins * np.float32(self.slope))
        return p

    def note(self) -> str:
        """Write a sentence for the report."""
        if self.method == "isotonic":
            return f"{self.expert}: isotonic regression on {self.n_labels} labelled pairs."
        if self.slope == 0:
            return f"{self.expert}: its margins tell nothing (constant, or no better than chance); it always abstains."
        if self.method == "temperature":
            return f"{self.expert}: temperature {1 / self.slope:.4g}, fitted on {self.n_labels} labelled pairs."
        return (
            f"{self.expert}: scale {1 / self.slope:.4g}, the median size of its margins, for want of labels: its "
            "probabilities rank pairs but are not calibrated."
        )


def fit_calibration(
    expert: str,
    method: CalibrationMethod,
    margins: NDArray[np.float32],
    gold: NDArray[np.float32],
    reference: NDArray[np.float32],
) -> Calibration:
    """Fit one expert; with fewer than MIN_LABELS labelled pairs every method becomes `spread`.

    Args:
        margins: float32 [n_labelled], NaN where missing.
        gold: float32 [n_labelled], 1 first, -1 second, 0 a tie.
        reference: float32 [n_pairs], the margins whose spread is the scale when labels are too few.
    """
    labelled = ~np.isnan(margins)
    n = int(labelled.sum())
    if method == "spread" or n < MIN_LABELS:
        sizes = np.abs(reference[~np.isnan(reference)])
        spread = float(np.median(sizes)) if len(sizes) else 0.0
        return Calibration(expert, "spread", n, slope=1 / spread if spread else 0.0)
    x, targets = margins[labelled].astype(np.float64), soft_targets(gold[labelled])
    if method == "isotonic":
        return Calibration(expert, "isotonic", n, knots=_isotonic(x, targets))
    scale = float(np.sqrt(np.mean(x * x)))
    slope = float(fit_weights(x[:, None] / scale, targets)[0] / scale) if scale else 0.0
    return Calibration(expert, "temperature", n, slope=slope)


def soft_targets(gold: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return Platt's targets: (n + 1) / (n + 2) for 1, so that separable labels give a finite slope; ties are 0.5."""
    n = len(gold)
    return 0.5 + gold.astype(np.float64) / 2 * n / (n + 2)


def fit_weights(features: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a logistic regression without bias and with weights >= 0: an expert is silenced, never read backwards.

    Args:
        features: float64 [n, k], signed towards the first response.
        targets: float64 [n], in 0..1.

    Returns:
        float64 [k].
    """
    from scipy import optimize

    n, k = features.shape

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = features @ weights
        gradient = features.T @ (special.expit(z) - targets) / n
        return float(np.mean(np.logaddexp(0, z) - targets * z)), gradient

    options = {"ftol": 1e-13, "gtol": 1e-9}
    result = optimize.minimize(
        loss, np.full(k, 1 / k), jac=True, method="L-BFGS-B", bounds=[(0, None)] * k, options=options
    )
    weights: NDArray[np.float64] = result.x
    return weights


def _isotonic(x: NDArray[np.float64], targets: NDArray[np.float64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit an isotonic regression on every pair and its mirror image, which makes it antisymmetric about margin 0."""
    from scipy import optimize

    margins, place, counts = np.unique(np.concatenate([x, -x]), return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=np.concatenate([targets, 1 - targets])) / counts
    fitted = optimize.isotonic_regression(means, weights=counts).x
    return tuple(margins.tolist()), tuple(fitted.tolist())
