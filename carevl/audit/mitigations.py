"""The effect of mitigations and of experts on label precision: pairs routed with and without one, all else the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from carevl.audit.ledger import Floats, Ledger, Tree
from carevl.audit.panel import Panel, cross_fit
from carevl.confidence.pairs import Pairs
from carevl.settings.router import RouterSettings
from carevl.stats.bootstrap import Statistic, ratio

_TEXT_ONLY_LIMIT = 0.2


def measure_mitigations(settings: RouterSettings, labelled: Pairs, unlabelled: Pairs | None) -> Tree:
    """Measure labelled pairs without and with each mitigation.

    `change_at_same_coverage` compares as many of the surest pairs with the mitigation as are high without it: what is
    left of a change that a stricter threshold would have brought as well.

    Returns:
        `SETTING.{coverage,precision}.{without,with}`, `.precision.change` and `.precision.change_at_same_coverage`.
    """
    limit = _TEXT_ONLY_LIMIT if settings.text_only_limit is None else settings.text_only_limit
    combination = "mean" if settings.combination == "weighted" else settings.combination
    mitigations: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "length_residual=true": ({"length_residual": False}, {"length_residual": True}),
        "combination=weighted": ({"combination": combination}, {"combination": "weighted"}),
        f"text_only_limit={limit:g}": ({"text_only_limit": None}, {"text_only_limit": limit}),
    }
    if settings.policy == "label_model":  # combines the experts in its own way
        del mitigations["combination=weighted"]
    figures: Tree = {}
    for name, changes in mitigations.items():
        panels = [cross_fit(settings.model_copy(update=change), labelled, unlabelled) for change in changes]
        figures[name] = _compare(*panels)
    return figures


def measure_contributions(settings: RouterSettings, labelled: Pairs, unlabelled: Pairs | None) -> Tree:
    """Measure labelled pairs without and with each expert: what it adds to the others.

    Returns:
        `EXPERT.…`, as for `measure_mitigations`; nothing where there is one expert.
    """
    if len(labelled.experts) < 2:
        return {}
    whole = cross_fit(settings, labelled, unlabelled)
    figures: Tree = {}
    for expert in labelled.experts:
        rest = None if unlabelled is None else unlabelled.without(expert)
        figures[expert] = _compare(cross_fit(settings, labelled.without(expert), rest), whole)
    return figures


def _compare(before: Panel, after: Panel) -> Tree:
    ledger = Ledger(before.image)
    right = {"without": before.label_right(), "with": after.label_right()}
    high = {"without": before.high, "with": after.high}
    for when in ("without", "with"):
        ledger.put_mean("coverage", when, values=high[when])
        ledger.put_mean("precision", when, values=np.where(high[when], right[when], np.nan))
    surest = _surest(after, int(before.high.sum()))
    for path, chosen in (("change", after.high), ("change_at_same_coverage", surest)):
        statistic = _difference(right["with"], chosen, right["without"], before.high)
        ledger.put("precision", path, statistic=statistic, n=int(chosen.sum()))
    return ledger.estimate()


def _surest(panel: Panel, n: int) -> NDArray[np.bool_]:
    """Mark the n eligible pairs with the highest confidence."""
    confidence = np.where(panel.eligible, np.abs(panel.p[:, -1] - 0.5), -1.0)
    chosen = np.zeros(len(confidence), dtype=np.bool_)
    chosen[np.argsort(-confidence, kind="stable")[:n]] = True
    return chosen & panel.eligible


def _difference(a: Floats, in_a: NDArray[np.bool_], b: Floats, in_b: NDArray[np.bool_]) -> Statistic:
    first, second = ratio(a * in_a, in_a), ratio(b * in_b, in_b)
    return lambda weights: first(weights) - second(weights)
