"""Policies by name, and how a router is fitted: which labels count as trusted, and on what evidence.

| policy | a pair is high when |
|---|---|
| unanimous | at least two experts do not abstain, and all of these agree |
| mean_margin | the combined probability of its winner reaches `threshold` |
| label_model | the same, with the experts combined by the Dawid-Skene label model |
| target_precision | the same, at the loosest threshold whose precision labelled images can guarantee |
"""

from __future__ import annotations

import numpy as np

from carevl.confidence.calibration import MIN_LABELS, fit_calibration
from carevl.confidence.combination import (
    Combiner,
    Mean,
    Median,
    fit_label_model,
    fit_learned,
    fit_weighted,
    votes,
)
from carevl.confidence.guarantee import (
    CannotCertifyError,
    Sample,
    choose_threshold,
    images_needed,
    one_per_image,
    split_images,
)
from carevl.confidence.length import doublings, length_slopes, without_length
from carevl.confidence.pairs import Pairs
from carevl.confidence.routing import Certificate, Filters, Router
from carevl.confidence.signals import Ensemble, calibrated, mean_margins
from carevl.errors import DataError
from carevl.settings.router import RouterSettings


def fit_router(settings: RouterSettings, labelled: Pairs | None, unlabelled: Pairs | None) -> Router:
    """Fit calibration, combination and threshold.

    Args:
        labelled: pairs with `gold`; those without are left out. target_precision needs them, the others use them.
        unlabelled: a sample of the pairs to be routed, of other images than the labelled; gives label-free scales
            and the label model. When None, the labelled pairs do.

    Raises:
        CannotCertifyError: target_precision cannot be guaranteed and no fallback is named.
        ValueError: no pairs at all, or `learned` with too few labels.
    """
    if labelled is not None:
        labelled = labelled.select(~np.isnan(labelled.gold) & ~labelled.equal)
    if settings.policy == "target_precision":
        return _fit_target_precision(settings, labelled, unlabelled)
    ensemble, notes = _fit_ensemble(settings, labelled, unlabelled)
    threshold = None if settings.policy == "unanimous" else settings.threshold
    return Router(ensemble, _filters(settings), settings.policy, threshold, None, notes)


def _fit_target_precision(settings: RouterSettings, labelled: Pairs | None, unlabelled: Pairs | None) -> Router:
    try:
        if labelled is None:
            raise _cannot_certify(settings, Sample(0, np.zeros(0, np.float32), np.zeros(0, np.bool_)), 0)
        return _certify(settings, labelled, unlabelled)
    except CannotCertifyError as error:
        if settings.fallback is None:
            raise
        plain = settings.model_copy(update={"policy": settings.fallback})
        router = fit_router(plain, labelled, unlabelled)
        note = f"No precision is guaranteed: {error}. The fallback policy {settings.fallback} is used."
        return Router(router.ensemble, router.filters, router.policy, router.threshold, None, (*router.notes, note))


def _certify(settings: RouterSettings, labelled: Pairs, unlabelled: Pairs | None) -> Router:
    fit, choose, check = split_images(labelled, settings.shares, settings.seed)
    ensemble, notes = _fit_ensemble(settings, fit, unlabelled)
    filters = _filters(settings)
    pilot, test, held_out = (_sample(part, ensemble, filters, settings.seed) for part in (fit, choose, check))
    threshold = choose_threshold(pilot, test, settings.precision, settings.level)
    if threshold is None:
        raise _cannot_certify(
            settings, Sample.concat([pilot, test]), pilot.n_images + test.n_images + held_out.n_images
        )
    certificate = Certificate(settings.precision, settings.level, test.tally(threshold), held_out.tally(threshold))
    low, high = certificate.checked.precision_interval()
    guarantee = (
        f"At least {settings.precision:.1%} of high labels are right, with confidence {settings.level:.0%}, when the "
        f"winner's probability is at least {threshold:.4f}: {certificate.tested.n_wrong} of "
        f"{certificate.tested.n_high} tested pairs were wrong. On images held out, {certificate.checked.n_wrong} of "
        f"{certificate.checked.n_high} (precision {low:.1%} to {high:.1%}, 95 %)."
    )
    return Router(ensemble, filters, settings.policy, threshold, certificate, (*notes, guarantee))


def _cannot_certify(settings: RouterSettings, seen: Sample, n_images: int) -> CannotCertifyError:
    needed = images_needed(seen, settings.precision, settings.level, settings.shares[1] / sum(settings.shares))
    if needed and needed <= n_images:
        needed = 2 * n_images
    advice = (
        f"about {needed} labelled images would probably do"
        if needed
        else "no threshold looks better than that on these labels, so more of them would hardly help: lower the "
        "precision or improve the experts"
    )
    return CannotCertifyError(
        f"a label precision of {settings.precision:g} cannot be guaranteed with confidence {settings.level:g} from "
        f"{n_images} labelled images; {advice}",
        needed,
    )


def _sample(part: Pairs, ensemble: Ensemble, filters: Filters, seed: int) -> Sample:
    signals = ensemble.signals(part)
    eligible = np.flatnonzero(filters.reasons(part, signals) < 0)
    rows = eligible[one_per_image(part.select(eligible), seed)]
    n_images = len(np.unique(part.images()))
    return Sample(n_images, signals.confidence[rows], signals.winner[rows] == part.gold[rows])


def _fit_ensemble(
    settings: RouterSettings, labelled: Pairs | None, unlabelled: Pairs | None
) -> tuple[Ensemble, tuple[str, ...]]:
    reference = labelled if unlabelled is None else unlabelled
    if reference is None:
        raise DataError("a router is fitted on pairs and there are none: pass labelled or unlabelled ones")
    labels = reference.select(np.arange(0)) if labelled is None else labelled
    slopes: tuple[float, ...] | None = None
    slope_notes: tuple[str, ...] = ()
    if settings.length_residual:
        slopes, slope_notes = _fit_length(reference, labels)
        reference, labels = without_length(reference, slopes), without_length(labels, slopes)
    margins = mean_margins(reference)
    label_margins = mean_margins(labels)
    calibrations = tuple(
        fit_calibration(expert, settings.calibration, label_margins[:, e], labels.gold, margins[:, e])
        for e, expert in enumerate(reference.experts)
    )
    combiner: Combiner
    combination = "label_model" if settings.policy == "label_model" else settings.combination
    if combination in ("learned", "weighted"):
        scored = ~np.isnan(label_margins).all(axis=1)
        if scored.sum() < MIN_LABELS:
            raise DataError(
                f"combination {combination} needs at least {MIN_LABELS} labelled pairs, found {scored.sum()}: use mean"
            )
        fit = fit_learned if combination == "learned" else fit_weighted
        combiner = fit(calibrated(calibrations, label_margins[scored]), labels.gold[scored])
    elif combination == "label_model":
        ballots = votes(calibrated(calibrations, margins), settings.abstain_band)
        combiner = fit_label_model(ballots, settings.abstain_band)
    else:
        combiner = Mean() if combination == "mean" else Median()
    ensemble = Ensemble(reference.views, calibrations, combiner, settings.abstain_band, slopes)
    return ensemble, (*slope_notes, *(calibration.note() for calibration in calibrations))


def _fit_length(reference: Pairs, labels: Pairs) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Fit each expert's length slope, with a note on it, from labels when there are enough of them."""
    enough = len(labels) >= MIN_LABELS
    pairs = labels if enough else reference
    slopes = length_slopes(mean_margins(pairs), doublings(pairs), labels.gold if enough else None)
    basis = f"{len(labels)} labelled pairs" if enough else "pairs without labels, right and wrong ones taken together"
    paid = ", ".join(f"{expert} {slope:+.3g}" for expert, slope in zip(reference.experts, slopes, strict=True))
    return slopes, (f"Taken off the margins per doubling of length, from {basis}: {paid}.",)


def _filters(settings: RouterSettings) -> Filters:
    return Filters(settings.text_only_limit, settings.require_source)
