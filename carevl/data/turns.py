"""Conversations in the two spellings in use, `{from, value}` and `{role, content}`, read into a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from carevl.data.rows import RowError, items_of, kind_of, struct, text

IMAGE_TAG = "<image>"
Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "llava": "assistant",
}
_NAMES: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Turn:
    role: Role
    text: str


def read_turn(value: object, field: str) -> Turn:
    """Read a turn. Content may be text or a list of parts, of which the text parts are kept."""
    turn = struct(value, field)
    role = turn.get("from", turn.get("role"))
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("format", f"`{field}` has the unknown role {str(role)[:60]!r}; known: {', '.join(_ROLES)}")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list | tuple):
        parts = [struct(part, f"{field}.content") for part in content]
        texts = [text(part.get("text"), f"{field}.content.text") for part in parts if part.get("type") == "text"]
        return Turn(_ROLES[role], "\n".join(texts))
    return Turn(_ROLES[role], text(content, field))


def read_turns(value: object, field: str) -> list[Turn]:
    """Read a conversation. Raises RowError when it is empty or not a list of turns."""
    turns = [read_turn(turn, f"{field}[{n}]") for n, turn in enumerate(items_of(value, field))]
    if not turns:
        raise RowError("question", f"`{field}` is empty")
    return turns


def split_answer(turns: Sequence[Turn], field: str) -> tuple[list[Turn], str]:
    """Split a conversation that ends with a response into the turns before it and that response."""
    if turns[-1].role != "assistant":
        raise RowError("responses", f"`{field}` should end with a turn of the assistant, found {turns[-1].role}")
    return list(turns[:-1]), turns[-1].text


def last_answer(value: object, field: str) -> str:
    """Return the response in a field that holds text, one turn, or a conversation that ends with it."""
    if value is None:
        raise RowError("responses", f"`{field}` is null or absent")
    if isinstance(value, str):
        return text(value, field)
    if kind_of(value) == "struct":
        return read_turn(value, field).text
    if kind_of(value) != "list":
        raise RowError("format", f"`{field}` should be text, a turn or a list of turns, found {kind_of(value)}")
    return split_answer(read_turns(value, field), field)[1]


def question_of(turns: Sequence[Turn]) -> str:
    """Return the question: the text of a lone user turn, or the whole dialogue with a name before each turn.

    Raises:
        RowError: nothing was asked, or the last turn is not the user's, or there are several image tags.
    """
    if not turns or turns[-1].role != "user":
        raise RowError("question", "the conversation has no question by the user before the response")
    if len(turns) == 1:
        return untagged(turns[0].text)
    return untagged("\n".join(f"{_NAMES[turn.role]}: {turn.text}" for turn in turns))


def untagged(question: str) -> str:
    """Return the question without its image tag. Raises RowError for several tags: an item has one image."""
    tags = question.count(IMAGE_TAG)
    if tags > 1:
        raise RowError("image_several", f"the question has {tags} {IMAGE_TAG} tags; an item has one image")
    for spelling in (f"{IMAGE_TAG}\n", f"\n{IMAGE_TAG}", IMAGE_TAG):
        question = question.replace(spelling, "")
    return question.strip() if tags else question
