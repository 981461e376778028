"""Which rows a judge has answered, and in how many draws: what its figures are of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.rows import Row
from carevl.benchmarks.suite import Suite
from carevl.errors import UserError
from carevl.settings.data import ProtocolName


@dataclass(frozen=True)
class Coverage:
    """The rows that were answered in every order that the protocol asks, and their predictions."""

    rows: list[Row]
    predictions: list[Prediction]
    k: int | None
    """Draws per row that figures are of; None where the protocol draws none."""
    fewer_draws: int
    """Rows that have fewer: they are scored by those that they have, as the official scripts do."""


def cover(
    suite: Suite, rows: Sequence[Row], protocol: ProtocolName, predictions: Iterable[Prediction], draws: int | None
) -> Coverage:
    """Return what one judge's predictions under one protocol cover.

    Args:
        draws: per row; when None the benchmark's own number, or the most that a row has.

    Raises:
        UserError: no row has so many draws.
    """
    answers: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        answers[prediction.key].append(prediction)
    orders: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for question in suite.questions([row for row in rows if row.key in answers], protocol, draws=1):
        orders[question.key].add(question.order)
    drawn = {
        row.key: _count_draws(answers[row.key], orders[row.key])
        for row in rows
        if row.key in answers and _is_whole(answers[row.key], orders[row.key])
    }
    covered = [row for row in rows if row.key in drawn]
    kept = [prediction for row in covered for prediction in answers[row.key]]
    if not draws_several(suite, covered, protocol):
        return Coverage(covered, kept, None, 0)
    most = max(drawn.values())
    if draws is not None and draws > most:
        raise UserError(f"--k {draws}: no row has more than {most} draws under {protocol}")
    k = draws or min(suite.draws, most)
    return Coverage(covered, kept, k, sum(n < k for n in drawn.values()))


def draws_several(suite: Suite, rows: Sequence[Row], protocol: ProtocolName) -> bool:
    """Return whether a protocol draws several judgments of a row; False without any row."""
    return any(question.sample for question in suite.questions(rows[:1], protocol, draws=2))


def _is_whole(answers: Sequence[Prediction], orders: set[tuple[int, ...]]) -> bool:
    """Return whether each of several orders was answered; of a single one, which may be drawn, any will do."""
    return len(orders) == 1 or orders <= {answer.order for answer in answers}


def _count_draws(answers: Sequence[Prediction], orders: set[tuple[int, ...]]) -> int:
    if len(orders) == 1:
        return len(answers)
    return min(sum(answer.order == order for answer in answers) for order in orders)
