"""Rows and preferences: typed access to a row's fields, and the preference that a reader makes of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from typing import Any, Literal

from carevl.judging.turns import Turn
from carevl.store.schemas import row_error

Row = Mapping[str, Any]
"""A row as its container gives it: column name to plain Python value, or to the RowError of one that cannot be read."""

ErrorKind = Literal[
    "file",  # a file cannot be opened, or breaks off: how many rows are lost is not known
    "row",  # bytes that are not a row, or not UTF-8
    "format",  # a column is missing or has another type
    "image_pair",  # the row prefers one of two images, not of two responses
    "question",  # null or empty
    "responses",  # none, one, a blank one, or all equal; or they answer different dialogues
    "preference",  # a rating or label that cannot be read
    "image_missing",  # no reference, or nothing there
    "image_places",  # the texts have another number of places for images than there are images
    "images_many",  # more images than an item may have
    "image_differs",  # the responses are about different images
    "media",  # a sound; or a video that is none, is cut, over a bound, or does not decode
    "turns",  # of one role in a row, of a tool, or the last one is not the user's
    "image_refused",  # a path or address that must not be read
    "image_fetch",  # a URL that did not answer with an image in time
    "image_too_large",  # over the cap on bytes or pixels
    "image_broken",  # not an image of a known format, or truncated
]

WITHOUT_RESPONSES = "a preference needs two or more: name models that write them in respond.models"
"""What to do about questions alone."""
_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
_NUMBER = re.compile(r"\s*[+-]?\d{1,30}(\.\d{1,30})?\s*", re.ASCII)


class RowError(Exception):
    """A row that cannot become an item. `kind` is for counting, the message for people."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.message = clean(message)

    def __reduce__(self) -> tuple[type[RowError], tuple[ErrorKind, str]]:
        return RowError, (self.kind, self.message)

    def as_struct(self) -> dict[str, str]:
        """Return the error as `schemas.ERROR` stores it."""
        return row_error("ingest", self.kind, self.message)


@dataclass(frozen=True)
class ImageNames:
    """An image whose file may have several names, of which the first that is there is taken."""

    names: tuple[str, ...]


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((type(None), RowError), "null"),
    (str, "text"),
    (Mapping, "struct"),
    ((list, tuple), "list"),
    (bytes, "bytes"),
    ((bool, int, float), "number"),
)


@dataclass(frozen=True)
class Preference:
    """A question about an image, several or none, with the responses to choose from; none where models write them.

    Raises:
        RowError: the question is empty; there is one response, a blank one, or only equal ones; the preference has
            another length than the responses or is not finite.
    """

    question: str
    responses: tuple[str, ...]
    """Two or more, or none: one alone, such as the answer of a data set, is `answer` in `extra`."""
    preference: tuple[float, ...] | None
    """One per response, higher is better; None where the source does not say."""
    images: object
    """The reference as found (bytes, struct, path, URI), or a list of them, in the order of their places; one to a
    video is a `VideoReference`. An empty list where nothing is shown, None where the image is missing."""
    extra: dict[str, object] = dataclass_field(default_factory=dict)
    """Other facts of the row, plain JSON values; `answer` (a text) or `answers` (texts) are right by its source."""
    places: tuple[int, ...] | None = None
    """Characters of the question before which an image stands; None: all images stand before it."""
    turns: tuple[Turn, ...] = ()
    """The turns before the question, each with the places of its images."""

    @property
    def references(self) -> tuple[object, ...]:
        """The images one by one; one that is missing is None."""
        return references_of(self.images)

    def without_missing_image(self) -> Preference:
        """Return it as a question about text alone, where its only image is missing and has no place in the texts."""
        placed = bool(self.places) or any(turn.places for turn in self.turns)
        return replace(self, images=[]) if self.references == (None,) and not placed else self

    def __post_init__(self) -> None:
        if not self.question.strip():
            raise RowError("question", "the question is empty")
        if len(self.responses) == 1:
            raise RowError("responses", "only one response; a preference needs two or more")
        blank = [n for n, response in enumerate(self.responses, 1) if not response.strip()]
        if blank:
            raise RowError("responses", f"response {blank[0]} of {len(self.responses)} is blank; leave the row out")
        if len(set(self.responses)) == 1:
            raise RowError("responses", f"all {len(self.responses)} responses are equal")
        if self.preference is None:
            return
        if len(self.preference) != len(self.responses):
            raise RowError("preference", f"{len(self.preference)} ratings of {len(self.responses)} responses")
        if not all(math.isfinite(value) for value in self.preference):
            raise RowError("preference", f"the ratings {self.preference} are not all finite")


@dataclass(frozen=True)
class VideoReference:
    """A reference to a video, among those to images."""

    reference: object
    """As the row has it: bytes, struct, path, URI."""


def references_of(images: object) -> tuple[object, ...]:
    """Return one reference, or a list of them, as a tuple; a list of numbers is one, the bytes of a file."""
    if isinstance(images, list | tuple) and not (len(images) > 8 and all(isinstance(value, int) for value in images)):
        return tuple(images)
    return (images,)


def clean(text: str) -> str:
    """Return the text with NUL and lone surrogates, which no UTF-8 table or tokenizer takes, replaced by U+FFFD."""
    return _UNENCODABLE.sub("\ufffd", text)


def kind_of(value: object) -> str:
    """Return the type of a value in a user's words: text, number, list, struct, bytes, or null."""
    return next((name for types, name in _KINDS if isinstance(value, types)), type(value).__name__)


def readable(value: object) -> object:
    """Return a value of a row. Raises RowError where its container could not read it."""
    if isinstance(value, RowError):
        raise value
    return value


def text(value: object, field: str, kind: ErrorKind = "format") -> str:
    """Read a text field, cleaned. Raises RowError of `kind` when it is null or of another type."""
    value = readable(value)
    if not isinstance(value, str):
        raise RowError(kind, f"`{field}` should be text, found {kind_of(value)}")
    return clean(value)


def items_of(value: object, field: str) -> Sequence[Any]:
    """Read a list field. Raises RowError when it is null or of another type."""
    value = readable(value)
    if not isinstance(value, list | tuple):
        raise RowError("format", f"`{field}` should be a list, found {kind_of(value)}")
    return value


def struct(value: object, field: str) -> Mapping[str, Any]:
    """Read a struct field. Raises RowError when it is null or of another type."""
    value = readable(value)
    if not isinstance(value, Mapping):
        raise RowError("format", f"`{field}` should be a struct, found {kind_of(value)}")
    return value


def number(value: object, field: str) -> float:
    """Read a rating: a number, or the decimal text of one. Raises RowError for anything else, also `N/A` and NaN."""
    value = readable(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise RowError("preference", f"`{field}` should be a number, found {str(value)[:60]!r}")
    return float(value)


def facts(row: Row, *names: str) -> dict[str, object]:
    """Return the named fields of a row that hold plain values (text, finite numbers, lists of text), for `extra`."""
    return {name: row[name] for name in names if _is_plain(row.get(name))}


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(element, str) for element in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | bool | int)
