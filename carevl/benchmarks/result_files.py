"""Result files of benchmarks' own scripts and of other harnesses, read into the `predictions` table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from carevl.benchmarks.layouts import FileAnswer, Layout, RowIndex
from carevl.benchmarks.predictions import Prediction, record, record_score
from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Record, Row, read_records
from carevl.benchmarks.suite import Suite
from carevl.errors import UserError


def read_results(suite: Suite, path: Path, rows: Sequence[Row], judge: str) -> list[Prediction]:
    """Return the answers to these rows in a result file, or in all those of a folder, as answers of `official`.

    Several answers to a row are several draws. Most files do not keep the prompt, so `prompt_hash` is that of the empty
    text.

    Raises:
        UserError: no layout of the benchmark fits.
        ValueError: a field is missing or of another kind.
    """
    try:
        records = read_records(path)
    except FileNotFoundError as error:
        raise UserError(f"no predictions at {path}, and no result files of another harness") from error
    layout = _find(suite, records, path)
    draws: Counter[tuple[str, tuple[int, ...]]] = Counter()
    predictions: list[Prediction] = []
    for answer in layout.read((part for each in records for part in layout.split(each)), RowIndex(rows)):
        drawn = (answer.row.key, answer.order if layout.draws_by_order else ())
        predictions.append(_predict(suite, answer, draws[drawn], judge))
        draws[drawn] += 1
    return predictions


def _find(suite: Suite, records: Sequence[Record], path: Path) -> Layout:
    if not records:
        raise UserError(f"{path} has no records")
    for layout in suite.layouts():
        first = next((part for each in records for part in layout.split(each)), None)
        if first is not None and first.values.keys() >= set(layout.fields):
            return layout
    known = "; ".join(f"{layout.name}: {', '.join(layout.fields)}" for layout in suite.layouts())
    fields = ", ".join(sorted(records[0].values)[:20])
    raise UserError(
        f"{path}: no result file of {suite.name} is known that has these fields: {fields}. "
        f"Known are {known or 'none but the predictions.parquet of carevl evaluate'}"
    )


def _predict(suite: Suite, answer: FileAnswer, sample: int, judge: str) -> Prediction:
    row, scored = answer.row, isinstance(answer.answer, float)
    task = "pointwise" if scored else row.task
    question = Question(suite.name, "official", row.key, answer.order, sample, task, "", row.images)
    if isinstance(answer.answer, float):
        return record_score(question, judge, answer.answer)
    return record(question, judge, answer.answer, suite.parse(question, answer.answer))
