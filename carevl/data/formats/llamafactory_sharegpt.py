"""LLaMA-Factory ranking in sharegpt form: a conversation and the two turns that could follow it."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, earlier_turns, preferred
from carevl.data.rows import Preference, Row
from carevl.data.turns import read_turns


def read(row: Row) -> Preference:
    """Read a row of LLaMA-Factory's sharegpt form."""
    turns = [*earlier_turns(row), *read_turns(row.get("conversations"), "conversations")]
    return preferred(row, turns, "id", images=["images", "image"])


FORMAT = Format(
    name="llamafactory-sharegpt",
    columns={**IMAGES, "conversations": "list", "chosen": "struct|list", "rejected": "struct|list"},
    read=read,
    example={
        "conversations": [{"from": "human", "value": "<image>What is it?"}],
        "chosen": {"from": "gpt", "value": "A cat."},
        "rejected": {"from": "gpt", "value": "A dog."},
        "images": ["a.png"],
    },
)
