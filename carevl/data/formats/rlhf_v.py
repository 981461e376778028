"""RLHF-V: question, chosen and rejected are a JSON object inside the text column `text`."""

from __future__ import annotations

import json

from carevl.data.formats.base import ANY, ORIGIN, Format, preferred, user_turn
from carevl.data.rows import Preference, Row, RowError, struct


def read(row: Row) -> Preference:
    """Read a row of RLHF-V."""
    packed = row.get("text")
    if isinstance(packed, str):
        try:
            packed = json.loads(packed)
        except (ValueError, RecursionError) as failure:
            raise RowError("format", f"`text` should be a JSON object with the triple: {failure}") from None
    triple = struct(packed, "text")
    extra = ("ds_name", "origin_dataset", "origin_split", "idx", "image_path")
    return preferred({**row, **triple}, user_turn(triple, "question"), *extra, images=["image"])


FORMAT = Format(
    name="rlhf-v",
    columns={"image": ANY, "text": "text|struct", **ORIGIN},
    read=read,
    example={
        "ds_name": "mine",
        "image": "a.png",
        "text": json.dumps({"question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}),
    },
)
