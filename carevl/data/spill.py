"""Rows on their way to their part, on disk: a part's rows have to be together before they can be merged."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from carevl.data.intake import item_id
from carevl.store.schemas import IMAGES, ITEMS

MOST_BYTES = 128 * 2**20
"""Merging needs the memory of a part some five times over."""
_WAITING_ROWS = 32
_DIGITS = 8
Rows = list[dict[str, Any]]


class Spill:
    """Takes rows of `images` and `items` in any order and gives them back part by part; memory holds one part.

    Args:
        n_parts: parts that rows are divided into, by the hash of their image.
        most_bytes: a part that has become larger than this is divided again.
        digit: where in the hash the digits begin by which rows are divided.
    """

    def __init__(self, directory: Path, n_parts: int, *, most_bytes: int = MOST_BYTES, digit: int = 0) -> None:
        directory.mkdir(parents=True)
        self._directory, self._n_parts, self._most_bytes, self._digit = directory, n_parts, most_bytes, digit
        self._images = _Shelf(directory, "images", IMAGES)
        self._items = _Shelf(directory, "items", ITEMS)
        self._moved = _Shelf(directory, "moved", ITEMS)

    def add(self, image: dict[str, Any] | None, item: dict[str, Any]) -> None:
        """Add a row to the part that its image belongs to."""
        self._items.add(self._part(item["image_id"] or item["item_id"]), item)
        if image is not None:
            self._images.add(self._part(image["image_id"]), image)

    def images(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """Yield the bytes of images by their image_id, once for every row."""
        for number in sorted({self._part(image) for image in wanted}):
            for row in self._images.read(number):
                if row["image_id"] in wanted and row["bytes"] is not None:
                    yield row["image_id"], row["bytes"]

    def parts(self, same: Mapping[str, str]) -> Iterator[tuple[Rows, Rows]]:
        """Yield (image rows, item rows) of every part; as many parts as were asked for, or more.

        Args:
            same: image_id to the image_id that takes its place; its items move to that image and its row is dropped.
        """
        for number in range(self._n_parts if same else 0):
            for item in self._items.read(number):
                if item["image_id"] in same and item["question"] is not None:
                    moved = _moved(item, same[item["image_id"]])
                    self._moved.add(self._part(moved["image_id"]), moved)
        for number in range(self._n_parts):
            images = (row for row in self._images.read(number) if row["image_id"] not in same)
            kept = (row for row in self._items.read(number) if row["image_id"] not in same or row["question"] is None)
            items = itertools.chain(kept, self._moved.read(number))
            size = sum(shelf.size(number) for shelf in (self._images, self._items, self._moved))
            if size > self._most_bytes and self._digit == 0:
                yield from self._divided(number, -(-size // self._most_bytes), images, items)
            else:
                yield list(images), list(items)

    def _divided(
        self, number: int, n_parts: int, images: Iterable[dict[str, Any]], items: Iterable[dict[str, Any]]
    ) -> Iterator[tuple[Rows, Rows]]:
        """Yield the rows of a part, in smaller parts."""
        smaller = Spill(self._directory / f"{number:05d}", n_parts, digit=_DIGITS)
        for image in images:
            smaller._images.add(smaller._part(image["image_id"]), image)
        for item in items:
            smaller.add(None, item)
        yield from smaller.parts({})
        shutil.rmtree(smaller._directory)

    def _part(self, key: str) -> int:
        return int(key[self._digit : self._digit + _DIGITS], 16) % self._n_parts


def _moved(item: dict[str, Any], image: str) -> dict[str, Any]:
    """Return the item with another image; what it was goes into its source's `extra`."""
    [source] = item["sources"]
    extra = {**json.loads(source["extra"]), "image_id": item["image_id"]}
    return item | {
        "item_id": item_id(image, item["question"], item["responses"]),
        "image_id": image,
        "sources": [source | {"extra": json.dumps(extra)}],
    }


class _Shelf:
    """One file of rows per part, written and read a few rows at a time; read once everything has been added."""

    def __init__(self, directory: Path, name: str, schema: pa.Schema) -> None:
        self._directory, self._name, self._schema = directory, name, schema
        self._waiting: dict[int, Rows] = {}
        self._sinks: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, number: int, row: dict[str, Any]) -> None:
        rows = self._waiting.setdefault(number, [])
        rows.append(row)
        if len(rows) == _WAITING_ROWS:
            self._flush(number)

    def read(self, number: int) -> Iterator[dict[str, Any]]:
        self._close(number)
        if number in self._sinks:
            with pa.OSFile(str(self._file(number))) as file, pa.ipc.open_stream(file) as stream:
                for batch in stream:
                    yield from batch.to_pylist()

    def size(self, number: int) -> int:
        """Return the bytes of the rows of a part."""
        self._close(number)
        return self._file(number).stat().st_size if number in self._sinks else 0

    def _close(self, number: int) -> None:
        self._flush(number)
        if number in self._sinks:
            self._sinks[number].close()

    def _flush(self, number: int) -> None:
        rows = self._waiting.pop(number, [])
        if rows:
            if number not in self._sinks:
                self._sinks[number] = pa.ipc.new_stream(str(self._file(number)), self._schema)
            self._sinks[number].write_batch(pa.RecordBatch.from_pylist(rows, self._schema))

    def _file(self, number: int) -> Path:
        return self._directory / f"{self._name}-{number:05d}.arrows"
