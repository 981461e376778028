"""The `predictions` table: every answer of every judge, kept so that each figure can be recomputed from it."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import pyarrow as pa

from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Row
from carevl.errors import DataError
from carevl.judging.verdicts import Status, Verdict
from carevl.store.schemas import PREDICTIONS


@dataclass(frozen=True)
class Prediction:
    """One row of the table; the fields are documented in `PREDICTIONS`."""

    benchmark: str
    protocol: str
    judge: str
    key: str
    order: tuple[int, ...]
    sample: int
    prompt_hash: str
    text: str
    winner: int | None
    ranking: tuple[int, ...] | None
    rating: float | None
    status: Status
    probability: float | None
    error: dict[str, str] | None = None
    reasoning: str | None = None
    forced: bool = False
    question_id: str | None = None
    tie: bool | None = None


_LATER = ("reasoning", "forced", "question_id", "tie")
"""Fields that earlier versions did not keep."""


def prompt_hash(prompt: str) -> str:
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).hexdigest()[:16]


def record(
    question: Question,
    judge: str,
    text: str,
    verdict: Verdict,
    probability: float | None = None,
    error: dict[str, str] | None = None,
    reasoning: str | None = None,
) -> Prediction:
    """Return a judge's answer as a row. `probability` is that of the lower response index being the better one."""
    return Prediction(
        benchmark=question.benchmark,
        protocol=question.protocol,
        judge=judge,
        key=question.key,
        order=question.order,
        sample=question.sample,
        prompt_hash=prompt_hash(question.prompt),
        text=text,
        winner=verdict.winner,
        ranking=verdict.ranking,
        rating=verdict.rating,
        status=verdict.status,
        probability=probability,
        error=error,
        reasoning=reasoning,
        question_id=question.question_id,
        tie=verdict.tie or verdict.winner == -1,
    )


def record_score(question: Question, judge: str, score: float) -> Prediction:
    """Return a reward model's raw score of `question.response` as a row."""
    return replace(record(question, judge, "", Verdict("ok", "")), rating=float(score))


def to_table(predictions: Iterable[Prediction]) -> pa.Table:
    return pa.Table.from_pylist([asdict(prediction) for prediction in predictions], PREDICTIONS)


def from_table(table: pa.Table) -> list[Prediction]:
    """Return the rows of a stored table.

    Raises:
        DataError: a column is missing.
    """
    names = [field.name for field in fields(Prediction)]
    missing = [name for name in names if name not in table.column_names and name not in _LATER]
    if missing:
        raise DataError(f"not a predictions table: no column {', '.join(missing)}; found {table.column_names}")
    names = [name for name in names if name in table.column_names]
    return [_from_values(values) for values in table.select(names).to_pylist()]


def _from_values(values: dict[str, Any]) -> Prediction:
    ranking = None if values["ranking"] is None else tuple(values["ranking"])
    forced = bool(values.get("forced"))
    return Prediction(**values | {"order": tuple(values["order"]), "ranking": ranking, "forced": forced})


def by_key(rows: Sequence[Row], predictions: Iterable[Prediction]) -> dict[str, list[Prediction]]:
    """Return the predictions of each row, sorted by sample and order. Predictions of other rows are left out.

    Raises:
        DataError: one prediction is there twice (say, of two judges or two protocols), or a row has none.
    """
    answers: dict[str, dict[tuple[int, tuple[int, ...]], Prediction]] = defaultdict(dict)
    for prediction in predictions:
        identity = (prediction.sample, prediction.order)
        if identity in answers[prediction.key]:
            raise DataError(
                f"two predictions for {prediction.key}, order {list(prediction.order)}, sample {prediction.sample}; "
                "score one judge under one protocol at a time"
            )
        answers[prediction.key][identity] = prediction
    refuse_missing(rows, [row for row in rows if row.key not in answers])
    return {row.key: [answers[row.key][identity] for identity in sorted(answers[row.key])] for row in rows}


def draws_of(rows: Sequence[Row], predictions: Iterable[Prediction], draws: int) -> dict[str, list[Prediction]]:
    """Return the first `draws` samples of each row, or as many as it has; for protocols of one order per sample.

    Raises:
        DataError: a row has none.
    """
    return {key: answers[:draws] for key, answers in by_key(rows, predictions).items()}


def in_orders(
    rows: Sequence[Row], predictions: Iterable[Prediction], orders: Mapping[str, Iterable[tuple[int, ...]]]
) -> dict[str, list[Prediction]]:
    """Return the prediction of each row in each of its orders (sample 0), in that order.

    Raises:
        DataError: a row misses one.
    """
    by_order = {
        key: {answer.order: answer for answer in answers if answer.sample == 0}
        for key, answers in by_key(rows, predictions).items()
    }
    refuse_missing(rows, [row for row in rows if not set(orders[row.key]) <= set(by_order[row.key])], "every order")
    return {row.key: [by_order[row.key][order] for order in orders[row.key]] for row in rows}


def refuse_missing(rows: Sequence[Row], missing: Sequence[Row], what: str = "a prediction") -> None:
    """Raise DataError, naming some, when rows are missing: leaving rows out of a figure is the caller's decision."""
    if missing:
        names = ", ".join(row.key for row in missing[:3]) + (", …" if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(rows)} rows lack {what}: {names}; predict them, or pass only the rows to be scored"
        )
