"""ms-swift: `messages` ends with the chosen response; the rejected one is text or a conversation of its own."""

from __future__ import annotations

from carevl.data.formats.base import FIRST, IMAGES, Format, image_of
from carevl.data.rows import Preference, Row, facts
from carevl.data.turns import last_answer, question_of, read_turns, split_answer


def read(row: Row) -> Preference:
    """Read a row of ms-swift."""
    turns, chosen = split_answer(read_turns(row.get("messages"), "messages"), "messages")
    image = image_of(row, "images", "image")
    question = question_of(turns)
    name = "rejected_messages" if row.get("rejected_response") is None else "rejected_response"
    return Preference(question, (chosen, last_answer(row.get(name), name)), FIRST, image, facts(row, "id"))


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
