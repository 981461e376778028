"""Conversations in the two spellings in use, `{from, value}` and `{role, content}`, read into turns with places.

In texts the tag `<image>` is the place of an image, as in the formats of LLaVA, LLaMA-Factory and ms-swift, and
`<video>` that of a video in rows that have one; parts of a message that are either become tags. `place_images` takes
the tags out again, and says where they stood.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from carevl.data.rows import RowError, VideoReference, items_of, kind_of, readable, struct, text
from carevl.judging.turns import Turn as AskedTurn
from carevl.judging.turns import shift_places

IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "llava": "assistant",
}
_IMAGE_PARTS, _VIDEO_PARTS = ("image", "image_url"), ("video", "video_url")
"""Types of parts that are images or videos, and the field of the part that has the reference."""
_AUDIO_PARTS = ("audio", "audio_url", "input_audio")
_TOOLS = ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call")


def _tags(tag: str) -> re.Pattern[str]:
    """Return the pattern of a tag, with the line break that sets it apart from the words beside it."""
    return re.compile(f"{tag}\n|\n{tag}(?!\n)|{tag}")


_IMAGES, _MEDIA = _tags(IMAGE_TAG), _tags(f"(?:{IMAGE_TAG}|{VIDEO_TAG})")


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation as its source has it."""

    role: Role
    text: str
    """With a tag for every image that stands in it."""
    images: tuple[object, ...] = ()
    """References among the parts of its content, in their order; those of videos as `VideoReference`."""


def read_turn(value: object, field: str) -> Turn:
    """Read a turn. Content may be text or a list of parts, of which texts (a line each), images and videos are kept.

    Raises:
        RowError: it has another shape, a sound, or the role of a tool or one that is not known.
    """
    turn = struct(value, field)
    role = turn.get("from", turn.get("role"))
    if role in _TOOLS:
        raise RowError(
            "turns", f"`{field}` is a turn of a tool ({role}), which an item does not hold; leave the row out"
        )
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError("format", f"`{field}` has the unknown role {str(role)[:60]!r}; known: {', '.join(_ROLES)}")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list | tuple):
        parts = [struct(part, f"{field}.content") for part in content]
        pieces: list[str] = []
        images: list[object] = []
        for part in parts:
            if part.get("type") == "text":
                pieces += ["\n"] if pieces and pieces[-1] not in (IMAGE_TAG, VIDEO_TAG) else []
                pieces.append(text(part.get("text"), f"{field}.content.text"))
            elif part.get("type") in _IMAGE_PARTS:
                pieces.append(IMAGE_TAG)
                images.append(_reference(part.get(part["type"])))
            elif part.get("type") in _VIDEO_PARTS:
                pieces.append(VIDEO_TAG)
                images.append(VideoReference(_reference(part.get(part["type"]))))
            elif part.get("type") in _AUDIO_PARTS:
                raise RowError("media", f"`{field}` has a sound, which an item does not hold; leave it out")
        return Turn(_ROLES[role], "".join(pieces), tuple(image for image in images if image is not None))
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
    images = [references(turns) for turns in (first, second)]
    if all(images) and images[0] != images[1]:
        raise RowError("image_differs", f"the two conversations are about different images; {ONE_FOR_BOTH}")
    return max(first, second, key=_shown)


ONE_FOR_BOTH = (
    "responses can be told apart by a judge only where both are about the same images: leave the row out, or make it a "
    "question about both images with a response for each"
)
"""Why a pair of images is no pair of responses, and what to do."""


def follow(prompt: list[Turn], before: list[Turn]) -> list[Turn]:
    """Return a prompt and the turns between it and the response, which may begin with the prompt."""
    words = _words(prompt)
    if not words or _words(before)[: len(words)] != words:
        return [*prompt, *before]
    before = [turn for turn in before if turn.role != "system"]
    repeated, rest = before[: len(words)], before[len(words) :]
    if _shown(repeated) > _shown(prompt):
        prompt = [*(turn for turn in prompt if turn.role == "system"), *repeated]
    return [*prompt, *rest]


def references(turns: Sequence[Turn]) -> list[object]:
    """Return the images and videos among the parts of turns, in their order."""
    return [image for turn in turns for image in turn.images]


def tags_of(turns: Sequence[Turn]) -> list[str]:
    """Return the tags of images and videos in a dialogue, in their order."""
    said = (turn.text for turn in turns if turn.role != "system")
    return [match.group().strip() for text in said for match in _MEDIA.finditer(text)]


def _words(turns: Sequence[Turn]) -> list[tuple[Role, list[str]]]:
    """Return what tells turns apart: not system turns, image tags or white space, which one of two copies may lack."""
    return [(turn.role, _MEDIA.sub(" ", turn.text).split()) for turn in turns if turn.role != "system"]


def _shown(turns: Sequence[Turn]) -> tuple[int, int, int]:
    """Return how much turns show, to choose the fuller of two copies."""
    return len(turns), len(references(turns)), sum(len(_MEDIA.findall(turn.text)) for turn in turns)


def place_images(turns: Sequence[Turn], n_images: int, n_videos: int | None = None) -> tuple[AskedTurn, ...]:
    """Return turns of user and assistant that end with the question, and where images and videos stand in them.

    What the system says stands before the first words of the user, behind images that these begin with. Without tags
    all images stand before the first turn. A lone image at the beginning or the end of a lone turn stands before it:
    sources write either for the same.

    Args:
        n_images: how many there are; 0 also where an image is missing.
        n_videos: how many there are; None where nothing of the row is about videos: then their tag is a word.

    Raises:
        RowError: nothing is asked; two turns of one role follow one another; the first or last turn is not the user's;
            or the texts have another number of tags.
    """
    dialogue = [turn for turn in turns if turn.role != "system"]
    if not dialogue:
        raise RowError("question", "the conversation has no question by the user before the response")
    if dialogue[-1].role != "user":
        raise RowError("turns", "the last turn before the responses is the assistant's; it has to be the user's")
    if dialogue[0].role != "user":
        raise RowError("turns", "the first turn is the assistant's; it has to be the user's")
    for n, (before, turn) in enumerate(itertools.pairwise(dialogue), 2):
        if before.role == turn.role:
            raise RowError(
                "turns", f"turns {n - 1} and {n} are both the {turn.role}'s; join them, or leave the row out"
            )
    placed = [take_tags(turn.text, _IMAGES if n_videos is None else _MEDIA) for turn in dialogue]
    n_tags = sum(len(places) for _, places in placed)
    if not n_tags:
        placed[0] = (placed[0][0], (0,) * (n_images + (n_videos or 0)))
        return _say(turns, dialogue, placed)
    _check_tags(tags_of(turns), n_images, n_videos)
    if len(placed) == 1 and n_tags == 1 and placed[0][1] == (len(placed[0][0]),):
        placed[0] = (placed[0][0], (0,))
    return _say(turns, dialogue, placed)


def _check_tags(tags: list[str], n_images: int, n_videos: int | None) -> None:
    for tag, noun, n in ((IMAGE_TAG, "image", n_images), (VIDEO_TAG, "video", n_videos)):
        n_tags = tags.count(tag)
        if n is None or n == n_tags or (tag == IMAGE_TAG and not n_images and not n_videos):
            continue
        raise RowError(
            "image_places", f"the texts have {n_tags} {tag} tags, and the row has {n} {noun}{'s' * (n != 1)}"
        )


def _say(
    turns: Sequence[Turn], dialogue: Sequence[Turn], placed: list[tuple[str, tuple[int, ...]]]
) -> tuple[AskedTurn, ...]:
    """Return a dialogue, whose texts and places are `placed`, with the words of the system before its first one."""
    for said in reversed([turn.text for turn in turns if turn.role == "system" and turn.text.strip()]):
        words, places = placed[0]
        placed[0] = (f"{said}\n\n{words}", shift_places(places, len(said) + 2))
    return tuple(
        AskedTurn("assistant" if turn.role == "assistant" else "user", words, places)
        for turn, (words, places) in zip(dialogue, placed, strict=True)
    )


def take_tags(text: str, tags: re.Pattern[str] = _IMAGES) -> tuple[str, tuple[int, ...]]:
    """Return a text without its image tags, or others, and the characters before which they stood.

    A tag on a line of its own goes with the line. White space at the ends of a text that had tags goes, too.
    """
    pieces: list[str] = []
    places: list[int] = []
    begin = 0
    for match in tags.finditer(text):
        pieces.append(text[begin : match.start()])
        places.append(sum(map(len, pieces)))
        begin = match.end()
    if not places:
        return text, ()
    whole = "".join([*pieces, text[begin:]])
    words = whole.strip()
    before = len(whole) - len(whole.lstrip())
    return words, tuple(min(max(place - before, 0), len(words)) for place in places)
