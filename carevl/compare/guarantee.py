"""How often the router keeps its guarantee, and what other thresholds would give: no training is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from carevl.audit.panel import cross_fit
from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.policies import fit_router

if TYPE_CHECKING:
    from carevl.confidence.pairs import Pairs
    from carevl.confidence.routing import Router
    from carevl.settings.router import RouterSettings
    from carevl.stages.route import Fitting

VERSION = 2
RESAMPLES = 1000
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
_LOG_EVERY = 250


class Kept(TypedDict):
    """Resamples of the calibration, the share of them that gave a guarantee, and of these the share that kept it;
    None when none gave one."""

    resamples: int
    promised: float
    kept: float | None


class Point(TypedDict):
    """A threshold with the share of the pairs at or above it, and of these the share that is right; None: unknown."""

    threshold: float
    coverage: float
    precision: float | None


def measure_guarantee(settings: RouterSettings, fitting: Fitting, resamples: int, log: Callable[[str], None]) -> Kept:
    """Measure how often `target_precision` keeps its guarantee, over draws of as many images, with replacement.

    The labelled images stand for all images there are, so that the true precision of what a draw gave is known: the
    share of right winners where a random eligible pair of a random image is high.
    """
    policy = {"policy": "target_precision", "fallback": None}
    labelled, unlabelled = fitting.labelled, fitting.unlabelled
    assert labelled is not None
    labelled = labelled.select(~np.isnan(labelled.gold) & ~labelled.equal)
    certified = kept = 0
    for number in range(resamples):
        if number % _LOG_EVERY == 0:
            log(f"{number} of {resamples} calibration resamples")
        try:
            drawn = settings.model_copy(update=policy | {"seed": settings.seed + number})
            router = fit_router(drawn, draw_images(labelled, drawn.seed), unlabelled)
        except CannotCertifyError:
            continue
        certified += 1
        kept += true_precision(router, labelled) >= settings.precision
    return {"resamples": resamples, "promised": certified / resamples, "kept": kept / certified if certified else None}


def draw_images(pairs: Pairs, seed: int) -> Pairs:
    """Draw as many images with their pairs, with replacement; an image that is drawn twice counts as two."""
    _, images = np.unique(pairs.images(), return_inverse=True)
    order, counts = np.argsort(images, kind="stable"), np.bincount(images)
    starts = np.cumsum(counts) - counts
    draws = np.random.default_rng(seed).integers(len(counts), size=len(counts))
    rows = np.concatenate([order[starts[image] : starts[image] + counts[image]] for image in draws])
    return replace(
        pairs.select(rows),
        item=np.arange(len(rows), dtype=np.int32),
        item_id=pairs.item_id.take(pa.array(pairs.item[rows])),
        image_id=pa.array(np.repeat(np.arange(len(draws)), counts[draws])).cast(pa.string()),
    )


def true_precision(router: Router, pairs: Pairs) -> float:
    """Return the precision of a router's high pairs, a random eligible pair of a random image; 1 when none is high."""
    assert router.threshold is not None
    signals = router.ensemble.signals(pairs)
    eligible = router.filters.reasons(pairs, signals) < 0
    images = pairs.images()
    share = 1 / np.maximum(1, np.bincount(images, eligible))[images]
    high = eligible & (signals.confidence >= np.float32(router.threshold))
    right = high & (signals.winner == pairs.gold)
    return float(share[right].sum() / share[high].sum()) if high.any() else 1.0


def by_labels(settings: RouterSettings, labelled: Pairs, unlabelled: Pairs | None) -> tuple[Any, Any, Any, Any]:
    """Route every labelled pair by a router that was fitted on the other half of their images.

    Returns:
        The winner's probability, whether that is the label's (1 or 0), whether the pair is high, and whether its label
        is a tie; each [n_pairs].
    """
    panel = cross_fit(settings, labelled, unlabelled)
    return np.abs(panel.p[:, -1] - 0.5) + 0.5, panel.label_right(), panel.high, panel.gold == 0


def sweep(confidence: NDArray[Any], right: NDArray[np.float64], thresholds: Sequence[float]) -> list[Point]:
    """Return coverage and precision of every threshold.

    Args:
        confidence: probability of each pair's winner [n_pairs]; nan where it has none.
        right: whether the winner is right, 1 or 0 [n_pairs]; nan where that is unknown.
    """
    points: list[Point] = []
    for threshold in thresholds:
        high = confidence >= np.float32(threshold)
        labelled = right[high & ~np.isnan(right)]
        precision = float(labelled.mean()) if labelled.size else None
        points.append({"threshold": threshold, "coverage": float(high.mean()), "precision": precision})
    return points


def to_train(points: Sequence[Point], coverage: float) -> list[float]:
    """Choose two thresholds beside the router's own: of about half its coverage, and halfway from it to every pair."""
    thresholds: list[float] = []
    for target in (coverage / 2, (1 + coverage) / 2):
        others = [point for point in points if point["threshold"] not in thresholds and point["coverage"] > 0]
        if others:
            thresholds.append(min(others, key=lambda point: abs(point["coverage"] - target))["threshold"])
    return thresholds
