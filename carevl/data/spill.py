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
from carevl.judging.turns import turns_before
from carevl.store.schemas import IMAGES, ITEMS

MOST_BYTES = 128 * 2**20
"""Merging needs the memory of a part some five times over."""
_WAITING_ROWS = 32
_DIGITS = 8
_LENT = pa.schema([("image_id", pa.string()), ("part", pa.int32())])
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
        self._images = Shelf(directory, "images", IMAGES)
        self._items = Shelf(directory, "items", ITEMS)
        self._moved = Shelf(directory, "moved", ITEMS)
        self._lent = Shelf(directory, "lent", _LENT)
        self._copies = Shelf(directory, "copies", IMAGES)

    def add(self, images: Iterable[dict[str, Any]], item: dict[str, Any]) -> None:
        """Add an item to the part that its first image belongs to, and its images each to its own."""
        self._items.add(self._part(home_of(item)), item)
        for image in images:
            self._images.add(self._part(image["image_id"]), image)

    def lend(self, image_ids: Iterable[str], number: int) -> None:
        """Note that items of part `number`, as `parts` numbers them, show images that lie in other parts."""
        for name in image_ids:
            self._lent.add(self._part(name), {"image_id": name, "part": number})

    def borrowed(self, n_parts: int) -> Iterator[Rows]:
        """Yield the rows of images that are lent to each of `n_parts` parts."""
        for number in range(self._n_parts):
            borrowers: dict[str, list[int]] = {}
            for row in self._lent.read(number):
                borrowers.setdefault(row["image_id"], []).append(row["part"])
            for image in self._images.read(number) if borrowers else ():
                for part in borrowers.pop(image["image_id"], ()):
                    self._copies.add(part, image)
        for part in range(n_parts):
            yield list(self._copies.read(part))

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

        def moves(item: dict[str, Any]) -> bool:
            return item["question"] is not None and not same.keys().isdisjoint(item["images"])

        for number in range(self._n_parts if same else 0):
            for item in self._items.read(number):
                if moves(item):
                    moved = _moved(item, same)
                    self._moved.add(self._part(home_of(moved)), moved)
        for number in range(self._n_parts):
            images = (row for row in self._images.read(number) if row["image_id"] not in same)
            kept = (row for row in self._items.read(number) if not moves(row))
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
            smaller.add((), item)
        yield from smaller.parts({})
        shutil.rmtree(smaller._directory)

    def _part(self, key: str) -> int:
        return int(key[self._digit : self._digit + _DIGITS], 16) % self._n_parts


def home_of(item: Mapping[str, Any]) -> str:
    """Return the hash by which an item is given its part: that of its first image, or else its own."""
    return str(item["images"][0] if item["images"] else item["item_id"])


def _moved(item: dict[str, Any], same: Mapping[str, str]) -> dict[str, Any]:
    """Return the item with other images; what they were goes into its source's `extra`."""
    [source] = item["sources"]
    images = [same.get(name, name) for name in item["images"]]
    extra = {**json.loads(source["extra"]), "images": item["images"]}
    turns = turns_before(item)
    return item | {
        "item_id": item_id(images, item["places"], turns, item["question"], item["responses"]),
        "images": images,
        "sources": [source | {"extra": json.dumps(extra)}],
    }


class Shelf:
    """One file of rows per part, written and read a few rows at a time; read once everything has been added."""

    def __init__(self, directory: Path, name: str, schema: pa.Schema) -> None:
        self._directory, self._name, self._schema = directory, name, schema
        self._waiting: dict[int, Rows] = {}
        self._sinks: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Add a row to a part."""
        rows = self._waiting.setdefault(number, [])
        rows.append(row)
        if len(rows) == _WAITING_ROWS:
            self._flush(number)

    def read(self, number: int) -> Iterator[dict[str, Any]]:
        """Yield the rows of a part."""
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
