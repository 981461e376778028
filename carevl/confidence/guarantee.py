"""A threshold whose precision is guaranteed: Learn-then-Test (Angelopoulos et al., arXiv 2110.01052).

The guarantee: over draws of the labelled images, with probability at least the confidence level, a pair routed high
has the right winner with at least the target precision. "A pair" means a random eligible pair of a random image,
for images exchangeable with the labelled ones. A winner where the label is a tie counts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from carevl.confidence.calibration import MIN_LABELS
from carevl.confidence.pairs import Pairs
from carevl.errors import DataError
from carevl.stats.exact import clopper_pearson

POWER = 0.8
_MOST_LABELS = 100_000
_COVERAGES = 100


class CannotCertifyError(DataError):
    """The target precision cannot be guaranteed; `images_needed` labelled images would do, None if none would."""

    def __init__(self, message: str, images_needed: int | None) -> None:
        super().__init__(message)
        self.images_needed = images_needed


@dataclass(frozen=True)
class Tally:
    """The outcome of a threshold on labelled pairs, one per image."""

    n_images: int
    n_high: int
    n_wrong: int

    @property
    def coverage(self) -> float:
        """Return the share of the images whose pair is routed high."""
        return self.n_high / self.n_images if self.n_images else 0.0

    def precision_interval(self, confidence_level: float = 0.95) -> tuple[float, float]:
        """Return the Clopper-Pearson interval of the precision."""
        return clopper_pearson(self.n_high - self.n_wrong, self.n_high, confidence_level)


@dataclass(frozen=True)
class Sample:
    """Labelled pairs, one per image, as the test sees them."""

    n_images: int
    """images drawn, those without an eligible pair too"""
    confidence: NDArray[np.float32]
    """[n], 0.5 to 1"""
    right: NDArray[np.bool_]
    """[n], whether the ensemble's winner is the label's"""

    def tally(self, threshold: float) -> Tally:
        """Count what the threshold selects, and how much of it is wrong."""
        high = self.confidence >= np.float32(threshold)
        return Tally(self.n_images, int(high.sum()), int((high & ~self.right).sum()))

    @staticmethod
    def concat(parts: Sequence[Sample]) -> Sample:
        """Join samples of different images."""
        return Sample(
            sum(part.n_images for part in parts),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.right for part in parts]),
        )


def split_images(pairs: Pairs, shares: tuple[float, ...], seed: int) -> list[Pairs]:
    """Split pairs by image into parts of about the given shares, the same for any order of the rows."""
    pairs = pairs.sorted()
    images = pairs.images()
    _, images = np.unique(images, return_inverse=True)
    n_images = int(images.max(initial=-1)) + 1
    # Images are dealt, not pairs: pairs of one image depend on each other, so none may be in two parts.
    place = np.random.default_rng(seed).permutation(n_images)
    part = np.searchsorted(np.cumsum(shares)[:-1] / sum(shares) * n_images, place, side="right")[images]
    return [pairs.select(part == k) for k in range(len(shares))]


def one_per_image(pairs: Pairs, seed: int) -> NDArray[np.int64]:
    """Draw the row of one random pair of each image: pairs of one image are not independent."""
    images = pairs.images()
    order = np.lexsort((np.random.default_rng(seed).random(len(pairs)), images))
    _, starts = np.unique(images[order], return_index=True)
    rows: NDArray[np.int64] = order[starts]
    return rows


def choose_threshold(pilot: Sample, test: Sample, precision: float, confidence_level: float) -> float | None:
    """Choose the loosest threshold that passes, tested from strict to loose up to the first that fails.

    A threshold passes when so few wrong pairs among those it selects had probability at most 1 - confidence_level, by
    the exact binomial tail, if the precision were only the target.

    Returns:
        The threshold; None if none passes.
    """
    thresholds, tallies = _thresholds(pilot)
    if not tallies:
        return None
    expected = np.array([round(tally.coverage * test.n_images) for tally in tallies])
    truth = np.array([_smoothed_precision(tally, precision) for tally in tallies])
    # The sequence comes from the pilot alone: its thresholds, beginning where the test has the best odds to pass. It is
    # fixed before the test is looked at and stops at the first failure, so every step may use the full 1 - level.
    sequence = thresholds[int(np.argmax(_pass_probability(expected, truth, precision, confidence_level))) :]
    tested = [test.tally(threshold) for threshold in sequence]
    tails = special.bdtr([t.n_wrong for t in tested], [t.n_high for t in tested], 1 - precision)
    n_passed = int(np.argmax(np.append(tails, 1.0) > 1 - confidence_level))
    return sequence[n_passed - 1] if n_passed else None


def labels_needed(truth: NDArray[np.float64], precision: float, confidence_level: float) -> NDArray[np.float64]:
    """Estimate how many tested pairs certify `precision` with probability POWER; inf where 100,000 do not.

    Args:
        truth: float64 [k], real precisions.

    Returns:
        float64 [k].
    """
    n = np.unique(np.geomspace(1, _MOST_LABELS, 400).astype(np.int64))
    enough = _pass_probability(n, truth[:, None], precision, confidence_level) >= POWER
    return np.where(enough.any(axis=1) & (truth > precision), n[np.argmax(enough, axis=1)], np.inf)


def images_needed(seen: Sample, precision: float, confidence_level: float, share: float) -> int | None:
    """Estimate how many labelled images would do if `share` of them enters the test; None if no number would.

    Reckoned from the best threshold in `seen`, twice over: the best of many looks better than it is, and the pilot may
    begin elsewhere (in simulations, 70 to 80 % of the draws then succeed). With fewer than MIN_LABELS images in
    `seen`, from full coverage and a precision halfway between the target and 1.
    """
    if seen.n_images < MIN_LABELS:
        truth, coverage = np.array([(1 + precision) / 2]), np.ones(1)
    else:
        tallies = _thresholds(seen)[1]
        truth = np.array([_smoothed_precision(tally, precision) for tally in tallies])
        coverage = np.array([tally.coverage for tally in tallies])
    images = (2 * labels_needed(truth, precision, confidence_level) / coverage / share).min(initial=np.inf)
    return math.ceil(images) if np.isfinite(images) else None


def _pass_probability(
    n: NDArray[np.int64], truth: NDArray[np.float64], precision: float, confidence_level: float
) -> NDArray[np.float64]:
    """Return the probability that n tested pairs certify `precision` when `truth` is the real one."""
    from scipy import stats

    most_wrong = stats.binom.ppf(1 - confidence_level, n, 1 - precision)
    most_wrong -= stats.binom.cdf(most_wrong, n, 1 - precision) > 1 - confidence_level
    chances: NDArray[np.float64] = stats.binom.cdf(most_wrong, n, 1 - truth)
    return chances


def _thresholds(sample: Sample) -> tuple[list[float], list[Tally]]:
    """List thresholds at evenly spaced coverages, strict to loose, and the tally of each."""
    ordered = np.sort(sample.confidence)[::-1]
    picks = np.ceil(len(ordered) * np.arange(1, _COVERAGES + 1) / _COVERAGES).astype(np.int64) - 1
    thresholds = np.unique(ordered[picks])[::-1].tolist() if len(ordered) else []
    return thresholds, [sample.tally(threshold) for threshold in thresholds]


def _smoothed_precision(tally: Tally, precision: float) -> float:
    """Return the precision with two pairs added that are right halfway between the target and always."""
    return (tally.n_high - tally.n_wrong + 1 + precision) / (tally.n_high + 2)
