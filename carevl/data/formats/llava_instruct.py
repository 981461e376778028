"""LLaVA's instruction data: a conversation, of which every turn of the user is a question with the turns before it.

The turn of the model that follows is the right answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from carevl.data.formats.base import IMAGES, Format, read_question
from carevl.data.rows import Preference, Row, RowError, references_of
from carevl.data.turns import IMAGE_TAG, read_turns

_COLUMN = "conversations"
_MOST_QUESTIONS = 256
"""Of one conversation: each has all turns before it."""


def read(row: Row) -> Preference:
    """Read the last question of a conversation, and the answer if one follows."""
    turns = read_turns(row.get(_COLUMN), _COLUMN)
    if turns[-1].role == "assistant":
        row = {**row, "answer": turns[-1].text}
        turns = turns[:-1]
    return read_question(row, turns, "id", images=["image", "images"])


def divide(row: Row) -> Iterator[Row]:
    """Yield the conversation up to each of its questions and the answer to it, with the images shown until then.

    Raises:
        RowError: it has too many questions.
    """
    turns = row.get(_COLUMN)
    starts = [n for n, turn in enumerate(turns) if _is_users(turn)] if isinstance(turns, list | tuple) else []
    if len(starts) > _MOST_QUESTIONS:
        raise RowError("turns", f"`{_COLUMN}` has {len(starts)} questions, more than {_MOST_QUESTIONS}; divide the row")
    if len(starts) < 2:
        yield row
        return
    assert turns is not None
    for end in (*starts[1:], len(turns)):
        yield {**row, **_shown(row, turns, end), _COLUMN: turns[:end]}


def _is_users(turn: object) -> bool:
    return isinstance(turn, Mapping) and turn.get("from", turn.get("role")) in ("human", "user")


def _shown(row: Row, turns: Sequence[Any], end: int) -> Row:
    """Return the columns of images with those whose tags stand in the first turns; all where tags and images differ."""
    columns = [name for name in ("image", "images") if row.get(name) not in (None, "")]
    images = references_of(row[columns[0]]) if columns else ()
    tags = [_count_tags(turn) for turn in turns]
    if not images or sum(tags) != len(images) or sum(tags[:end]) == len(images):
        return {}
    return {columns[0]: list(images[: sum(tags[:end])])}


def _count_tags(turn: object) -> int:
    text = turn.get("value", turn.get("content")) if isinstance(turn, Mapping) else None
    return text.count(IMAGE_TAG) if isinstance(text, str) else 0


FORMAT = Format(
    name="llava-instruct",
    columns={**IMAGES, _COLUMN: "list"},
    read=read,
    divide=divide,
    example={
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
    },
    of_questions=True,
)
