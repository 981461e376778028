"""SPA-VL, and any table with its four columns."""

from __future__ import annotations

from carevl.data.formats.base import ANY, PAIR, Format, preferred, user_turn
from carevl.data.rows import Preference, Row


def read(row: Row) -> Preference:
    """Read a row of SPA-VL."""
    return preferred(row, user_turn(row, "question"), "image_name", "id", images=["image"])


FORMAT = Format(
    name="spa-vl",
    columns={"image|video": ANY, "question": "text", **PAIR},
    read=read,
    example={"image": "a.png", "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
)
