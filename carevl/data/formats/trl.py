"""TRL vision preference: message lists; without `prompt`, it is what stands before the last turn of `chosen`."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, chosen_over_rejected, image_of
from carevl.data.rows import Preference, Row, text
from carevl.data.turns import question_of, read_turns, split_answer, untagged


def read(row: Row) -> Preference:
    """Read a row of TRL."""
    image = image_of(row, "images", "image")
    if row.get("prompt") is None:
        turns, _ = split_answer(read_turns(row.get("chosen"), "chosen"), "chosen")
        question = question_of(turns)
    elif isinstance(row["prompt"], str):
        question = untagged(text(row["prompt"], "prompt"))
    else:
        question = question_of(read_turns(row["prompt"], "prompt"))
    return chosen_over_rejected(row, question, image, "id")


FORMAT = Format(
    name="trl",
    columns={**IMAGES, "chosen": "list", "rejected": "list"},
    read=read,
    example={
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": "What is it?"}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    },
)
