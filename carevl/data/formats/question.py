"""Images and a question, without responses; what `answer` or `answers` says is right is kept beside it."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, read_question, user_turn
from carevl.data.rows import Preference, Row

_QUESTIONS = ("question", "prompt", "txt")


def read(row: Row) -> Preference:
    """Read a question.

    `txt`, of a WebDataset sample `KEY.jpg` with `KEY.txt`, is the question, or the right answer to one elsewhere.
    """
    name = next((name for name in _QUESTIONS if row.get(name) is not None), _QUESTIONS[0])
    if name != "txt" and row.keys().isdisjoint(("answer", "answers")):
        row = {**row, "answer": row.get("txt")}
    return read_question(row, user_turn(row, name), "id", "question_id", images=["images", "image"])


FORMAT = Format(
    name="question",
    columns={**IMAGES, "|".join(_QUESTIONS): "text"},
    read=read,
    example={"image": "a.png", "question": "What is it?", "answer": "A cat."},
    of_questions=True,
)
