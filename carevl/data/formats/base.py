"""The type of a preference format, and the fields that several formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carevl.data.rows import Preference, Row, RowError, facts, items_of, text
from carevl.data.turns import Turn, follow, join_dialogues, question_of, read_response

ANY = "any"
IMAGES = {"images|image": ANY}
PAIR = {"chosen": "text", "rejected": "text"}
ORIGIN = {"ds_name|origin_dataset": "text"}
_REJECTED_IMAGES = ("rejected_images", "rejected_image", "image_rejected")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)
"""The preference of a pair of responses."""


@dataclass(frozen=True)
class Format:
    """A preference format: the columns it is recognised by, its reader, and its smallest row."""

    name: str
    columns: Mapping[str, str]
    """Column to the types it may have. `image|img_path` stands for either column, `list|struct` for either type."""
    read: Callable[[Row], Preference]
    """Turns a row into its preference; raises RowError where the row does not fit."""
    example: dict[str, Any]
    """The smallest row: a question about `a.png`, of which the answer `A cat.` is the better one."""

    def lacking(self, columns: Mapping[str, str]) -> list[str]:
        """Return the expected columns that are absent or of another type, in words.

        Args:
            columns: column to type, as from `columns_of`.
        """
        return [
            f"`{names}`" if kinds == ANY else f"`{names}` ({kinds})"
            for names, kinds in self.columns.items()
            if not any(_fits(columns[name], kinds) for name in names.split("|") if name in columns)
        ]


def _fits(kind: str, kinds: str) -> bool:
    return kind == "null" or kinds == ANY or kind in kinds.split("|")


def image_of(row: Row, *names: str, turns: Sequence[Turn] = ()) -> object:
    """Return the row's one image reference: from the first of these columns that is filled, or else from the turns.

    Raises:
        RowError: there are several images, a video or a sound beside the image, or images of the rejected response.
    """
    image = next((row[name] for name in names if row.get(name) is not None), None)
    if image is None or image == []:
        image = [found for turn in turns for found in turn.images]
    rejected = next((row[name] for name in _REJECTED_IMAGES if row.get(name)), None)
    if rejected is not None and rejected not in (image, [image]):
        raise RowError("image_differs", "chosen and rejected response are about different images; an item has one")
    for name in _OTHER_MEDIA if image is not None and image != [] else ():
        if row.get(name):
            raise RowError("image_several", f"the row has `{name}` beside its image; an item has one image and no more")
    if not isinstance(image, list | tuple) or (len(image) > 8 and all(isinstance(value, int) for value in image)):
        return image
    if len(image) > 1:
        raise RowError("image_several", f"the row has {len(image)} images; an item has one")
    return image[0] if image else None


def user_turn(row: Row, name: str) -> list[Turn]:
    """Return the question in a text column as a dialogue. Raises RowError when it is null or of another type."""
    return [Turn("user", text(row.get(name), name, "question"))]


def earlier_turns(row: Row) -> list[Turn]:
    """Return the turns in the columns `system` and `history` (pairs of a user's text and its answer).

    Raises:
        RowError: they are of another type, or there are `tools`, which an item does not hold.
    """
    if row.get("tools"):
        raise RowError("format", "the row has `tools`, which an item does not hold; leave it out")
    turns = [Turn("system", text(row["system"], "system"))] if row.get("system") else []
    for n, pair in enumerate(items_of(row["history"], "history") if row.get("history") else ()):
        field = f"history[{n}]"
        texts = items_of(pair, field)
        if len(texts) != 2:
            raise RowError("format", f"`{field}` should be a question and its answer, found {len(texts)} texts")
        turns += [Turn("user", text(texts[0], field)), Turn("assistant", text(texts[1], field))]
    return turns


def preferred(
    row: Row, turns: list[Turn], *extra: str, images: Sequence[str], pair: tuple[str, str] = ("chosen", "rejected")
) -> Preference:
    """Return the preference of a row with a chosen and a rejected response, in text, a turn or a conversation each.

    Args:
        turns: the dialogue before the responses; a response that is a conversation may have more of it.
        extra: columns to keep beside it.
        images: columns that may have the image, the first that is filled; else it is in the turns.
        pair: the columns of the chosen and of the rejected response.

    Raises:
        RowError: a response is absent or of another type, or they end different conversations.
    """
    better, worse = pair
    before, chosen = read_response(row.get(better), better)
    others, rejected = read_response(row.get(worse), worse)
    dialogues = [follow(turns, said) for said in (before, others) if said is not None] or [turns]
    turns = join_dialogues(dialogues[0], dialogues[-1])
    image = image_of(row, *images, turns=turns)
    return Preference(question_of(turns), (chosen, rejected), FIRST, image, facts(row, *extra))
