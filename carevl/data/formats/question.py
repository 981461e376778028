"""Images and a question, without responses; what `answer` or `answers` says is right is kept beside it."""

from __future__ import annotations

from carevl.data.formats.base import IMAGES, Format, read_question, user_turn
from carevl.data.rows import Preference, Row

_QUESTIONS = ("question", "prompt", "txt")


def read(row: Row) -> Preference:
    """Read a question; `txt` is that of a WebDataset sample `KEY.jpg`, `KEY.txt`."""
    name = next((name for name in _QUESTIONS if row.get(name) is not None), _QUESTIONS[0])
    return read_question(row, user_turn(row, name), "id", "question_id", images=["images", "image"])


FORMAT = Format(
    name="question",
    columns={**IMAGES, "|".join(_QUESTIONS): "text"},
    read=read,
    example={"image": "a.png", "question": "What is it?", "answer": "A cat."},
    of_questions=True,
)
