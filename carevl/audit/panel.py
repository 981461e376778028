"""Pairs with the opinions of each expert and of the ensemble: what an audit measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import special

from carevl.confidence.guarantee import split_images
from carevl.confidence.length import doublings
from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.confidence.redundancy import errors
from carevl.confidence.routing import Router
from carevl.confidence.signals import mean_margins
from carevl.settings.router import RouterSettings

ENSEMBLE = "ensemble"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Panel:
    """One row per pair, one column per expert and a last one for the ensemble; NaN is unknown."""

    names: tuple[str, ...]
    item: NDArray[np.int32]
    """[n_pairs], index of the pair's item"""
    image: NDArray[np.int64]
    """[n_pairs], a number per distinct image"""
    gold: Floats
    """[n_pairs], 1 first, -1 second, 0 a tie"""
    margin: Floats
    """[n_pairs, n_names], in each expert's own scale; log-odds for the ensemble"""
    p: Floats
    """[n_pairs, n_names], calibrated P(first is better)"""
    bare: Floats
    """[n_pairs, n_names], the same without any caption"""
    source: Floats
    """[n_pairs], the source's own preference: 1 first, -1 second, 0 a tie"""
    doubled: Floats
    """[n_pairs], log2(length of first / length of second)"""
    longest: NDArray[np.int32]
    """[n_pairs], characters of the longer response"""
    high: NDArray[np.bool_]
    """[n_pairs], whether the router trusts the label"""
    eligible: NDArray[np.bool_]
    """[n_pairs], whether no filter kept the policy from deciding"""

    def right(self, p: Floats | None = None) -> Floats:
        """Return [n_pairs, n_names], 1 right, 0 wrong, 0.5 undecided; NaN without opinion or label and for a tie."""
        gold = np.where(self.gold == 0, np.nan, self.gold)
        return 1 - errors(self.p if p is None else p, gold.astype(np.float32))

    def label_right(self) -> Floats:
        """Return [n_pairs], 1 where the ensemble's winner is the label, else 0, for a tie too; NaN without label."""
        return np.where(np.isnan(self.gold), np.nan, np.nan_to_num(self.right()[:, -1]) == 1)

    @staticmethod
    def of(router: Router, pairs: Pairs) -> Panel:
        """Build the panel of pairs as a router sees them."""
        signals = router.ensemble.signals(pairs)
        probability = signals.probability.astype(np.float64)
        odds = special.logit(np.clip(probability, 1e-6, 1 - 1e-6))
        return Panel(
            names=(*pairs.experts, ENSEMBLE),
            item=pairs.item,
            image=pairs.images(),
            gold=pairs.gold.astype(np.float64),
            margin=np.column_stack([mean_margins(pairs), odds]).astype(np.float64),
            p=np.column_stack([router.ensemble.opinions(pairs), probability]).astype(np.float64),
            bare=np.column_stack(
                [router.ensemble.opinions(pairs, captioned=False), signals.no_caption_margin + 0.5]
            ).astype(np.float64),
            source=pairs.source.astype(np.float64),
            doubled=doublings(pairs).astype(np.float64),
            longest=pairs.lengths.max(axis=1, initial=0),
            high=router.route(pairs)["route"].to_numpy(zero_copy_only=False) == "high",
            eligible=router.filters.reasons(pairs, signals) < 0,
        )

    @staticmethod
    def concat(parts: Sequence[Panel]) -> Panel:
        """Join panels of pairs of the same items."""
        columns = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Panel)
            if field.name != "names"
        }
        return Panel(names=parts[0].names, **columns)


def cross_fit(settings: RouterSettings, labelled: Pairs, unlabelled: Pairs | None) -> Panel:
    """Show every labelled pair to a router that was fitted on the other half of the labelled images.

    `target_precision` needs the labels for its own test and is audited as `mean_margin` at `settings.threshold`.
    """
    if settings.policy == "target_precision":
        settings = settings.model_copy(update={"policy": "mean_margin"})
    halves = split_images(labelled.select(~labelled.equal & ~np.isnan(labelled.gold)), (1, 1), settings.seed)
    seen = [
        Panel.of(fit_router(settings, other, unlabelled), half)
        for half, other in zip(halves, reversed(halves), strict=True)
    ]
    return Panel.concat(seen)
