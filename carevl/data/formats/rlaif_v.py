"""RLAIF-V: `chosen` and `rejected` beside the question."""

from __future__ import annotations

from carevl.data.formats.base import ANY, ORIGIN, PAIR, Format, preferred, user_turn
from carevl.data.rows import Preference, Row


def read(row: Row) -> Preference:
    """Read a row of RLAIF-V."""
    extra = ("ds_name", "origin_dataset", "origin_split", "idx", "image_path")
    return preferred(row, user_turn(row, "question"), *extra, images=["image"])


FORMAT = Format(
    name="rlaif-v",
    columns={"image": ANY, "question": "text", **PAIR, **ORIGIN},
    read=read,
    example={
        "ds_name": "mine",
        "image": "a.png",
        "question": "What is it?",
        "chosen": "A cat.",
        "rejected": "A dog.",
    },
)
