"""Conversations in the two spellings in use, `{from, value}` and `{role, content}`, read into a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from carevl.data.rows import RowError, items_of, kind_of, readable, struct, text

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
_IMAGE_PARTS = ("image", "image_url")
"""Types of parts that are images, and the field of the part that has the reference."""
_NAMES: dict[Role, str] = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation."""

    role: Role
    text: str
    images: tuple[object, ...] = ()
    """References among the parts of its content, in their order."""


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
        found = (_reference(part.get(name)) for part in parts for name in _IMAGE_PARTS if part.get("type") == name)
        return Turn(_ROLES[role], "\n".join(texts), tuple(image for image in found if image is not None))
    return Turn(_ROLES[role], text(content, field))


def _reference(image: object) -> object:
    return image["url"] if isinstance(image, Mapping) and "url" in image else image


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


def read_response(value: object, field: str) -> tuple[list[Turn] | None, str]:
    """Return the turns before a response, and the response, of text, one turn or a conversation that ends with it.

    Only a conversation says what stands before; of the others that is None.

    Raises:
        RowError: it is absent or of another type.
    """
    value = readable(value)
    if value is None:
        raise RowError("responses", f"`{field}` is null or absent")
    if isinstance(value, str):
        return None, text(value, field)
    if kind_of(value) == "struct":
        return None, read_turn(value, field).text
    if kind_of(value) != "list":
        raise RowError("format", f"`{field}` should be text, a turn or a list of turns, found {kind_of(value)}")
    return split_answer(read_turns(value, field), field)


def join_dialogues(first: list[Turn], second: list[Turn]) -> list[Turn]:
    """Return the turns before two responses, which have to be the same where both have any.

    Raises:
        RowError: they differ, so the responses answer different questions, or are about different images.
    """
    if first and second and _words(first) != _words(second):
        message = "the conversations differ before their last turn, so the responses answer different questions"
        raise RowError("responses", message)
    images = [[image for turn in turns for image in turn.images] for turns in (first, second)]
    if all(images) and images[0] != images[1]:
        raise RowError("image_differs", "the two conversations are about different images; an item has one")
    return second if not first or (images[1] and not images[0]) else first


def follow(prompt: list[Turn], before: list[Turn]) -> list[Turn]:
    """Return a prompt and the turns between it and the response, which may begin with the prompt."""
    words = _words(prompt)
    if words and _words(before)[: len(words)] == words:
        before = [turn for turn in before if turn.role != "system"][len(words) :]
    return [*prompt, *before]


def _words(turns: Sequence[Turn]) -> list[tuple[Role, list[str]]]:
    """Return what tells turns apart: not system turns, image tags or white space, which one of two copies may lack."""
    return [(turn.role, turn.text.replace(IMAGE_TAG, " ").split()) for turn in turns if turn.role != "system"]


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
