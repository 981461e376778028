"""Rows of a benchmark as every protocol sees them, and the files they come from (Parquet, JSON, JSONL, CSV, TSV)."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from carevl.data.rows import clean
from carevl.judging.prompts import Task
from carevl.judging.turns import Turn

logger = logging.getLogger(__name__)

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
_MAX_CSV_FIELD = 2**31 - 1


@dataclass(frozen=True)
class Image:
    """An image of a row: its bytes, or a path that may not exist. `name` is equal for equal images."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None
    error: str = ""
    """Why no judge can be shown it, if none can: what becomes of its questions. It then counts as present."""

    @property
    def present(self) -> bool:
        return bool(self.error) or self.data is not None or (self.path is not None and os.path.isfile(self.path))

    def read(self) -> bytes:
        """Return the file's bytes. Raises OSError when there are none."""
        if self.data is not None:
            return self.data
        if self.path is None:
            raise FileNotFoundError(f"{self.name}: {self.error or 'no such image'}")
        return self.path.read_bytes()


@dataclass(frozen=True)
class Row:
    """One labelled row of a benchmark.

    Raises:
        ValueError: it has another number of places than of images.
    """

    key: str
    """Stable name: the benchmark's own id and a digest of what tells rows with that id apart."""
    task: Task
    group: str
    question: str
    responses: tuple[str, ...]
    gold: tuple[float, ...]
    """One number per response, higher is better; equal numbers are a tie. For `pointwise`, the human rating."""
    images: tuple[Image, ...] = ()
    places: tuple[int, ...] = ()
    """Characters of the question before which an image stands, as in `Turn`; empty: all of them before its words."""
    cluster: str = ""
    """Set where rows without a common image belong together all the same."""

    def __post_init__(self) -> None:
        if self.places and len(self.places) != len(self.images):
            raise ValueError(f"{self.key}: {len(self.images)} images and {len(self.places)} places")

    @property
    def native_id(self) -> str:
        """The benchmark's own id, as `row_key` put it into the key."""
        return self.key.rpartition("#")[0]

    @property
    def turn(self) -> Turn:
        """What is asked, with the images in their places."""
        return Turn("user", self.question, self.places or (0,) * len(self.images))

    @property
    def shown(self) -> str:
        """Name of all that it shows, equal for rows with equal images: these, else the row itself."""
        return " + ".join(image.name for image in self.images) or self.key

    @property
    def unit(self) -> str:
        """Name of what it is about: the cluster, else the images, else the row."""
        return self.cluster or self.shown

    @property
    def winner(self) -> int:
        """Return the index of the best response, -1 for a tie between the best."""
        best = max(self.gold)
        return self.gold.index(best) if self.gold.count(best) == 1 else -1

    @property
    def ranking(self) -> tuple[int, ...]:
        """Return the response indices, best first."""
        return tuple(sorted(range(len(self.gold)), key=lambda i: -self.gold[i]))


@dataclass(frozen=True)
class Record:
    """One row as the file holds it; `location` names file and row (from 1) for messages."""

    values: dict[str, Any]
    location: str

    def get(self, *names: str) -> Any:
        """Return the first of these fields that is present and not null.

        Raises:
            ValueError: none is; the message lists the fields found.
        """
        for name in names:
            if self.values.get(name) is not None:
                return self.values[name]
        fields = ", ".join(sorted(self.values)) or "none"
        raise ValueError(f"{self.location}: no value for {' or '.join(names)}; fields found: {fields}")

    def nullable(self, name: str) -> Any:
        """Do as `get`, for a field that must be present and may be null."""
        return None if name in self.values and self.values[name] is None else self.get(name)

    def text(self, *names: str) -> str:
        """Do as `get`, for a field that must be a string; NUL and lone surrogates become U+FFFD."""
        value = self.get(*names)
        if not isinstance(value, str):
            raise ValueError(f"{self.location}: {' or '.join(names)} must be text, found {value!r:.80}")
        return clean(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Do as `get`, for a field that must be a list of strings."""
        value = self.get(name)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{self.location}: {name} must be a list of texts, found {value!r:.80}")
        return tuple(map(clean, value))

    def nested(self, name: str) -> Record:
        """Do as `get`, for a field that must be an object."""
        value = self.get(name)
        if not isinstance(value, dict):
            raise ValueError(f"{self.location}: {name} must be an object, found {value!r:.80}")
        return Record(value, f"{self.location}, {name}")


def read_records(path: Path) -> list[Record]:
    """Return all rows of a file, or of the data files of a folder (not of its subfolders) in the order of their names.

    Raises:
        FileNotFoundError: nothing is there, or the folder has no data file.
        ValueError: a file is of another kind, or a line is not a JSON object.
    """
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise FileNotFoundError(f"no benchmark data at {path}; expected a file or a folder of {', '.join(SUFFIXES)}")
    return [record for file in files for record in _read_file(file)]


def _read_file(path: Path) -> Iterator[Record]:
    for number, values in enumerate(_values(path), start=1):
        location = f"{path}, row {number}"
        if not isinstance(values, dict):
            raise ValueError(f"{location}: expected an object, found {values!r:.80}")
        yield Record(values, location)


def _values(path: Path) -> Iterable[Any]:
    if path.suffix == ".parquet":
        for batch in pq.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()
    elif path.suffix in (".csv", ".tsv"):
        csv.field_size_limit(_MAX_CSV_FIELD)
        with path.open(encoding="utf-8", newline="") as lines:
            yield from csv.DictReader(lines, delimiter="," if path.suffix == ".csv" else "\t")
    elif path.suffix in (".json", ".jsonl"):
        text = path.read_text(encoding="utf-8")
        documents = [text] if path.suffix == ".json" else text.split("\n")
        for number, document in enumerate(documents, start=1):
            if document.strip():
                try:
                    value = json.loads(document)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
                yield from value if path.suffix == ".json" and isinstance(value, list) else [value]
    else:
        hint = "; VLMEvalKit writes .tsv with PRED_FORMAT=tsv" if path.suffix == ".xlsx" else ""
        kind = path.suffix or "a file without suffix"
        raise ValueError(f"{path}: cannot read {kind}; use {', '.join(SUFFIXES)}{hint}")


def row_key(native: object, *parts: str) -> str:
    """Return the `native` id, then a digest of the parts that tell rows with that id apart."""
    joined = json.dumps([str(native), *parts])
    return f"{native}#{hashlib.sha256(joined.encode()).hexdigest()[:12]}"


def read_images(value: object, root: Path) -> tuple[Image, ...]:
    """Return the images of a row from its column: one or none, or a list, each as `read_image` takes it.

    What is null in a list counts as missing.
    """
    if isinstance(value, list):
        return tuple(read_image(each, root) or Image("null") for each in value)
    image = read_image(value, root)
    return () if image is None else (image,)


def read_image(value: object, root: Path) -> Image | None:
    """Return an image: `{bytes, path}` as `datasets` has it, bytes, a path, or null.

    A path that leads out of `root` (by `..` or a link) counts as missing.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, bytes):
        return Image(hashlib.sha256(value).hexdigest(), data=value)
    if not isinstance(value, str) or not value:
        return None
    path = Path(os.path.realpath(root / value.replace("\0", "")))
    return Image(value, path=path if path.is_relative_to(os.path.realpath(root)) else None)


def load_rows(path: Path, images: Path | None, read_row: Callable[[Record, Path], Row]) -> list[Row]:
    """Return the distinct rows of a file or of a folder's files; image paths begin in `images`, else beside the data.

    Raises:
        FileNotFoundError, ValueError: as `read_records`, `read_row` and `unique`.
    """
    root = images or (path if path.is_dir() else path.parent)
    return unique(read_row(record, root) for record in read_records(path))


def unique(rows: Iterable[Row]) -> list[Row]:
    """Return the rows in their order with repeats merged into the first (logged with their number).

    Raises:
        ValueError: two rows have one key but name another response as the best.
    """
    kept: dict[str, Row] = {}
    repeats = 0
    for row in rows:
        first = kept.setdefault(row.key, row)
        repeats += first is not row
        if _labels(first) != _labels(row):
            raise ValueError(f"rows with key {row.key} carry contradicting labels: {first.gold} and {row.gold}")
    if repeats:
        logger.warning("%d benchmark rows repeat another row and are counted once", repeats)
    return list(kept.values())


def _labels(row: Row) -> list[tuple[str, float]]:
    return sorted(zip(row.responses, row.gold, strict=True))


def missing_images(rows: Iterable[Row]) -> list[Row]:
    """Return the rows that name an image which is missing. Text-only rows name none."""
    return [row for row in rows if not all(image.present for image in row.images)]


def resampling_units(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return the unit of every row, whose rows are drawn together: its cluster, or all rows that images connect.

    A unit has the name (`Row.unit`) of its first row.
    """
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            name = parent
        return name

    connected = [[] if row.cluster else [image.name for image in row.images] for row in rows]
    for names in connected:
        for name in names[1:]:
            parents[root(name)] = root(names[0])
    first: dict[str, str] = {}
    return tuple(
        first.setdefault(root(names[0]), row.unit) if names else row.unit
        for row, names in zip(rows, connected, strict=True)
    )
