"""OpenAI's preference format, as its guide on direct preference optimization has it: an input and two outputs."""

from __future__ import annotations

from carevl.data.formats.base import Format, preferred
from carevl.data.rows import Preference, Row, RowError, struct
from carevl.data.turns import read_turns


def read(row: Row) -> Preference:
    """Read a row of OpenAI's preference format."""
    asked = struct(row.get("input"), "input")
    if asked.get("tools"):
        raise RowError("format", "`input` has `tools`, which an item does not hold; leave it out")
    turns = read_turns(asked.get("messages"), "input.messages")
    pair = ("preferred_output", "non_preferred_output")
    return preferred(row, turns, "id", images=["images", "image"], required=False, pair=pair)


FORMAT = Format(
    name="openai",
    columns={"input": "struct", "preferred_output": "list", "non_preferred_output": "list"},
    read=read,
    example={
        "input": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What is it?"},
                        {"type": "image_url", "image_url": {"url": "a.png"}},
                    ],
                }
            ]
        },
        "preferred_output": [{"role": "assistant", "content": "A cat."}],
        "non_preferred_output": [{"role": "assistant", "content": "A dog."}],
    },
)
