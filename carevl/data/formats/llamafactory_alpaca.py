"""LLaMA-Factory ranking in alpaca form: `instruction` and an optional `input` make the question."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, PAIR, Format, earlier_turns, preferred
from carevl.data.rows import Preference, Row, text
from carevl.data.turns import Turn


def read(row: Row) -> Preference:
    """Read a row of LLaMA-Factory's alpaca form."""
    instruction = text(row.get("instruction"), "instruction", "question")
    lines = [instruction, text(row["input"], "input")] if row.get("input") else [instruction]
    turns = [*earlier_turns(row), Turn("user", "\n".join(lines))]
    return preferred(row, turns, "id", images=["images", "image"])


FORMAT = Format(
    name="llamafactory-alpaca",
    columns={**IMAGES, "instruction": "text", **PAIR},
    read=read,
    example={
        "instruction": "<image>What is it?",
        "chosen": "A cat.",
        "rejected": "A dog.",
        "images": ["a.png"],
    },
)
