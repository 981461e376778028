"""Predictions that the benchmarks' own scripts wrote, read into the `predictions` table for the official scorer.

Each suite knows the layout of its script's files (JSONL, the row's own fields with the answer beside them). A row that
comes several times is several draws. Answers to rows that were not asked for are left out. Most files do not keep the
prompt, so `prompt_hash` is that of the empty text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from carevl.benchmarks.predictions import Prediction, record, record_score
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Row, read_records
from carevl.benchmarks.suite import Suite
from carevl.benchmarks.suites import SUITES


def read_official(suite: Suite, path: Path, rows: Sequence[Row], judge: str) -> list[Prediction]:
    """Return the answers in an official result file to these rows.

    Raises:
        ValueError: the benchmark's scripts keep no answers that can be read, or a field is missing.
    """
    if not suite.official_script:
        readable = ", ".join(other.name for other in SUITES.values() if other.official_script)
        raise ValueError(f"no official layout is known for {suite.name}; known: {readable}")
    of_key = {row.key: row for row in rows}
    draws: Counter[tuple[str, tuple[int, ...]]] = Counter()
    predictions: list[Prediction] = []
    for result in read_records(path):
        stored = suite.read_official_row(result, path.parent)
        if stored.key in of_key:
            row = of_key[stored.key]
            for shown, answer in suite.read_official_answers(result):
                order = tuple(row.responses.index(stored.responses[i]) for i in shown)
                drawn = (row.key, order if isinstance(answer, float) else ())
                predictions.append(_predict(suite, row, order, draws[drawn], answer, judge))
                draws[drawn] += 1
    return predictions


def _predict(
    suite: Suite, row: Row, order: tuple[int, ...], sample: int, answer: str | float, judge: str
) -> Prediction:
    task = "pointwise" if isinstance(answer, float) else row.task
    question = Question(suite.name, "official", row.key, order, sample, task, "", row.image)
    if isinstance(answer, float):
        return record_score(question, judge, answer)
    return record(question, judge, answer, suite.parse(question, answer))
