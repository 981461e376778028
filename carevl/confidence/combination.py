"""Several experts, one probability: how calibrated opinions on a pair are combined.

Every combiner maps float32 [n_pairs, n_experts] to float32 [n_pairs], P(the first response is better); NaN is a
missing opinion, and NaN comes out where no expert has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from carevl.confidence.calibration import fit_weights, soft_targets
from carevl.confidence.redundancy import error_correlation, errors, shared_weights

_PRIOR_RIGHT, _PRIOR_VOTES = 7.0, 10.0
"""Prior votes of each expert in the label model: a fair expert, right in 70 %, until the data say otherwise."""


class Combiner(Protocol):
    """Combines the experts' calibrated probabilities."""

    def combine(self, p: NDArray[np.float32]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Mean:
    """The mean of the experts that scored the pair."""

    def combine(self, p: NDArray[np.float32]) -> NDArray[np.float32]:
        return nan_mean(p, axis=1)


@dataclass(frozen=True)
class Weighted:
    """The weighted mean of the experts that scored the pair: experts that err together share their weight."""

    weights: tuple[float, ...]

    def combine(self, p: NDArray[np.float32]) -> NDArray[np.float32]:
        weights = np.array(self.weights, dtype=np.float32)
        with np.errstate(invalid="ignore"):
            mean = np.nan_to_num(p) @ weights / (~np.isnan(p) @ weights)
        return mean.astype(np.float32)


@dataclass(frozen=True)
class Median:
    """The median of the experts that scored the pair."""

    def combine(self, p: NDArray[np.float32]) -> NDArray[np.float32]:
        ordered = np.sort(p, axis=1)  # NaN last
        n_opinions = (~np.isnan(p)).sum(axis=1)[:, None]
        low = np.take_along_axis(ordered, np.maximum(n_opinions - 1, 0) // 2, axis=1)
        high = np.take_along_axis(ordered, n_opinions // 2, axis=1)
        middle: NDArray[np.float32] = ((low + high) / np.float32(2))[:, 0]
        return middle


@dataclass(frozen=True)
class LabelModel:
    """One-coin Dawid-Skene: each expert is right with its own probability whenever it does not abstain.

    Pairs have no natural order, so both outcomes are equally likely beforehand, an expert errs as often on either,
    and an abstention is no evidence.
    """

    accuracies: tuple[float, ...]
    abstain_band: float

    def combine(self, p: NDArray[np.float32]) -> NDArray[np.float32]:
        weights = special.logit(np.array(self.accuracies)).astype(np.float32)
        combined: NDArray[np.float32] = special.expit(votes(p, self.abstain_band) @ weights)
        combined[np.isnan(p).all(axis=1)] = np.nan
        return combined


@dataclass(frozen=True)
class Learned:
    """Logistic regression, without bias, on the experts' calibrated log-odds; a missing expert counts as undecided."""

    weights: tuple[float, ...]

    def combine(self, p: NDArray[np.float32]) -> NDArray[np.float32]:
        combined: NDArray[np.float32] = special.expit(log_odds(p) @ np.array(self.weights, dtype=np.float32))
        combined[np.isnan(p).all(axis=1)] = np.nan
        return combined


def nan_mean(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the mean over an axis of the values that are not NaN; NaN where all are."""
    counts = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float32] = (np.sum(values, axis=axis, where=counts) / counts.sum(axis=axis)).astype(np.float32)
    return mean


def votes(p: NDArray[np.float32], abstain_band: float) -> NDArray[np.int8]:
    """Return int8 of p's shape: 1 for the first, -1 for the second, 0 where |p - 0.5| is below the band or p is NaN."""
    lean = p - np.float32(0.5)
    return np.where(np.abs(lean) >= np.float32(abstain_band), np.sign(lean), 0).astype(np.int8)


def log_odds(p: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return log(p / (1 - p)), kept within 14 of zero; 0 for NaN."""
    odds: NDArray[np.float32] = special.logit(np.clip(np.nan_to_num(p, nan=0.5), 1e-6, 1 - 1e-6))
    return odds


def fit_label_model(ballots: NDArray[np.int8], abstain_band: float) -> LabelModel:
    """Fit by expectation-maximisation over vote patterns (Dawid & Skene 1979), with a weak prior on each expert.

    Args:
        ballots: int8 [n_pairs, n_experts] as `votes` returns them; no label is needed.
    """
    n_experts = ballots.shape[1]
    powers = 3 ** np.arange(n_experts)
    codes, counts = np.unique((ballots + 1) @ powers, return_counts=True)
    patterns = codes[:, None] // powers % 3 - 1
    voted = counts @ (patterns != 0)
    accuracies = np.full(n_experts, _PRIOR_RIGHT / _PRIOR_VOTES)
    for _ in range(500):
        # E-step: P(the first is better) of each vote pattern. M-step: an expert's accuracy is its expected share of
        # right votes. The prior decides between the solution and its mirror image, in which all experts are wrong.
        first = special.expit(patterns @ special.logit(accuracies))[:, None]
        right = counts @ np.where(patterns == 1, first, np.where(patterns == -1, 1 - first, 0))
        updated = (right + _PRIOR_RIGHT) / (voted + _PRIOR_VOTES)
        moved, accuracies = np.abs(updated - accuracies).max(), updated
        if moved < 1e-7:
            break
    return LabelModel(tuple(accuracies.tolist()), abstain_band)


def fit_weighted(p: NDArray[np.float32], gold: NDArray[np.float32]) -> Weighted:
    """Fit the weights on the errors on labelled pairs: `gold` [n_pairs] is 1 first, -1 second, 0 a tie (left out)."""
    decided = gold != 0
    return Weighted(tuple(shared_weights(error_correlation(errors(p[decided], gold[decided]))).tolist()))


def fit_learned(p: NDArray[np.float32], gold: NDArray[np.float32]) -> Learned:
    """Fit the weights on labelled pairs: `gold` float32 [n_pairs] is 1 first, -1 second, 0 a tie."""
    weights = fit_weights(log_odds(p).astype(np.float64), soft_targets(gold))
    return Learned(tuple(weights.tolist()))
