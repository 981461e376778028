"""How often judges are right, over rows and seeds, with intervals from resampling images and seeds together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from carevl.audit.ledger import calibration_gaps
from carevl.benchmarks.outcomes import BOTH_ORDERS
from carevl.benchmarks.predictions import in_orders
from carevl.stats.bootstrap import FloatArray, divide, draw_counts, index_units, percentile_interval

if TYPE_CHECKING:
    from carevl.benchmarks.predictions import Prediction
    from carevl.benchmarks.rows import Row
    from carevl.stats.estimate import Estimate

RESAMPLES = 2000
FIGURES = ("strict", "single_order", "order_consistency", "ece")

Outcomes = Mapping[str, FloatArray]
"""Figure to a value per row, float64 [n_rows], whose mean it is; nan where a row does not count."""


def of_predictions(rows: Sequence[Row], predictions: Iterable[Prediction]) -> Outcomes:
    """Score a judge that answered in both orders.

    - `strict`: 1 if the better response wins in both orders, else 0; no verdict is wrong.
    - `single_order`: the share of the two orders in which it wins.
    - `order_consistency`: 1 if both verdicts name the same response.
    - `ece`: what averages to the expected calibration error of the verdict token's probability.

    Raises:
        ValueError: a row has no answers in both orders.
    """
    answers = in_orders(rows, predictions, {row.key: BOTH_ORDERS for row in rows})
    winners = np.array([[_number(each.winner) for each in answers[row.key]] for row in rows], np.float64).reshape(-1, 2)
    first = np.array([[_number(each.probability) for each in answers[row.key]] for row in rows], np.float64)
    return _outcomes(rows, winners, first.reshape(-1, 2))


def of_probabilities(rows: Sequence[Row], first: Mapping[str, float | None]) -> Outcomes:
    """Score a judge that sees no order by the probability of each row's first response, by key; None is never right."""
    p = np.array([_number(first.get(row.key)) for row in rows], np.float64)
    winners = np.select([p > 0.5, p < 0.5], [0.0, 1.0], np.nan)
    return _outcomes(rows, np.stack([winners] * 2, axis=1), np.stack([p] * 2, axis=1))


def _outcomes(rows: Sequence[Row], winners: FloatArray, first: FloatArray) -> Outcomes:
    """Score winners and probabilities of the first response, float64 [n_rows, 2 orders], nan where there is none."""
    gold = np.array([row.winner for row in rows], np.float64)[:, None]
    right = winners == gold
    sure_right = np.where(np.isnan(first), np.nan, (first > 0.5) == (gold == 0))
    gaps = calibration_gaps(first.ravel(), sure_right.ravel()).reshape(-1, 2)
    counts = ~np.isnan(gaps)
    return {
        "strict": right.all(axis=1).astype(np.float64),
        "single_order": right.mean(axis=1),
        "order_consistency": (winners[:, 0] == winners[:, 1]).astype(np.float64),
        "ece": divide(np.nansum(gaps, axis=1), counts.sum(axis=1)),
    }


def _number(value: float | None) -> float:
    return np.nan if value is None else value


def over_seeds(outcomes: Sequence[Outcomes]) -> Outcomes:
    """Stack outcomes of several seeds: figure to float64 [n_seeds, n_rows]."""
    return {name: np.stack([each[name] for each in outcomes]) for name in FIGURES}


@dataclass(frozen=True)
class Resamples:
    """Counts of each seed and each row in every resample: float64 [n_resamples, n_seeds], [.., n_rows].

    Seeds are drawn with replacement, and so are images with all their rows; a row of a seed counts as often as the
    product says. The first resample is the data themselves.
    """

    seeds: FloatArray
    rows: FloatArray

    @staticmethod
    def draw(n_seeds: int, units: Sequence[str], resamples: int = RESAMPLES) -> Resamples:
        """Draw resamples; the same for the same numbers and units.

        Args:
            units: of every row; rows of one unit (image) are drawn together.
        """
        rng = np.random.default_rng(0)
        n_units, unit_of_row = index_units(units)
        of_seeds, of_units = (np.vstack([np.ones(n), draw_counts(rng, n, resamples)]) for n in (n_seeds, n_units))
        return Resamples(of_seeds, of_units[:, unit_of_row])

    def means(self, values: FloatArray) -> FloatArray:
        """Return the mean in every resample, float64 [n_resamples], of values [n_seeds, n_rows]; nan does not count."""
        counts = ~np.isnan(values)
        top, bottom = (((self.seeds @ each) * self.rows).sum(axis=1) for each in (np.nan_to_num(values), counts))
        return divide(top, bottom)


def estimate(means: FloatArray) -> Estimate:
    """Return the first mean, which is the data's own, with the percentile interval of the others."""
    return percentile_interval(means[0], means[1:])
