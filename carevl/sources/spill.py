"""Rows on their way to their part, on disk: a part's rows have to be together before they can be merged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from carevl.sources.intake import item_id
from carevl.tables import IMAGES, ITEMS

_WAITING_ROWS = 32
Rows = list[dict[str, Any]]


class Spill:
    """Takes rows of `images` and `items` in any order and gives them back part by part; memory holds one part."""

    def __init__(self, directory: Path, n_parts: int) -> None:
        directory.mkdir(parents=True)
        self._n_parts = n_parts
        self._images = _Shelf(directory, "images", IMAGES)
        self._items = _Shelf(directory, "items", ITEMS)
        self._moved = _Shelf(directory, "moved", ITEMS)

    def add(self, image: dict[str, Any] | None, item: dict[str, Any]) -> None:
        """Adds a row to the part that its image belongs to."""
        number = self._part(item["image_id"] or item["item_id"])
        self._items.add(number, item)
        if image is not None:
            self._images.add(number, image)

    def parts(self, same: Mapping[str, str]) -> Iterator[tuple[Rows, Rows]]:
        """(image rows, item rows) of every part.

        Args:
            same: image_id to the image_id that takes its place; its items move to that image and its row is dropped.
        """
        for number in range(self._n_parts if same else 0):
            for item in self._items.read(number):
                if item["image_id"] in same and item["question"] is not None:
                    moved = _moved(item, same[item["image_id"]])
                    self._moved.add(self._part(moved["image_id"]), moved)
        for number in range(self._n_parts):
            images = [row for row in self._images.read(number) if row["image_id"] not in same]
            items = [row for row in self._items.read(number) if row["image_id"] not in same or row["question"] is None]
            yield images, items + self._moved.read(number)

    def _part(self, key: str) -> int:
        return int(key[:8], 16) % self._n_parts


def _moved(item: dict[str, Any], image: str) -> dict[str, Any]:
    """The item with another image; what it was goes into its source's `extra`."""
    [source] = item["sources"]
    extra = {**json.loads(source["extra"]), "image_id": item["image_id"]}
    return item | {
        "item_id": item_id(image, item["question"], item["responses"]),
        "image_id": image,
        "sources": [source | {"extra": json.dumps(extra)}],
    }


class _Shelf:
    """One file of rows per part, written a few rows at a time; read once everything has been added."""

    def __init__(self, directory: Path, name: str, schema: pa.Schema) -> None:
        self._directory, self._name, self._schema = directory, name, schema
        self._waiting: dict[int, Rows] = {}
        self._sinks: dict[int, pa.RecordBatchStreamWriter] = {}

    def add(self, number: int, row: dict[str, Any]) -> None:
        rows = self._waiting.setdefault(number, [])
        rows.append(row)
        if len(rows) == _WAITING_ROWS:
            self._flush(number)

    def read(self, number: int) -> Rows:
        self._flush(number)
        if number not in self._sinks:
            return []
        self._sinks[number].close()
        with pa.ipc.open_stream(str(self._file(number))) as stream:
            rows: Rows = stream.read_all().to_pylist()
        return rows

    def _flush(self, number: int) -> None:
        rows = self._waiting.pop(number, [])
        if rows:
            if number not in self._sinks:
                self._sinks[number] = pa.ipc.new_stream(str(self._file(number)), self._schema)
            self._sinks[number].write_batch(pa.RecordBatch.from_pylist(rows, self._schema))

    def _file(self, number: int) -> Path:
        return self._directory / f"{self._name}-{number:05d}.arrows"
