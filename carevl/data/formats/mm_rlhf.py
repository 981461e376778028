"""MM-RLHF: a prompt in text, about an image or a video."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, PAIR, Format, preferred, user_turn
from carevl.data.rows import Preference, Row


def read(row: Row) -> Preference:
    """Read a row of MM-RLHF."""
    extra = ("id", "chosen_reason", "rejected_reason")
    return preferred(row, user_turn(row, "prompt"), *extra, images=["image", "images"])


FORMAT = Format(
    name="mm-rlhf",
    columns={**IMAGES, "prompt": "text", **PAIR},
    read=read,
    example={"image": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
)
