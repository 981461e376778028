"""POVID: two conversations that differ in their last turn."""

from __future__ import annotations

from carevl.data.formats.base import ANY, FIRST, Format, image_of
from carevl.data.rows import Preference, Row, facts
from carevl.data.turns import last_answer, question_of, read_turns, split_answer


def read(row: Row) -> Preference:
    """Read a row of POVID."""
    turns, chosen = split_answer(read_turns(row.get("conversations"), "conversations"), "conversations")
    rejected = last_answer(row.get("rejected_conversations"), "rejected_conversations")
    return Preference(question_of(turns), (chosen, rejected), FIRST, image_of(row, "image"), facts(row, "id"))


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
