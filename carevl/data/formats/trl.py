"""TRL vision preference: message lists; without `prompt`, it is what stands before the last turn of `chosen`.

Images are in a column, or among the parts of messages; without either the row is text alone.
"""

from __future__ import annotations

from carevl.data.formats.base import Format, preferred, user_turn
from carevl.data.rows import Preference, Row
from carevl.data.turns import read_turns


def read(row: Row) -> Preference:
    """Read a row of TRL."""
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        turns = user_turn(row, "prompt")
    else:
        turns = [] if prompt is None else read_turns(prompt, "prompt")
    return preferred(row, turns, "id", images=["images", "image"], required=False)


FORMAT = Format(
    name="trl",
    columns={"chosen": "list", "rejected": "list"},
    read=read,
    example={
        "images": ["a.png"],
        "prompt": [{"role": "user", "content": "What is it?"}],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog."}],
    },
)
