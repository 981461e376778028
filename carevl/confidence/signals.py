"""Signals of each pair: the ensemble's probability and the signs of how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carevl.confidence.calibration import Calibration
from carevl.confidence.combination import Combiner, nan_mean, votes
from carevl.confidence.length import without_length
from carevl.confidence.pairs import Pairs


@dataclass(frozen=True)
class Signals:
    """One value per pair; NaN where there is nothing to say."""

    probability: NDArray[np.float32]
    """P(first is better)"""
    winner: NDArray[np.float32]
    """1 first, -1 second, 0 when the probability is exactly 0.5"""
    n_votes: NDArray[np.int8]
    """experts that do not abstain"""
    agreement: NDArray[np.float32]
    """share of the votes that are for the winner"""
    stability: NDArray[np.float32]
    """share of the caption views in which the ensemble names the same winner"""
    no_caption_margin: NDArray[np.float32]
    """P(first is better) - 0.5 as the ensemble sees it without any caption"""
    source_agreement: NDArray[np.float32]
    """1 when the source's own preference is the winner, 0 when it is not"""

    @property
    def confidence(self) -> NDArray[np.float32]:
        """Return the winner's probability, 0.5 to 1."""
        confidence: NDArray[np.float32] = np.abs(self.probability - np.float32(0.5)) + np.float32(0.5)
        return confidence


@dataclass(frozen=True)
class Ensemble:
    """Calibrated experts and how their opinions are combined."""

    views: tuple[str, ...]
    calibrations: tuple[Calibration, ...]
    combiner: Combiner
    abstain_band: float
    length_slopes: tuple[float, ...] | None = None
    """What is taken off each expert's margin per doubling of length; None to leave margins as they are."""

    def opinions(self, pairs: Pairs, *, captioned: bool = True) -> NDArray[np.float32]:
        """Return float32 [n_pairs, n_experts], each expert's calibrated probability of the first response."""
        pairs = self._corrected(pairs)
        return calibrated(self.calibrations, mean_margins(pairs) if captioned else pairs.no_caption)

    def signals(self, pairs: Pairs) -> Signals:
        """Compute the signals of every pair.

        Raises:
            ValueError: the pairs were built with other experts or views.
        """
        experts = tuple(calibration.expert for calibration in self.calibrations)
        if (pairs.experts, pairs.views) != (experts, self.views):
            raise ValueError(
                f"pairs have experts {pairs.experts} and views {pairs.views}, the router was fitted on {experts} and "
                f"{self.views}; build the pairs with the router's own"
            )
        pairs = self._corrected(pairs)
        opinions = calibrated(self.calibrations, mean_margins(pairs))
        probability = self.combiner.combine(opinions)
        winner = np.sign(probability - np.float32(0.5))
        ballots = votes(opinions, self.abstain_band)
        n_votes = (ballots != 0).sum(axis=1, dtype=np.int8)
        by_view = np.stack([self._probability(pairs.margins[:, :, v]) for v in range(len(self.views))], axis=1)
        decided = np.abs(winner) == 1
        return Signals(
            probability=probability,
            winner=winner,
            n_votes=n_votes,
            agreement=_share((ballots == winner[:, None]).sum(axis=1), n_votes, decided),
            stability=_share(
                (np.sign(by_view - np.float32(0.5)) == winner[:, None]).sum(axis=1),
                (~np.isnan(by_view)).sum(axis=1),
                decided,
            ),
            no_caption_margin=self._probability(pairs.no_caption) - np.float32(0.5),
            source_agreement=np.where(
                decided & ~np.isnan(pairs.source), (pairs.source == winner).astype(np.float32), np.float32(np.nan)
            ),
        )

    def _corrected(self, pairs: Pairs) -> Pairs:
        return pairs if self.length_slopes is None else without_length(pairs, self.length_slopes)

    def _probability(self, margins: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.combiner.combine(calibrated(self.calibrations, margins))


def mean_margins(pairs: Pairs) -> NDArray[np.float32]:
    """Return float32 [n_pairs, n_experts], the mean over the caption views that were scored; NaN without any."""
    return nan_mean(pairs.margins, axis=2)


def calibrated(calibrations: tuple[Calibration, ...], margins: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 [n_pairs, n_experts], each expert's own probability that the first response is better."""
    return np.stack([c.probability(margins[:, e]) for e, c in enumerate(calibrations)], axis=1)


def _share(hits: NDArray[np.int64], total: NDArray[np.integer], defined: NDArray[np.bool_]) -> NDArray[np.float32]:
    share = np.full(len(hits), np.nan, dtype=np.float32)
    np.divide(hits, total, out=share, where=defined & (total > 0), casting="unsafe")
    return share
