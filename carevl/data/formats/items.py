"""CAREVL's own: `image`, `question`, `responses` and, if known, `source_preference` with one number each."""

from __future__ import annotations

from carevl.data.formats.base import ANY, Format, image_of, user_turn
from carevl.data.rows import Preference, Row, facts, items_of, number, text
from carevl.data.turns import question_of


def read(row: Row) -> Preference:
    """Read a row of CAREVL's own format."""
    responses = items_of(row.get("responses"), "responses")
    texts = tuple(text(response, f"responses[{n}]") for n, response in enumerate(responses))
    preference = None
    if row.get("source_preference") is not None:
        values = items_of(row["source_preference"], "source_preference")
        preference = tuple(number(value, f"source_preference[{n}]") for n, value in enumerate(values))
    question = question_of(user_turn(row, "question"))
    return Preference(question, texts, preference, image_of(row, "image"), facts(row, "id"))


FORMAT = Format(
    name="items",
    columns={"image": ANY, "question": "text", "responses": "list"},
    read=read,
    example={
        "image": "a.png",
        "question": "What is it?",
        "responses": ["A cat.", "A dog."],
        "source_preference": [1, 0],
    },
)
