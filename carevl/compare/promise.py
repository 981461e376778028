"""What the router promises and keeps, and what other thresholds would give: no training is needed to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from carevl.confidence.audit_panel import cross_fit
from carevl.confidence.guarantee import PromiseError
from carevl.confidence.policies import fit_router

if TYPE_CHECKING:
    from carevl.confidence.pairs import Pairs
    from carevl.confidence.policies import RouterSettings
    from carevl.stages.route import Fitting

VERSION = 1
RESAMPLES = 1000
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
_SAY_EVERY = 250


class Kept(TypedDict):
    """Resamples of the calibration, the share of them that promised a precision, and of these the share that kept it;
    None when none promised."""

    resamples: int
    promised: float
    kept: float | None


class Point(TypedDict):
    """A threshold with the share of the pairs at or above it, and of these the share that is right; None: unknown."""

    threshold: float
    coverage: float
    precision: float | None


def promise(settings: RouterSettings, fitting: Fitting, resamples: int, say: Callable[[str], None]) -> Kept:
    """How often `target_precision` keeps its word, over random three-way splits of the labelled images.

    In every resample one part fits the experts, one chooses the threshold, and the precision of the third, which
    neither has seen, is held against the promise. That precision is itself uncertain, so a router whose true precision
    is close to the promise seems to break it a little oftener than it does.
    """
    policy = {"policy": "target_precision", "fallback": None}
    promised = kept = 0
    for number in range(resamples):
        if number % _SAY_EVERY == 0:
            say(f"{number} of {resamples} calibration resamples")
        try:
            drawn = settings.model_copy(update=policy | {"seed": settings.seed + number})
            certificate = fit_router(drawn, fitting.labelled, fitting.unlabelled).certificate
        except PromiseError:
            continue
        assert certificate is not None
        promised += 1
        held = certificate.checked
        kept += held.n_wrong <= (1 - settings.precision) * held.n_high
    return {"resamples": resamples, "promised": promised / resamples, "kept": kept / promised if promised else None}


def by_labels(settings: RouterSettings, labelled: Pairs, unlabelled: Pairs | None) -> tuple[Any, Any, Any]:
    """Of every labelled pair, as seen by a router that was fitted on the other half of their images: the winner's
    probability, whether that is the label's (1 or 0), and whether the pair is high; float64 [n_pairs]."""
    panel = cross_fit(settings, labelled, unlabelled)
    return np.abs(panel.p[:, -1] - 0.5) + 0.5, panel.label_right(), panel.high


def sweep(confidence: NDArray[Any], right: NDArray[np.float64], thresholds: Sequence[float]) -> list[Point]:
    """Coverage and precision of every threshold.

    Args:
        confidence: probability of each pair's winner [n_pairs]; nan where it has none.
        right: whether the winner is right, 1 or 0 [n_pairs]; nan where that is unknown.
    """
    points: list[Point] = []
    for threshold in thresholds:
        high = confidence >= np.float32(threshold)
        known = right[high & ~np.isnan(right)]
        precision = float(known.mean()) if known.size else None
        points.append({"threshold": threshold, "coverage": float(high.mean()), "precision": precision})
    return points


def to_train(points: Sequence[Point], coverage: float) -> list[float]:
    """Two thresholds beside the router's own: of about half its coverage, and halfway from it to every pair."""
    found: list[float] = []
    for wanted in (coverage / 2, (1 + coverage) / 2):
        others = [point for point in points if point["threshold"] not in found and point["coverage"] > 0]
        if others:
            found.append(min(others, key=lambda point: abs(point["coverage"] - wanted))["threshold"])
    return found
