"""COCO's captions: each image once, its captions as right answers to the question that the source names."""

from __future__ import annotations

from collections.abc import Sequence

from carevl.data.formats.base import Annotations, Format, identify, read_question, user_turn
from carevl.data.rows import Preference, Row, text

DEFAULT_QUESTION = "Describe this image."


def read(row: Row) -> Preference:
    """Read an image of COCO."""
    identify(row, "id")
    if row.get("question") is None:
        row = {**row, "question": DEFAULT_QUESTION}
    return read_question(row, user_turn(row, "question"), "id", images=["image", "file_name"])


def _read_annotation(row: Row) -> Sequence[str]:
    return [text(row.get("caption"), "caption")]


FORMAT = Format(
    name="coco-captions",
    columns={"file_name": "text", "id": "number|text"},
    read=read,
    example={"file_name": "a.png", "id": 42, "question": "What is it?", "answers": ["A cat."]},
    of_questions=True,
    annotations=Annotations("id", "image_id", _read_annotation),
)
