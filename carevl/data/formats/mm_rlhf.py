"""MM-RLHF: a prompt in text; rows about a video have no image and are errors."""

from __future__ import annotations

from carevl.data.formats.base import ANY, PAIR, Format, chosen_over_rejected, image_of
from carevl.data.rows import Preference, Row, RowError, text
from carevl.data.turns import untagged


def read(row: Row) -> Preference:
    """Read a row of MM-RLHF."""
    image = image_of(row, "image", "images")
    if image is None and row.get("video") is not None:
        raise RowError("image_missing", "the row is about a video; an item has one image")
    question = untagged(text(row.get("prompt"), "prompt", "question"))
    return chosen_over_rejected(row, question, image, "id", "chosen_reason", "rejected_reason")


FORMAT = Format(
    name="mm-rlhf",
    columns={"image|images|video": ANY, "prompt": "text", **PAIR},
    read=read,
    example={"image": "a.png", "prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
)
