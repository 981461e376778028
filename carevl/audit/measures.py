"""Measures of the experts: accuracy, calibration, length, text-only shortcut, redundancy; each with an interval.

Labelled pairs come cross-fitted (`panel.cross_fit`): no figure is read from pairs that the fit has seen.
Intervals are percentile bootstraps over images.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import special

from carevl.audit.ledger import Floats, Ledger, Tree, calibration_gaps, reliability
from carevl.audit.panel import Panel
from carevl.confidence.guarantee import Sample
from carevl.confidence.redundancy import effective_experts
from carevl.stats.bootstrap import Statistic, divide, pearson

LEAST = 20
"""Pairs below which a kind, source or length gets no figures of its own."""
Groups = Mapping[str, NDArray[np.str_]]
"""`kind`, `source`, … to the group of each pair; an empty name is no group."""
_POINTS = 60


def length_groups(longest: NDArray[np.int32]) -> NDArray[np.str_]:
    """Name the third of each pair by characters of the longer response: `up to 21`, `22 to 40`, `41 and more`."""
    edges = np.unique(np.quantile(longest, [1 / 3, 2 / 3]).astype(int)) if len(longest) else np.zeros(1, int)
    names = [f"up to {edges[0]}", *(f"{a + 1} to {b}" for a, b in itertools.pairwise(edges))]
    names.append(f"{edges[-1] + 1} and more")
    return np.array(names)[np.searchsorted(edges, longest)]


def measure_experts(panel: Panel, groups: Groups) -> Tree:
    """Measure experts on labelled pairs: `experts.NAME…` and `redundancy…`, as a tree of estimates."""
    ledger = Ledger(panel.image)
    right, bare = panel.right(), panel.right(panel.bare)
    n_experts = len(panel.names) - 1
    for e, name in enumerate(panel.names):
        _accuracy(ledger, ("experts", name), panel.p[:, e], right[:, e])
        if e < n_experts:
            raw = special.expit(panel.margin[:, e])
            ledger.put_mean("experts", name, "raw_overconfidence", values=np.abs(raw - 0.5) + 0.5 - right[:, e])
            ledger.put_mean("experts", name, "raw_ece", values=calibration_gaps(raw, right[:, e]))
        ledger.put_mean("experts", name, "text_only", "accuracy", values=bare[:, e])
        _length(ledger, name, panel, e, right[:, e])
        others = [k for k in range(n_experts) if k != e and e < n_experts]
        for which, labels in groups.items():
            for label in _names(labels):
                inside = labels == label
                if inside.sum() < LEAST:
                    continue
                path = ("experts", name, f"by_{which}", label)
                own = np.where(inside, right[:, e], np.nan)
                _accuracy(ledger, path, np.where(inside, panel.p[:, e], np.nan), own)
                if others:
                    rest = _row_means(right[:, others])
                    ledger.put_mean(*path, "others", values=np.where(inside, rest, np.nan))
                    ledger.put_mean(*path, "behind_others", values=rest - own)
                    ledger.put_mean(*path, "behind_elsewhere", values=np.where(inside, np.nan, rest - right[:, e]))
    _redundancy(ledger, panel.names[:-1], _within(1 - right[:, :-1], groups.get("kind")))
    return ledger.estimate()


def measure_routing(panel: Panel, groups: Groups) -> Tree:
    """Measure coverage and precision of the pairs that are routed high, over all pairs and by group.

    A tie that is routed high is wrong; `ties` says how many are.
    """
    ledger = Ledger(panel.image)
    precision = np.where(panel.high, panel.label_right(), np.nan)
    ledger.put_mean("coverage", values=panel.high)
    ledger.put_mean("precision", values=precision)
    for which, labels in groups.items():
        for label in _names(labels):
            inside = labels == label
            ledger.put_mean(f"by_{which}", label, "coverage", values=np.where(inside, panel.high, np.nan))
            ledger.put_mean(f"by_{which}", label, "precision", values=np.where(inside, precision, np.nan))
    return {**ledger.estimate(), "ties": int((panel.high & (panel.gold == 0)).sum())}


def measure_label_free(panel: Panel, groups: Groups) -> Tree:
    """Measure what needs no labels: length slopes, shares of the same winner, agreement with each source."""
    ledger = Ledger(panel.image)
    winner = np.where(np.isnan(panel.p), np.nan, np.sign(panel.p - 0.5))
    bare = np.where(np.isnan(panel.bare), np.nan, np.sign(panel.bare - 0.5))
    for e, name in enumerate(panel.names):
        margin, n = _scaled(panel.margin[:, e])
        ledger.put(name, "length_slope", statistic=_slope(margin, panel.doubled, None), n=n)
        ledger.put_mean(name, "same_winner_without_caption", values=_same(winner[:, e], bare[:, e]))
        source = np.where(panel.source == 0, np.nan, panel.source)
        for label in _names(groups["source"]):
            values = np.where(groups["source"] == label, _same(winner[:, e], source), np.nan)
            if (~np.isnan(values)).sum() >= LEAST:
                ledger.put_mean(name, "agrees_with_source", label, values=values)
        for k in range(e):
            ledger.put_mean(name, "same_winner_as", panel.names[k], values=_same(winner[:, e], winner[:, k]))
    return ledger.estimate()


def measure_reliability(panel: Panel) -> Tree:
    """List bins of confidence against accuracy: by expert `raw` and `calibrated`, by ensemble `calibrated`."""
    right = panel.right()
    curves: Tree = {}
    for e, name in enumerate(panel.names):
        curves[name] = {"calibrated": reliability(panel.p[:, e], right[:, e])}
        if e < len(panel.names) - 1:
            curves[name]["raw"] = reliability(special.expit(panel.margin[:, e]), right[:, e])
    return curves


def measure_coverage(panel: Panel, confidence_level: float) -> list[Tree]:
    """Return points of threshold, coverage, precision and its one-sided Clopper-Pearson lower bound, strict to loose.

    One pair of each image is counted: pairs of one image are not independent.
    """
    labelled = np.flatnonzero(panel.eligible & ~np.isnan(panel.gold))
    _, firsts = np.unique(panel.image[labelled], return_index=True)
    rows = labelled[firsts]
    sample = Sample(
        len(np.unique(panel.image)),
        (np.abs(panel.p[rows, -1] - 0.5) + 0.5).astype(np.float32),
        panel.label_right()[rows] == 1,
    )
    points = []
    ordered = np.sort(sample.confidence)[::-1]
    picks = np.ceil(len(ordered) * np.arange(1, _POINTS + 1) / _POINTS).astype(int) - 1
    for threshold in np.unique(ordered[picks])[::-1].tolist() if len(ordered) else []:
        tally = sample.tally(threshold)
        points.append(
            {
                "threshold": threshold,
                "coverage": tally.coverage,
                "precision": 1 - tally.n_wrong / tally.n_high,
                "bound": tally.precision_interval(2 * confidence_level - 1)[0],
                "n": tally.n_high,
            }
        )
    return points


def _names(labels: NDArray[np.str_]) -> list[str]:
    """List the groups by name, those with a number by their first number."""
    numbers = {name: re.findall(r"\d+", name) for name in set(labels.tolist()) - {""}}
    return sorted(numbers, key=lambda name: (int((numbers[name] or ["0"])[0]), name))


def _accuracy(ledger: Ledger, path: tuple[str, ...], p: Floats, right: Floats) -> None:
    ledger.put_mean(*path, "accuracy", values=right)
    ledger.put_mean(*path, "confidence", values=np.where(np.isnan(right), np.nan, np.abs(p - 0.5) + 0.5))
    ledger.put_mean(*path, "overconfidence", values=np.abs(p - 0.5) + 0.5 - right)
    ledger.put_mean(*path, "ece", values=calibration_gaps(p, right))


def _length(ledger: Ledger, name: str, panel: Panel, e: int, right: Floats) -> None:
    path = ("experts", name, "length")
    margin, n = _scaled(np.where(np.isnan(right), np.nan, panel.margin[:, e]))
    ledger.put(*path, "slope", statistic=_slope(margin, panel.doubled, np.nan_to_num(panel.gold)), n=n)
    toward = panel.doubled * panel.gold
    ledger.put_mean(*path, "right_is_longer", values=np.where(toward > 0, right, np.nan))
    ledger.put_mean(*path, "right_is_shorter", values=np.where(toward < 0, right, np.nan))


def _scaled(margin: Floats) -> tuple[Floats, int]:
    """Return margins in units of their standard deviation, and how many are known; a constant stays as it is."""
    scored = ~np.isnan(margin)
    spread = float(np.sqrt(np.mean(margin[scored] ** 2))) if scored.any() else 0.0
    return margin / (spread or 1.0), int(scored.sum())


def _slope(margin: Floats, doubled: Floats, gold: Floats | None) -> Statistic:
    """Fit margin by least squares on doublings of length and the label, without intercept; the slope of the first."""
    scored = ~np.isnan(margin)
    x, y = np.where(scored, doubled, 0.0), np.where(scored, margin, 0.0)
    g = np.zeros_like(x) if gold is None else np.where(scored, gold, 0.0)
    products = np.stack([x * x, x * g, g * g, x * y, g * y], axis=1)

    def statistic(weights: Floats) -> Floats:
        xx, xg, gg, xy, gy = (weights @ products).T
        return divide(xy, xx) if gold is None else divide(xy * gg - gy * xg, xx * gg - xg * xg)

    return statistic


def _redundancy(ledger: Ledger, names: tuple[str, ...], wrong: Floats) -> None:
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    statistics = [pearson(wrong[:, i], wrong[:, j], constant=0.0) for i, j in pairs]
    for (i, j), statistic in zip(pairs, statistics, strict=True):
        n = int((~np.isnan(wrong[:, i]) & ~np.isnan(wrong[:, j])).sum())
        ledger.put("redundancy", "error_correlation", names[i], names[j], statistic=statistic, n=n)

    def effective(weights: Floats) -> Floats:
        matrix = np.broadcast_to(np.eye(len(names)), (len(weights), len(names), len(names))).copy()
        for (i, j), statistic in zip(pairs, statistics, strict=True):
            matrix[:, i, j] = matrix[:, j, i] = np.nan_to_num(statistic(weights))
        return effective_experts(matrix)

    ledger.put("redundancy", "effective_experts", statistic=effective, n=int((~np.isnan(wrong)).any(axis=1).sum()))


def _within(wrong: Floats, kinds: NDArray[np.str_] | None) -> Floats:
    """Take its kind's mean off each error: that a kind is hard for every expert is no redundancy."""
    if kinds is None:
        return wrong
    centred = wrong.copy()
    for kind in np.unique(kinds):
        inside = kinds == kind
        centred[inside] -= _row_means(wrong[inside].T)
    return centred


def _same(winner: Floats, other: Floats) -> Floats:
    """Return 1 where two winners (1, -1) are the same, 0 where not; NaN where either is unknown or undecided."""
    decided = (np.abs(winner) == 1) & (np.abs(other) == 1)
    return np.where(decided, winner == other, np.nan)


def _row_means(values: Floats) -> Floats:
    """Return the mean of each row over what is not NaN."""
    counts = ~np.isnan(values)
    return divide(np.where(counts, values, 0.0).sum(axis=1), counts.sum(axis=1))
