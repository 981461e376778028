"""Diagnostics of a judge's answers, beside how often they are right: position, consistency, parsing and length."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from carevl.benchmarks.outcomes import scored_rows
from carevl.benchmarks.predictions import Prediction, by_key, from_table
from carevl.benchmarks.rows import Row
from carevl.judging.counts import STATUSES, VerdictCounts, join
from carevl.stats.bootstrap import FloatArray, Scored, Statistic, divide, mean, ratio
from carevl.store.table import Table


def count_statuses(predictions: Iterable[Prediction]) -> dict[str, int]:
    """Return the number of predictions of each parse status."""
    counts = Counter(prediction.status for prediction in predictions)
    return {status: counts[status] for status in STATUSES}


def count_verdicts(predictions: Iterable[Prediction]) -> VerdictCounts:
    """Return how many judgments were asked for, came, and have a verdict by the reader of their protocol."""
    counts = VerdictCounts()
    for prediction in predictions:
        task = "pairwise" if len(prediction.order) == 2 and prediction.protocol != "official" else ""
        tie = True if prediction.winner == -1 else prediction.tie
        failed = prediction.error is not None
        counts.add(task, prediction.text, prediction.status, failed=failed, tie=tie, forced=prediction.forced)
    return counts


def count_stored(table: Table) -> dict[str, VerdictCounts]:
    """Return the same of a table of predictions, by benchmark and protocol."""
    grouped: dict[str, VerdictCounts] = {}
    for number in table.parts():
        by_kind: dict[str, list[Prediction]] = {}
        for prediction in from_table(table.read(number)):
            by_kind.setdefault(f"{prediction.benchmark} {prediction.protocol}", []).append(prediction)
        for kind, predictions in by_kind.items():
            grouped[kind] = join([grouped.get(kind, VerdictCounts()), count_verdicts(predictions)])
    return grouped


def diagnose(rows: Sequence[Row], predictions: Iterable[Prediction]) -> Scored:
    """Return statistics of one judge's predictions, for `estimate`.

    - `parse_rate`: share of predictions with status ok.
    - `first_position_rate`: of the pairwise verdicts for one response, the share for the one shown first.
    - `order_consistency`: of the pairs asked in both orders, the share where every verdict names the same response
      (or every one a tie); a missing verdict is inconsistent.
    - `length_slope`: how much more often a response is chosen per e-fold of its length, at the same label: the
      coefficient b of y = a g + b d over pairwise verdicts (least squares through the origin), where y and g are
      +0.5, -0.5 or 0 as judge and label prefer response 0, response 1 or neither, and d = log(1 + characters of
      response 0) - the same of response 1. A judge that is always right, or chooses by chance, has 0.

    Each is undefined (None) where no prediction bears on it. `right` is nan throughout.

    Raises:
        ValueError: a row has no prediction.
    """
    answers = by_key(rows, predictions)
    pairwise = [[each for each in answers[row.key] if row.task == "pairwise" and len(each.order) == 2] for row in rows]
    decided = [[each for each in group if each.winner in (0, 1)] for group in pairwise]
    statistics: dict[str, Statistic] = {
        "parse_rate": ratio(
            [sum(each.status == "ok" for each in answers[row.key]) for row in rows],
            [len(answers[row.key]) for row in rows],
        ),
        "first_position_rate": ratio(
            [sum(each.winner == each.order[0] for each in group) for group in decided],
            [len(group) for group in decided],
        ),
        "order_consistency": mean([_consistent(group) for group in pairwise]),
        "length_slope": _length_slope(rows, pairwise),
    }
    return scored_rows(rows, np.full(len(rows), np.nan), statistics)


def _consistent(answers: Sequence[Prediction]) -> float:
    if len({answer.order for answer in answers}) < 2:
        return math.nan
    winners = {answer.winner for answer in answers}
    return float(len(winners) == 1 and None not in winners)


def _length_slope(rows: Sequence[Row], pairwise: Sequence[Sequence[Prediction]]) -> Statistic:
    d, g, y, count = (np.zeros(len(rows)) for _ in range(4))
    for number, (row, answers) in enumerate(zip(rows, pairwise, strict=True)):
        preferences = [_PREFERENCE[answer.winner] for answer in answers if answer.winner is not None]
        if preferences:
            d[number] = math.log1p(len(row.responses[0])) - math.log1p(len(row.responses[1]))
            g[number], y[number], count[number] = _PREFERENCE[row.winner], sum(preferences), len(preferences)

    def statistic(weights: FloatArray) -> FloatArray:
        dd, gg, dg = (weights @ (count * left * right) for left, right in ((d, d), (g, g), (d, g)))
        dy, gy = weights @ (d * y), weights @ (g * y)
        determinant = dd * gg - dg**2
        return divide(dy * gg - gy * dg, np.where(determinant > _SINGULAR * dd * gg, determinant, 0.0))

    return statistic


_PREFERENCE = {0: 0.5, 1: -0.5, -1: 0.0}
_SINGULAR = 1e-9
"""Relative determinant below which label and length cannot be told apart."""
