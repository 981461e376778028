"""MM-RLHF: a prompt in text; rows about a video have no image and are errors."""

from __future__ import annotations

from carevl.data.formats.base import ANY, PAIR, Format, preferred, user_turn
from carevl.data.rows import Preference, Row, RowError


def read(row: Row) -> Preference:
    """Read a row of MM-RLHF."""
    if row.get("image") is None and row.get("images") is None and row.get("video") is not None:
        raise RowError("image_missing", "the row is about a video; an item has one image")
    extra = ("id", "chosen_reason", "rejected_reason")
    return preferred(row, user_turn(row, "prompt"), *extra, images=["image", "images"])


FORMAT = Format(
    name="mm-rlhf",
    columns={"image|images|video": ANY, "prompt": "text", **PAIR},
    read=read,
    example={"image": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
)
