"""LLaMA-Factory ranking in sharegpt form: a conversation and the two turns that could follow it."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, chosen_over_rejected, image_of
from carevl.data.rows import Preference, Row
from carevl.data.turns import question_of, read_turns


def read(row: Row) -> Preference:
    """Read a row of LLaMA-Factory's sharegpt form."""
    question = question_of(read_turns(row.get("conversations"), "conversations"))
    return chosen_over_rejected(row, question, image_of(row, "images", "image"), "id")


FORMAT = Format(
    name="llamafactory-sharegpt",
    columns={**IMAGES, "conversations": "list", "chosen": "struct", "rejected": "struct"},
    read=read,
    example={
        "conversations": [{"from": "human", "value": "<image>What is it?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["a.png"],
    },
)
