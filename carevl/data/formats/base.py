"""The type of a preference format, and the fields that several formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from carevl.data.rows import Preference, Row, RowError, facts
from carevl.data.turns import last_answer

ANY = "any"
IMAGES = {"images|image": ANY}
PAIR = {"chosen": "text", "rejected": "text"}
ORIGIN = {"ds_name|origin_dataset": "text"}
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


def image_of(row: Row, *names: str) -> object:
    """Return the row's one image reference, from the first of these columns that is filled.

    Raises:
        RowError: the column holds several images.
    """
    image = next((row[name] for name in names if row.get(name) is not None), None)
    if not isinstance(image, list | tuple):
        return image
    if len(image) > 1:
        raise RowError("image_several", f"the row has {len(image)} images; an item has one")
    return image[0] if image else None


def chosen_over_rejected(row: Row, question: str, image: object, *extra: str) -> Preference:
    """Return the preference of a row whose columns `chosen` and `rejected` hold text, a turn or a conversation.

    Args:
        extra: columns to keep beside it.

    Raises:
        RowError: a response is absent or of another type.
    """
    responses = (last_answer(row.get("chosen"), "chosen"), last_answer(row.get("rejected"), "rejected"))
    return Preference(question, responses, FIRST, image, facts(row, *extra))
