"""SPA-VL, and any table with its four columns."""

from __future__ import annotations

from carevl.data.formats.base import ANY, PAIR, Format, chosen_over_rejected, image_of
from carevl.data.rows import Preference, Row, text


def read(row: Row) -> Preference:
    """Read a row of SPA-VL."""
    question = text(row.get("question"), "question", "question")
    return chosen_over_rejected(row, question, image_of(row, "image"), "image_name", "id")


FORMAT = Format(
    name="spa-vl",
    columns={"image": ANY, "question": "text", **PAIR},
    read=read,
    example={"image": "a.png", "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
)
