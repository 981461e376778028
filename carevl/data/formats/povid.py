"""POVID: two conversations that differ in their last turn."""

from __future__ import annotations

from carevl.data.formats.base import ANY, Format, preferred
from carevl.data.rows import Preference, Row


def read(row: Row) -> Preference:
    """Read a row of POVID."""
    return preferred(row, [], "id", images=["image"], pair=("conversations", "rejected_conversations"))


FORMAT = Format(
    name="povid",
    columns={"image": ANY, "conversations": "list", "rejected_conversations": "list"},
    read=read,
    example={
        "image": "a.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A cat."},
        ],
        "rejected_conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": "A dog."},
        ],
    },
)
