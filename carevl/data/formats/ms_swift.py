"""ms-swift: `messages` ends with the chosen response; the rejected one is text or a conversation of its own."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, earlier_turns, preferred
from carevl.data.rows import Preference, Row


def read(row: Row) -> Preference:
    """Read a row of ms-swift."""
    rejected = "rejected_messages" if row.get("rejected_response") is None else "rejected_response"
    return preferred(row, earlier_turns(row), "id", images=["images", "image"], pair=("messages", rejected))


FORMAT = Format(
    name="ms-swift",
    columns={**IMAGES, "messages": "list", "rejected_response|rejected_messages": "text|list"},
    read=read,
    example={
        "messages": [
            {"role": "user", "content": "<image>What is it?"},
            {"role": "assistant", "content": "A cat."},
        ],
        "rejected_response": "A dog.",
        "images": ["a.png"],
    },
)
