"""CAREVL's own: `image` or `images`, `question`, `responses` and, if known, `source_preference` with one number each.

`turns` are those before the question.
"""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, read_preference, user_turn
from carevl.data.rows import Preference, Row, items_of, number, text
from carevl.data.turns import read_turns


def read(row: Row) -> Preference:
    """Read a row of CAREVL's own format."""
    responses = items_of(row.get("responses"), "responses")
    texts = tuple(text(response, f"responses[{n}]") for n, response in enumerate(responses))
    preference = None
    if row.get("source_preference") is not None:
        values = items_of(row["source_preference"], "source_preference")
        preference = tuple(number(value, f"source_preference[{n}]") for n, value in enumerate(values))
    turns = [*(read_turns(row["turns"], "turns") if row.get("turns") else ()), *user_turn(row, "question")]
    return read_preference(row, turns, texts, preference, "id", images=["images", "image"])


FORMAT = Format(
    name="items",
    columns={**IMAGES, "question": "text", "responses": "list"},
    read=read,
    example={
        "image": "a.png",
        "question": "What is it?",
        "responses": ["A cat.", "A dog."],
        "source_preference": [1, 0],
    },
)
