"""Source rows into rows of the `images` and `items` tables, and the merging of rows that are the same item.

`Intake` works row by row and keeps nothing, so it runs anywhere in parallel; `merge_items` and `merge_images` then need
all rows of an item (of an image) together: in one process, or bucket by bucket of `image_id`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import posixpath
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow.fs as pafs

from carevl.sources.containers import locate
from carevl.sources.images import ImageFacts, ImageLimits, examine, identify, image_id
from carevl.sources.looks import Look, look_at
from carevl.sources.reading import Source, SourceRow
from carevl.sources.references import ImageReader
from carevl.sources.rows import Preference, RowError
from carevl.sources.urls import UrlFetcher

_REMEMBERED = 1024


class Intake:
    """Turns the rows of one source into table rows.

    Args:
        filesystem: where the source is; found from its path when None.
        limits: caps on images.
        fetcher: for http(s) image references; None refuses them.
        looks: whether `look` is wanted.
    """

    def __init__(
        self,
        source: Source,
        filesystem: pafs.FileSystem | None = None,
        limits: ImageLimits | None = None,
        fetcher: UrlFetcher | None = None,
        looks: bool = False,
    ) -> None:
        self._limits = limits or ImageLimits()
        self._looks: dict[str, Look] | None = {} if looks else None
        where, base = locate(source.path, filesystem)
        if source.image_root is not None:
            _, base = locate(source.image_root, filesystem)
        elif where.get_file_info(base).type != pafs.FileType.Directory:
            base = posixpath.dirname(base) or "."
        self._images = ImageReader(where, base, self._limits, fetcher)
        self._known: dict[str, ImageFacts | RowError] = {}

    def __call__(self, row: SourceRow) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """The row of `images` (None where there are no bytes) and the row of `items`; each may be an error row."""
        if row.preference is None:
            return None, _error_item(row, row.error or RowError("row", "the row is empty"))
        try:
            data = self._images.read(row.preference.image, row.directory)
        except RowError as failure:
            return None, _error_item(row, failure)
        key = image_id(data)
        facts = self._facts(key, data)
        if isinstance(facts, RowError):
            return _image(key, None, None, facts), _error_item(row, facts, key)
        return _image(key, data, facts, None), _item(row, row.preference, key)

    def look(self, image: str | None) -> Look | None:
        """What the image with this `image_id` looks like, if a row lately read has it and it is whole."""
        return (self._looks or {}).get(image or "")

    def _facts(self, key: str, data: bytes) -> ImageFacts | RowError:
        """Rows about one image tend to follow each other; it is decoded once."""
        if key not in self._known:
            if len(self._known) == _REMEMBERED:
                self._forget(next(iter(self._known)))
            try:
                self._known[key] = self._examine(key, data)
            except RowError as failure:
                self._known[key] = failure
        return self._known[key]

    def _examine(self, key: str, data: bytes) -> ImageFacts:
        if self._looks is None:
            return identify(data, self._limits)
        facts, pixels = examine(data, self._limits)
        self._looks[key] = look_at(pixels)
        return facts

    def _forget(self, key: str) -> None:
        del self._known[key]
        if self._looks is not None:
            self._looks.pop(key, None)


def item_id(image: str, question: str, responses: Sequence[str]) -> str:
    """SHA-256 of an item's image_id, question and responses in their stored order, in hexadecimal."""
    return _sha256(json.dumps([image, question, list(responses)]))


def error_id(locator: str) -> str:
    """The item_id of a row that could not be read: SHA-256 of its locator, in hexadecimal."""
    return _sha256(locator)


def merge_items(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per item_id, in order of item_id, each with the sources of all its rows (as `Intake` made them).

    The result does not depend on the order of the rows. Where two sources prefer opposite responses of some pair,
    `conflict` is true and the disputed column (`source_preference`, `gold`) is null: neither is believed, both are kept
    in `sources`. Otherwise the column holds the first known preference.
    """
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(row["item_id"], []).append(row)
    return [_merged(by_id[key]) for key in sorted(by_id)]


def merge_images(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per image_id, in order of image_id."""
    by_id = {row["image_id"]: row for row in rows}
    return [by_id[key] for key in sorted(by_id)]


def _merged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=_rank)
    sources = [row["sources"][0] for row in rows]
    preference, disputed = _agreed([source["preference"] for source in sources])
    gold, _ = _agreed([row["gold"] for row in rows])
    first = next((row for row in rows if row["gold"] is not None), rows[0])
    return first | {"source_preference": preference, "gold": gold, "conflict": disputed, "sources": sources}


def _rank(row: dict[str, Any]) -> tuple[str, ...]:
    source = row["sources"][0]
    return source["source"], source["locator"], json.dumps(source["preference"])


def _agreed(preferences: Sequence[Sequence[float] | None]) -> tuple[Sequence[float] | None, bool]:
    """The first known preference, or None and True when two of them order some pair of responses oppositely."""
    known = [preference for preference in preferences if preference is not None]
    if any(_opposed(one, two) for one, two in itertools.combinations(known, 2)):
        return None, True
    return (known[0] if known else None), False


def _opposed(one: Sequence[float], two: Sequence[float]) -> bool:
    pairs = itertools.combinations(range(len(one)), 2)
    return any((one[i] - one[j]) * (two[i] - two[j]) < 0 for i, j in pairs)


def _item(row: SourceRow, found: Preference, image: str) -> dict[str, Any]:
    """Responses are ordered by the hash of their text: their place says nothing about the preference, and a pair that
    two sources hold in opposite orders is one item."""
    order = sorted(range(len(found.responses)), key=lambda n: (_sha256(found.responses[n]), n))
    responses = [found.responses[n] for n in order]
    preference = None if found.preference is None else [found.preference[n] for n in order]
    return {
        "item_id": item_id(image, found.question, responses),
        "image_id": image,
        "question": found.question,
        "responses": responses,
        "source_preference": preference,
        "gold": preference if row.source.labels else None,
        "conflict": False,
        "sources": [_source(row, preference, json.dumps(found.extra))],
        "split": row.source.split,
        "group": None,
        "error": None,
    }


def _image(key: str, data: bytes | None, facts: ImageFacts | None, failure: RowError | None) -> dict[str, Any]:
    return {
        "image_id": key,
        "bytes": data,
        "format": facts.format if facts else None,
        "width": facts.width if facts else None,
        "height": facts.height if facts else None,
        "error": failure.as_struct() if failure else None,
    }


def _error_item(row: SourceRow, failure: RowError, image: str | None = None) -> dict[str, Any]:
    return {
        "item_id": error_id(row.locator),
        "image_id": image,
        "question": None,
        "responses": None,
        "source_preference": None,
        "gold": None,
        "conflict": False,
        "sources": [_source(row, None, None)],
        "split": row.source.split,
        "group": None,
        "error": failure.as_struct(),
    }


def _source(row: SourceRow, preference: list[float] | None, extra: str | None) -> dict[str, Any]:
    return {
        "source": row.source.name,
        "format": row.format,
        "locator": row.locator,
        "preference": preference,
        "extra": extra,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
