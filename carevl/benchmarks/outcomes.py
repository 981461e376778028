"""Per-row outcomes that several benchmarks share, read from stored predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from carevl.benchmarks.predictions import Prediction, by_key, in_orders, refuse_missing
from carevl.benchmarks.rows import Row, resampling_units
from carevl.stats.bootstrap import FloatArray, Scored, Statistic

BOTH_ORDERS = ((0, 1), (1, 0))


def scored_rows(
    rows: Sequence[Row],
    right: FloatArray,
    statistics: dict[str, Statistic],
    counted: NDArray[np.bool_] | None = None,
) -> Scored:
    """Return outcomes and statistics over these rows; `counted` as in `Scored`."""
    return Scored(tuple(row.key for row in rows), resampling_units(rows), right, statistics, counted)


def pairs_right(rows: Sequence[Row], predictions: Iterable[Prediction]) -> FloatArray:
    """Return per pair (float64 [n_rows]) 1 if the better response wins in both orders, else 0; no verdict is wrong.

    A tied pair needs a stated tie, which the judge's own prompt does not offer and few suites count. Where responses
    were rated one by one (`pointwise`), the one that is rated higher wins, and equal ratings are half right.

    Raises:
        ValueError: a row was not asked in both orders, or about both responses.
    """
    stored = list(predictions)
    if any(answer.protocol == "pointwise" for answer in stored):
        ratings = response_ratings(rows, stored, draws=1)
        return np.array([_rated_right(row, *of_row) for row, of_row in zip(rows, ratings, strict=True)], np.float64)
    answers = in_orders(rows, stored, {row.key: BOTH_ORDERS for row in rows})
    return np.array([all(answer.winner == row.winner for answer in answers[row.key]) for row in rows], np.float64)


def _rated_right(row: Row, first: float, second: float) -> float:
    if np.isnan([first, second]).any():
        return 0.0
    if row.winner == -1:
        return float(first == second)
    return 0.5 if first == second else float(row.winner == int(second > first))


def response_ratings(rows: Sequence[Row], predictions: Iterable[Prediction], draws: int) -> list[FloatArray]:
    """Return per row the mean rating of each response over its first `draws` draws, or as many as there are.

    Returns:
        float64 [n_responses] per row; nan where a rating is missing in an answer.

    Raises:
        ValueError: a response was not asked at all.
    """
    answers = by_key(rows, predictions)
    ratings: list[FloatArray] = []
    short: list[Row] = []
    for row in rows:
        drawn: list[list[float]] = [[] for _ in row.responses]
        for answer in answers[row.key]:
            if len(answer.order) == 1 and answer.sample < draws:
                drawn[answer.order[0]].append(np.nan if answer.rating is None else answer.rating)
        if not all(drawn):
            short.append(row)
        else:
            ratings.append(np.array([np.mean(values) for values in drawn], np.float64))
    refuse_missing(rows, short, "a rating of every response")
    return ratings
