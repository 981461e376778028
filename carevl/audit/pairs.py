"""The audit of pairs: every measure that scores and labels allow, in one report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from carevl.audit.measures import (
    measure_coverage,
    measure_experts,
    measure_label_free,
    measure_reliability,
    measure_routing,
)
from carevl.audit.mitigations import measure_contributions, measure_mitigations
from carevl.audit.panel import Panel, cross_fit
from carevl.confidence.calibration import MIN_LABELS
from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.policies import fit_router

if TYPE_CHECKING:
    from carevl.audit.items import ItemFacts
    from carevl.audit.ledger import Tree
    from carevl.confidence.pairs import Pairs
    from carevl.confidence.routing import Router
    from carevl.settings.router import RouterSettings

_FEWEST = 4 * MIN_LABELS
"""Labelled pairs below which there are too few for a fit on either half."""


def audit_pairs(
    settings: RouterSettings, pairs: Pairs, labelled: Pairs | None, unlabelled: Pairs | None, facts: ItemFacts
) -> Tree:
    """Measure the experts and the router on pairs.

    Args:
        pairs: the labelled and the unlabelled ones together.
        facts: of the items of `pairs`.

    Returns:
        `notes`, `label_free`, `training` (by the truth of a drawn world), and with enough labels `experts`,
        `redundancy`, `router`, `reliability`, `coverage`, `contributions` and `mitigations`.
    """
    router, notes = _fit_router(settings, labelled, unlabelled)
    free = Panel.of(router, pairs)
    report: Tree = {"notes": notes, "label_free": measure_label_free(free, facts.groups(free))}
    if unlabelled is not None and any(facts.truth):
        training = Panel.of(router, facts.label(unlabelled))
        report["training"] = measure_routing(training, facts.groups(training))
    if labelled is None or len(labelled) < _FEWEST:
        report["notes"].append(f"Fewer than {_FEWEST} labelled pairs: nothing is said of right and wrong.")
        return report
    if router.threshold is not None:
        settings = settings.model_copy(update={"threshold": router.threshold})
    panel = cross_fit(settings, labelled, unlabelled)
    groups = facts.groups(panel)
    report |= measure_experts(panel, groups)
    report["router"] = measure_routing(panel, groups)
    report["reliability"] = measure_reliability(panel)
    report["coverage"] = {
        "points": measure_coverage(panel, settings.level),
        "threshold": router.threshold,
        "level": settings.level,
        "wanted": settings.precision if router.certificate else None,
    }
    report["contributions"] = measure_contributions(settings, labelled, unlabelled)
    report["mitigations"] = measure_mitigations(settings, labelled, unlabelled)
    return report


def _fit_router(settings: RouterSettings, labelled: Pairs | None, unlabelled: Pairs | None) -> tuple[Router, list[str]]:
    """Fit the run's router; return it and its notes.  `mean_margin` stands in where no precision can be guaranteed."""
    try:
        router = fit_router(settings, labelled, unlabelled)
        return router, list(router.notes)
    except CannotCertifyError as error:
        router = fit_router(settings.model_copy(update={"policy": "mean_margin"}), labelled, unlabelled)
        return router, [*router.notes, f"{error}. The audit routes by mean_margin at {settings.threshold:g}."]
