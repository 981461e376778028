"""Source rows into rows of the `images` and `items` tables, and the merging of rows that are the same item.

`Intake` works row by row, in any number of threads; `merge_items` and `merge_images` then need all rows of an item (of
an image) together: in one process, or bucket by bucket of `image_id`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import posixpath
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow.fs as pafs

from carevl.data.files import locate
from carevl.data.images import ImageFacts, ImageLimits, examine, identify, image_id
from carevl.data.perceptual_hash import ImageSignature, signature_of
from carevl.data.reading import Source, SourceRow
from carevl.data.references import ImageReader
from carevl.data.rows import Preference, RowError
from carevl.data.urls import UrlFetcher

_REMEMBERED = 1024


class Intake:
    """Turns the rows of one source into table rows.

    Args:
        filesystem: where the source is; found from its path when None.
        limits: caps on images.
        fetcher: for http(s) image references; None refuses them.
        signatures: whether signatures of the images are needed.
    """

    def __init__(
        self,
        source: Source,
        filesystem: pafs.FileSystem | None = None,
        limits: ImageLimits | None = None,
        fetcher: UrlFetcher | None = None,
        signatures: bool = False,
    ) -> None:
        self._limits = limits or ImageLimits()
        self._signatures = signatures
        source_filesystem, base = locate(source.path, filesystem)
        if source.image_root is not None:
            _, base = locate(source.image_root, filesystem)
        elif source_filesystem.get_file_info(base).type != pafs.FileType.Directory:
            base = posixpath.dirname(base) or "."
        self._images = ImageReader(source_filesystem, base, self._limits, fetcher)
        self._examined: OrderedDict[str, tuple[ImageFacts, ImageSignature | None] | RowError] = OrderedDict()

    def __call__(self, row: SourceRow) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return the rows of `images` (None where there are no bytes) and of `items`; each may be an error row."""
        return self.with_signature(row)[:2]

    def with_signature(self, row: SourceRow) -> tuple[dict[str, Any] | None, dict[str, Any], ImageSignature | None]:
        """Do as a call, and return the image's signature too, where it is needed and the image is whole."""
        if row.preference is None:
            return None, _error_item(row, row.error or RowError("row", "the row is empty")), None
        try:
            data = self._images.read(row.preference.image, row.directory)
        except RowError as failure:
            return None, _error_item(row, failure), None
        key = image_id(data)
        examined = self._examine_once(key, data)
        if isinstance(examined, RowError):
            return _image(key, None, None, examined), _error_item(row, examined, key), None
        facts, signature = examined
        return _image(key, data, facts, None), _item(row, row.preference, key), signature

    def _examine_once(self, key: str, data: bytes) -> tuple[ImageFacts, ImageSignature | None] | RowError:
        """Decode an image once: rows about it tend to follow each other."""
        examined = self._examined.get(key)
        if examined is None:
            if len(self._examined) >= _REMEMBERED:
                self._examined.popitem(last=False)
            try:
                examined = self._examine(data)
            except RowError as failure:
                examined = failure
            self._examined[key] = examined
        return examined

    def _examine(self, data: bytes) -> tuple[ImageFacts, ImageSignature | None]:
        if not self._signatures:
            return identify(data, self._limits), None
        facts, pixels = examine(data, self._limits)
        return facts, signature_of(pixels)


def item_id(image: str, question: str, responses: Sequence[str]) -> str:
    """Return the SHA-256 of an item's image_id, question and responses in their stored order, in hexadecimal."""
    return _sha256(json.dumps([image, question, list(responses)]))


def error_id(source: str, locator: str) -> str:
    """Return the item_id of a row that could not be read: SHA-256 of its source and locator, in hexadecimal."""
    return _sha256(json.dumps([source, locator]))


def merge_items(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per item_id, in order of item_id, each with the sources of all its rows (as `Intake` made them).

    The result does not depend on the order of the rows. Where two sources prefer opposite responses of some pair,
    `conflict` is true and the disputed column (`source_preference`, `gold`) is null: neither is believed, both are kept
    in `sources`. Otherwise the column holds the first known preference.
    """
    by_id: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_id.setdefault(row["item_id"], []).append(row)
    return [_merged(by_id[key]) for key in sorted(by_id)]


def merge_images(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per image_id, in order of image_id."""
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
    """Return the first known preference, or None and True when two of them order some pair of responses oppositely."""
    stated = [preference for preference in preferences if preference is not None]
    if any(_opposed(first, second) for first, second in itertools.combinations(stated, 2)):
        return None, True
    return (stated[0] if stated else None), False


def _opposed(first: Sequence[float], second: Sequence[float]) -> bool:
    pairs = itertools.combinations(range(len(first)), 2)
    return any((first[i] - first[j]) * (second[i] - second[j]) < 0 for i, j in pairs)


def _item(row: SourceRow, preference: Preference, image: str) -> dict[str, Any]:
    """Return the row of `items`.

    Responses are ordered by the hash of their text: their place says nothing about the preference, and a pair that two
    sources hold in opposite orders is one item.
    """
    order = sorted(range(len(preference.responses)), key=lambda n: (_sha256(preference.responses[n]), n))
    responses = [preference.responses[n] for n in order]
    ratings = None if preference.preference is None else [preference.preference[n] for n in order]
    return {
        "item_id": item_id(image, preference.question, responses),
        "image_id": image,
        "question": preference.question,
        "responses": responses,
        "source_preference": ratings,
        "gold": ratings if row.source.labels else None,
        "conflict": False,
        "sources": [_source(row, ratings, json.dumps(preference.extra))],
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
        "item_id": error_id(row.source.name, row.locator),
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
