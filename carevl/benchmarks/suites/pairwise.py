"""Pairs of one's own in a plain layout: `id`, `image` or `images`, `question`, `responses`, `better`, `category`.

- `responses` holds two texts; in CSV as a JSON list in its cell.
- `better` is the index of the better one, 0 or 1; -1 or null (in CSV an empty cell) where neither is better.
- `images` is a list, in CSV as a JSON list in its cell; tags `<image>` in the question are their places, and without
  tags all stand before it. `image` is a single one, which stands before the question.
- `image`, `images` and `category` may be left out: a row without images is asked about its text alone.

There is no official script: under every protocol the judge is asked in its own prompt and in both orders, and a pair is
right only if both verdicts are. That of a tied pair is a tie that the judge states, in both orders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from carevl.benchmarks.outcomes import pairs_right, scored_rows
from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.questions import Question, strict_questions
from carevl.benchmarks.rows import Image, Record, Row, load_rows, read_images, row_key
from carevl.benchmarks.suite import Suite
from carevl.data.turns import IMAGE_TAG, take_tags
from carevl.judging.verdicts import Verdict
from carevl.settings.data import ProtocolName
from carevl.stats.bootstrap import Scored, Statistic, accuracy_statistics, mean

_WITHOUT_TIES = "without_ties"
_OWN_FIGURES = ("overall", "macro", _WITHOUT_TIES)


class Pairwise(Suite):
    """Pairs of a user's own."""

    name = "pairwise"
    summary = "pairs of your own"
    default_protocols = ("strict",)
    has_text_only = True

    def load(self, path: Path, images: Path | None = None) -> list[Row]:
        """Return the rows of a JSONL, JSON, CSV or Parquet file; image paths begin in `images`, else beside it.

        Raises:
            ValueError: a field is missing or of another kind; the message names file, row and field.
        """
        return load_rows(path, images, read_row)

    def questions(
        self, rows: Iterable[Row], protocol: ProtocolName, *, draws: int | None = None, seed: int = 0
    ) -> Iterator[Question]:
        """Yield every pair in both orders (no `draws`, no `seed`)."""
        return strict_questions(self.name, rows, protocol)

    def parse(self, question: Question, text: str, *, truncated: bool = False) -> Verdict:
        """Return the verdict as our reader reads it, a stated tie as the winner -1."""
        verdict = super().parse(question, text, truncated=truncated)
        return replace(verdict, winner=-1) if verdict.tie else verdict

    def score(
        self,
        rows: Sequence[Row],
        predictions: Iterable[Prediction],
        protocol: ProtocolName,
        *,
        draws: int | None = None,
    ) -> Scored:
        """Return `overall`, `macro` and each category; `without_ties` too where some pairs are tied.

        Raises:
            ValueError: a row was not asked in both orders.
        """
        right = pairs_right(rows, predictions)
        statistics: dict[str, Statistic] = accuracy_statistics(right, [row.group for row in rows])
        tied = [row.winner == -1 for row in rows]
        if any(tied):
            statistics[_WITHOUT_TIES] = mean(np.where(tied, np.nan, right))
        return scored_rows(rows, right, statistics)


def read_row(record: Record, root: Path) -> Row:
    """Return one row of the file. Raises ValueError as `load` does."""
    question, responses, better = record.text("question"), _responses(record), _better(record)
    category = record.text("category") if record.values.get("category") is not None else ""
    if category in _OWN_FIGURES:
        raise ValueError(f"{record.location}: category {category!r} is the name of a figure; choose another")
    images = _images(record, root)
    words, places = take_tags(question) if record.values.get("images") else (question, ())
    if places and len(places) != len(images):
        raise ValueError(
            f"{record.location}: the question has {len(places)} tags {IMAGE_TAG} for {len(images)} images; give it one "
            "for each image, or none"
        )
    return Row(
        key=row_key(record.get("id"), question, *responses),
        task="pairwise",
        group=category or "uncategorized",
        question=words,
        responses=responses,
        gold=(float(better == 0), float(better == 1)),
        images=images,
        places=places,
    )


def _images(record: Record, root: Path) -> tuple[Image, ...]:
    image, images = record.values.get("image"), _list(record, "images")
    if isinstance(image, list):
        raise ValueError(
            f"{record.location}: image must be one image, found a list of {len(image)}; call the column images"
        )
    if not images:
        return read_images(image, root)
    if not isinstance(images, list):
        raise ValueError(f"{record.location}: images must be a list, found {images!r:.80}")
    if image:
        raise ValueError(f"{record.location}: has both image and images; give one of them")
    return read_images(images, root)


def _list(record: Record, name: str) -> Any:
    """Return a value, or what its JSON holds where it is text, as in CSV."""
    value = record.values.get(name)
    if not isinstance(value, str) or not value:
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{record.location}: {name} must be a JSON list, found {value!r:.80}") from error


def _responses(record: Record) -> tuple[str, ...]:
    responses = Record(record.values | {"responses": _list(record, "responses")}, record.location).texts("responses")
    if len(responses) != 2:
        raise ValueError(f"{record.location}: expected 2 responses, found {len(responses)}")
    return responses


def _better(record: Record) -> int:
    """Return the index of the better response, -1 for a tie."""
    value = record.nullable("better")
    if value is None or value == "":
        return -1
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if number not in (-1, 0, 1) or isinstance(value, bool):
        raise ValueError(f"{record.location}: better must be 0, 1, -1 or null, found {value!r:.80}")
    return int(number)


SUITE = Pairwise()
