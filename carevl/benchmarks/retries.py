"""Questions that failed, and the predictions that take the place of theirs when they are asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from carevl.benchmarks.pictures import can_be_shown
from carevl.benchmarks.questions import Question
from carevl.store.table import Table


def failed_questions(
    table: Table, blocks: Sequence[Sequence[Question]], max_images: int
) -> Mapping[int, list[Question]]:
    """Return the questions of each part whose prediction has an error, but for those that no judge can be shown.

    Args:
        table: parts of predictions.
        blocks: the questions of every part, whether it is there or not.
        max_images: of a prompt.
    """
    failed = {number: _failed(table.read(number), blocks[number], max_images) for number in table.parts()}
    return {number: questions for number, questions in failed.items() if questions}


def _failed(predictions: pa.Table, block: Sequence[Question], max_images: int) -> list[Question]:
    failed = set(_identities(predictions.filter(pc.is_valid(predictions["error"]))))
    shown = (question for question in block if can_be_shown(question, max_images))
    return [q for q in shown if (q.benchmark, q.protocol, q.key, q.order, q.sample) in failed]


def replace_predictions(predictions: pa.Table, retried: pa.Table) -> pa.Table:
    """Return a part with these predictions in place of those that they repeat."""
    new = set(_identities(retried))
    kept = predictions.filter(pa.array([identity not in new for identity in _identities(predictions)], pa.bool_()))
    return pa.concat_tables([kept, retried], promote_options="permissive")  # earlier versions had fewer columns


def _identities(predictions: pa.Table) -> list[tuple[Any, ...]]:
    rows = predictions.select(["benchmark", "protocol", "key", "order", "sample"]).to_pylist()
    return [(row["benchmark"], row["protocol"], row["key"], tuple(row["order"]), row["sample"]) for row in rows]
