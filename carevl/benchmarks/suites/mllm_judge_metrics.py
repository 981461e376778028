"""The metrics of MLLM-as-a-Judge; `mllm_judge` explains them and their quirks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from carevl.benchmarks.outcomes import pairs_right, scored_rows
from carevl.benchmarks.predictions import Prediction, in_orders
from carevl.benchmarks.rows import Row
from carevl.judging.prompts import Task
from carevl.stats.bootstrap import FloatArray, Scored, Statistic, average, mean, pearson

LETTERS = "ABCDEFGH"
"""Names of the responses in the order of the file."""

_METRICS: dict[str, Task] = {
    "score": "pointwise",
    "pair_with_ties": "pairwise",
    "pair_without_ties": "pairwise",
    "pair_without_gold_ties": "pairwise",
    "batch": "ranking",
}


@dataclass(frozen=True)
class Outcomes:
    """One judgment of every row."""

    values: FloatArray
    """[n_rows]: the rating; 1 or 0 for a right or wrong pair; the distance of a ranking; nan without a verdict."""
    tied: tuple[bool, ...]
    """Whether the verdict is a tie."""


def levenshtein(a: str, b: str) -> float:
    """Return the edit distance (insert, delete, replace) over the longer length: 0 equal, 1 nothing in common."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        current = [i]
        for j, right in enumerate(b, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1] / max(len(a), len(b), 1)


def outcomes(rows: Sequence[Row], answers: Sequence[Prediction | None], written: Sequence[str | None]) -> Outcomes:
    """Return those of one answer per row (None: there is none).

    Args:
        written: the letters of a ranking as the judge wrote them, or None.
    """
    values = [_value(row, answer, text) for row, answer, text in zip(rows, answers, written, strict=True)]
    return Outcomes(np.array(values, np.float64), tuple(each is not None and each.winner == -1 for each in answers))


def _value(row: Row, answer: Prediction | None, written: str | None) -> float:
    if answer is None:
        return np.nan
    if row.task == "pointwise":
        return np.nan if answer.rating is None else answer.rating
    if row.task == "pairwise":
        return np.nan if answer.winner is None else float(answer.winner == row.winner)
    letters = _letters(answer.ranking or ()) if written is None else written
    return levenshtein(letters, _letters(row.ranking)) if letters else np.nan


def _letters(ranking: Sequence[int]) -> str:
    return "".join(LETTERS[i] for i in ranking)


def strict_outcomes(rows: Sequence[Row], predictions: Iterable[Prediction]) -> Outcomes:
    """Judge pairs by both orders, the others by their one judgment; a ranking without a verdict has the distance 1."""
    answers = list(predictions)
    pairs = [row for row in rows if row.task == "pairwise"]
    others = [row for row in rows if row.task != "pairwise"]
    by_order = in_orders(others, answers, {row.key: [tuple(range(len(row.responses)))] for row in others})
    outcome = {row.key: _value(row, by_order[row.key][0], None) for row in others}
    outcome |= zip((row.key for row in pairs), pairs_right(pairs, answers).tolist(), strict=True)
    values = [1.0 if row.task == "ranking" and np.isnan(outcome[row.key]) else outcome[row.key] for row in rows]
    return Outcomes(np.array(values, np.float64), (False,) * len(rows))


def scored(rows: Sequence[Row], samples: Sequence[Outcomes], *, strict: bool) -> Scored:
    """Return every metric per source dataset, averaged over the samples, and its unweighted mean over the datasets."""
    statistics: dict[str, Statistic] = {}
    for name, task in _METRICS.items():
        per_dataset = {
            f"{name}/{dataset}": average([_statistic(name, rows, dataset, each, strict) for each in samples])
            for dataset in sorted({row.group for row in rows if row.task == task})
        }
        if per_dataset:
            statistics |= {name: average(list(per_dataset.values())), **per_dataset}
    pairs = np.where([row.task == "pairwise" for row in rows], samples[0].values, np.nan)
    counted = np.logical_or(strict, ~np.isnan([each.values for each in samples]).all(axis=0))
    return scored_rows(rows, pairs, statistics, counted)


def _statistic(name: str, rows: Sequence[Row], dataset: str, sample: Outcomes, strict: bool) -> Statistic:
    inside = np.array([row.task == _METRICS[name] and row.group == dataset for row in rows])
    values = np.where(inside, sample.values, np.nan)
    if name == "score":
        if strict:
            rated = values[~np.isnan(values)]
            values = np.where(inside & np.isnan(values), rated.mean() if rated.size else 0.0, values)
        return pearson(values, [row.gold[0] for row in rows], constant=0.0 if strict else np.nan)
    if name == "pair_without_ties":
        tied = [row.winner == -1 or tie for row, tie in zip(rows, sample.tied, strict=True)]
        return mean(np.where(tied, np.nan, values))
    if name == "pair_without_gold_ties":
        return mean(np.where([row.winner == -1 for row in rows], np.nan, values))
    return mean(values)
