"""Pairs of texts about no image (UltraFeedback, HelpSteer, MMPR's `_wo_image`): a prompt, chosen and rejected."""

from __future__ import annotations

from carevl.data.formats.base import PAIR, Format, preferred, user_turn
from carevl.data.rows import Preference, Row


def read(row: Row) -> Preference:
    """Read a row of text alone."""
    name = next((name for name in ("prompt", "question", "instruction") if name in row), "prompt")
    return preferred(row, user_turn(row, name), "id", "source", images=["images", "image"], required=False)


FORMAT = Format(
    name="text-pair",
    columns={"prompt|question|instruction": "text", **PAIR},
    read=read,
    example={"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog."},
    of_text=True,
)
