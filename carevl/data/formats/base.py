"""The type of a preference format, and the fields that several formats share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carevl.data.media import looks_like_images, read_media
from carevl.data.rows import Preference, Row, RowError, facts, items_of, kind_of, readable, text
from carevl.data.turns import Turn, follow, join_dialogues, read_response

ANY = "any"
IMAGES = {"images|image|videos|video": ANY}
PAIR = {"chosen": "text", "rejected": "text"}
ORIGIN = {"ds_name|origin_dataset": "text"}
_RESPONSES = (
    *PAIR,
    *("responses", "completions", "conversation_a", "conversation_b", "response1", "response2", "output_1", "output_2"),
    *("preferred_output", "non_preferred_output", "rejected_response", "rejected_messages", "rejected_conversations"),
)
"""Columns of responses: rows that have one are no questions alone, even where it has another type than it should."""
FIRST, SECOND = (1.0, 0.0), (0.0, 1.0)
"""The preference of a pair of responses."""


@dataclass(frozen=True)
class Annotations:
    """Right answers that lie apart from the rows: in the list `annotations` of their JSON file, or of a side file."""

    column: str
    """Column of a row by which it is annotated: a whole number or text."""
    key: str
    """The member of an annotation that has the same value."""
    read: Callable[[Row], Sequence[str]]
    """Returns the right answers of an annotation; raises RowError where it does not fit."""


@dataclass(frozen=True)
class Format:
    """A preference format: the columns it is recognised by, its reader, and its smallest row."""

    name: str
    columns: Mapping[str, str]
    """Column to the types it may have. `image|img_path` stands for either column, `list|struct` for either type."""
    read: Callable[[Row], Preference]
    """Turns a row into its preference; raises RowError where the row does not fit."""
    example: dict[str, Any]
    """The smallest row: a question about `a.png`, of which the answer `A cat.` is the better one, or the right one."""
    of_text: bool = False
    """Whether it is recognised by texts alone: then no other column may look like one of images."""
    of_questions: bool = False
    """Whether its rows have no responses: it is detected only where models write them."""
    divide: Callable[[Row], Iterable[Row]] | None = None
    """Divides a row that stands for several items into rows for `read`, one at least; None: each stands for one."""

    annotations: Annotations | None = None
    """Where right answers may lie apart from the rows: they become the column `answers`."""

    def lacking(self, columns: Mapping[str, str]) -> list[str]:
        """Return the expected columns that are absent or of another type, in words.

        Args:
            columns: column to type, as from `columns_of`.
        """
        lacking = [
            f"`{names}`" if kinds == ANY else f"`{names}` ({kinds})"
            for names, kinds in self.columns.items()
            if not any(_fits(columns[name], kinds) for name in names.split("|") if name in columns)
        ]
        unread = [name for name, kind in columns.items() if kind != "null" and self._forbids(name)]
        return [*lacking, *(f"no column `{name}`" for name in unread)]

    def _forbids(self, column: str) -> bool:
        """Tell whether a column shows that the rows are of another format."""
        if self.of_text:
            return looks_like_images(column) is not None
        return self.of_questions and column in _RESPONSES


def _fits(kind: str, kinds: str) -> bool:
    return kind == "null" or kinds == ANY or kind in kinds.split("|")


def read_preference(
    row: Row,
    turns: Sequence[Turn],
    responses: tuple[str, ...],
    preference: tuple[float, ...] | None,
    *extra: str,
    images: Sequence[str],
    required: bool = True,
) -> Preference:
    """Return the preference of a row: its turns, responses and images.

    Args:
        turns: of the dialogue before the responses.
        extra: columns to keep beside it.
        images: columns that may have the images, the first that is filled; else they are in the turns. Videos are in
            `videos` or `video`, or in the turns.
        required: whether an image is missing where all these columns are absent; it is where one of them is null.

    Raises:
        RowError: there is a sound, or images of the rejected response; or as `place_images`.
    """
    found, dialogue = read_media(row, images, turns, required)
    question = dialogue[-1]
    shown = sum(len(turn.places) for turn in dialogue)
    places = None if not shown and found is None else question.places
    found = None if shown and found == [] else found
    return Preference(question.text, responses, preference, found, facts(row, *extra), places, dialogue[:-1])


def read_question(row: Row, turns: Sequence[Turn], *extra: str, images: Sequence[str]) -> Preference:
    """Return the question of a row without responses, with the right answers in its `answer` and `answers`.

    Arguments and errors are those of `read_preference`.
    """
    question = read_preference(row, turns, (), None, *extra, images=images)
    for field in ("answer", "answers"):
        if texts := right_answers(row, field):
            is_list = isinstance(row[field], list | tuple)
            question.extra.update({"answers": texts} if is_list else {"answer": texts[0]})
    return question


def right_answers(row: Row, field: str) -> list[str]:
    """Return the right answers in a column, which has one or a list; a struct in it stands for its `answer`, as in VQA.

    Numbers are answers, too; null, NaN (an empty cell of pandas) and blank text are none.

    Raises:
        RowError: one is of another type.
    """
    value = readable(row.get(field))
    entries = value if isinstance(value, list | tuple) else [value]
    answers = [entry.get("answer", entry) if isinstance(entry, Mapping) else entry for entry in entries]
    return [answer for entry in answers if (answer := _answer(entry, field))]


def _answer(value: object, field: str) -> str | None:
    if value is None or value != value:  # noqa: PLR0124
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError("format", f"`{field}` should be text or a number, found {kind_of(value)}")
    return text(value, field).strip() or None


def identify(row: Row, column: str) -> str:
    """Return what a row is called in a column, as text. Raises RowError where that is no whole number and no text."""
    value = readable(row.get(column))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        shown = value if isinstance(value, float) else kind_of(value)
        raise RowError("format", f"`{column}` should be a whole number or text, found {shown}")
    return str(value)


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
    row: Row,
    turns: list[Turn],
    *extra: str,
    images: Sequence[str],
    required: bool = True,
    pair: tuple[str, str] = ("chosen", "rejected"),
) -> Preference:
    """Return the preference of a row with a chosen and a rejected response, in text, a turn or a conversation each.

    Args:
        turns: the dialogue before the responses; a response that is a conversation may have more of it.
        extra, images, required: as `read_preference` takes them.
        pair: the columns of the chosen and of the rejected response.

    Raises:
        RowError: a response is absent or of another type, or they end different conversations; or as `read_preference`.
    """
    better, worse = pair
    before, chosen = read_response(row.get(better), better)
    others, rejected = read_response(row.get(worse), worse)
    dialogues = [follow(turns, said) for said in (before, others) if said is not None] or [turns]
    turns = join_dialogues(dialogues[0], dialogues[-1])
    return read_preference(row, turns, (chosen, rejected), FIRST, *extra, images=images, required=required)
