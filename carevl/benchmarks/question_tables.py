"""Questions and their images as tables, in which they reach the actors that ask a judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.benchmarks.questions import Question
from carevl.benchmarks.rows import Image
from carevl.data.images import ImageLimits
from carevl.data.pictures import picture
from carevl.data.rows import RowError
from carevl.store.schemas import QUESTION_IMAGES, QUESTIONS

if TYPE_CHECKING:
    import PIL.Image


def to_questions(block: Sequence[Question]) -> pa.Table:
    """Return the questions of a part, without their images."""
    names = [name for name in QUESTIONS.names if name != "images"]
    rows = [
        {**{name: getattr(question, name) for name in names}, "images": [image.name for image in question.images]}
        for question in block
    ]
    return pa.Table.from_pylist(rows, QUESTIONS)


def to_images(block: Sequence[Question]) -> pa.Table:
    """Return each image that these questions name, once; an image that cannot be read has no bytes."""
    images = {image.name: image for question in block if question.response is None for image in question.images}
    return pa.Table.from_pylist(
        [{"name": name, "bytes": _bytes(image), "error": image.error or None} for name, image in images.items()],
        QUESTION_IMAGES,
    )


def _bytes(image: Image) -> bytes:
    try:
        return image.read()
    except OSError:
        return b""


def with_ids(block: Sequence[Question], images: pa.Table, suite: str) -> list[Question]:
    """Return the questions with their ids.

    Args:
        images: of the block, as `to_images` returns them.
        suite: what the benchmark is imported by.
    """
    digests = {row["name"]: hashlib.sha256(row["bytes"]).hexdigest() for row in images.to_pylist()}
    names = [name for name in QUESTIONS.names if name not in ("images", "question_id")]
    identified = []
    for question in block:
        shown = [digests[image.name] for image in question.images] if question.response is None else []
        facts = json.dumps([suite, *(getattr(question, name) for name in names), shown])
        identified.append(replace(question, question_id=hashlib.sha256(facts.encode()).hexdigest()))
    return identified


def from_row(row: Mapping[str, Any]) -> Question:
    """Return the question in a row of `to_questions`; of its images it has the names alone."""
    lists = {name: tuple(row[name]) for name in ("order", "responses", "places")}
    return Question(**{**row, **lists, "images": tuple(map(Image, row["images"]))})


def read_picture(row: Mapping[str, Any], limits: ImageLimits, resize_pixels: int | None) -> PIL.Image.Image | str:
    """Return the picture, or the reason why it cannot be read."""
    if row["error"] is not None:
        return str(row["error"])
    try:
        return picture(row, limits, resize_pixels)
    except RowError as error:
        return str(error)
