"""Encoded items of a training: the driver writes them once, workers map two Arrow files and read single items."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from carevl.data.images import decode_rgb
from carevl.errors import UserError
from carevl.models.families import family_of
from carevl.models.families.base import Picture
from carevl.models.packing import Packed, Shape, Tree, pack
from carevl.models.prompts import EncodedPrompts, encode_prompts
from carevl.store.schemas import TRAINING_IMAGES, TRAINING_ITEMS
from carevl.training.encoder import LIMITS, image_names, prompt_of
from carevl.training.plain import Plain, separate
from carevl.training.schedule import MicroBatch

if TYPE_CHECKING:
    from carevl.settings.training import Packing
    from carevl.training.features import FeatureTable


def split_holdout(
    items: Sequence[dict[str, Any]], share: float, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (items to train on, items to hold out): at least `share` of them, every image on one side.

    Raises:
        UserError: nothing is left to train on.
    """

    def place(image: str) -> bytes:
        return hashlib.sha256(f"{seed} {image}".encode()).digest()

    held: set[str] = set()
    counts = Counter(map(_shown, items))
    for image in sorted(counts, key=place):
        if sum(counts[name] for name in held) >= share * len(items):
            break
        held.add(image)
    if len(held) == len(counts):
        raise UserError(f"holdout {share} leaves none of {len(items)} items to train on; lower it, or give more images")
    return [item for item in items if _shown(item) not in held], [item for item in items if _shown(item) in held]


def _shown(item: dict[str, Any]) -> str:
    """Return what an item shows: its images, or where it has none its prompt."""
    return str(item["image"] or item["prompt"])


@dataclass(frozen=True)
class Items:
    """Encoded items in a directory, or in memory; columns as in the schema."""

    items: pa.Table
    images: pa.Table

    @classmethod
    def of(cls, items: Iterable[dict[str, Any]], images: dict[str, bytes]) -> Items:
        """Return items in memory."""
        files = [{"image": name, "bytes": data} for name, data in images.items()]
        return cls(pa.Table.from_pylist(list(items), TRAINING_ITEMS), pa.Table.from_pylist(files, TRAINING_IMAGES))

    @classmethod
    def open(cls, directory: Path) -> Items:
        """Open items that `save` wrote, mapped into memory."""
        return cls(*(pa.ipc.open_file(pa.memory_map(str(directory / f"{name}.arrow"))).read_all() for name in _NAMES))

    @classmethod
    def are_current(cls, directory: Path) -> bool:
        """Tell whether a directory holds items as this version writes them."""
        schemas = (TRAINING_ITEMS, TRAINING_IMAGES)
        files = [directory / f"{name}.arrow" for name in _NAMES]
        try:
            return all(
                pa.ipc.open_file(pa.memory_map(str(file))).schema == schema
                for file, schema in zip(files, schemas, strict=True)
            )
        except (OSError, pa.ArrowInvalid):  # one is missing, or cut
            return False

    def save(self, directory: Path) -> None:
        """Write both tables into a directory."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, table in zip(_NAMES, (self.items, self.images), strict=True):
            with (
                pa.OSFile(str(directory / f"{name}.arrow"), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table)

    def __len__(self) -> int:
        return int(self.items.num_rows)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Lengths of the parts of every item."""
        prefixes = pc.list_value_length(self.items["prefix"]).to_pylist()
        branches = self.items["branches"].to_pylist()
        return [Shape(n, tuple(map(len, texts))) for n, texts in zip(prefixes, branches, strict=True)]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of every item, packed."""
        return [shape.tokens for shape in self.shapes]

    @cached_property
    def answer_tokens(self) -> list[float]:
        """Tokens that every item is to learn, by their weights: those of its targets, or of the chosen judgment."""
        columns = self.phases, self.items["branches"].to_pylist(), self.items["weights"].to_pylist()
        return [
            sum(map(len, branches[:1] if phase == "dpo" else branches)) if weights is None else sum(map(sum, weights))
            for phase, branches, weights in zip(*columns, strict=True)
        ]

    @cached_property
    def branches(self) -> list[int]:
        """Judgments of every item: chosen and rejected, or the targets of a prompt."""
        return list(pc.list_value_length(self.items["branches"]).to_pylist())

    def tree(self, i: int) -> Tree:
        """Return item i."""
        return Tree(*(self.items[name][i].as_py() for name in ("prefix", "branches", "image", "weights")))

    @cached_property
    def ids(self) -> list[str]:
        """Their names in messages; those of the rows that an item was made of."""
        return list(self.items["item_id"].to_pylist())

    @cached_property
    def phases(self) -> list[str]:
        """`sft` for a target, `dpo` for a pair, `validation.DEV` for a labelled pair."""
        return list(self.items["phase"].to_pylist())

    @cached_property
    def references(self) -> list[list[float]]:
        """Log-probabilities of chosen and rejected under the reference; empty for a target."""
        return list(self.items["reference"].to_pylist())

    def with_references(self, references: Mapping[int, list[float]]) -> Items:
        """Return the items with other log-probabilities under the reference for some, by their numbers."""
        values = [references.get(i, own) for i, own in enumerate(self.references)]
        column = self.items.schema.get_field_index("reference")
        field = self.items.schema.field(column)
        return Items(self.items.set_column(column, field, pa.array(values, field.type)), self.images)

    @cached_property
    def _image_rows(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.images["image"].to_pylist())}

    @cached_property
    def _first_items(self) -> dict[str, int]:
        first: dict[str, int] = {}
        for i, image in enumerate(self.items["image"].to_pylist()):
            first.setdefault(image, i)
        return first

    def first_with(self, image: str) -> int:
        """Return the first item about an image."""
        return self._first_items[image]

    def collate(
        self,
        batch: Sequence[int],
        processor: Any,
        model: Any,
        packing: Packing,
        features: FeatureTable | None = None,
    ) -> Packed | Plain:
        """Lay items out for a forward pass.

        Where images enter as embeddings each distinct one is decoded once, or read with its features.
        """
        trees = [self.tree(i) for i in batch]
        if packing == "plain":
            every = [i for i, tree in zip(batch, trees, strict=True) for _ in tree.branches]
            return separate(trees, model, self._encode(every, processor))
        if not family_of(model).embeds:
            return pack(trees, model, [self.picture(i, processor) for i in batch])
        pictures: dict[str | None, Picture | None] = {None: None}
        for i, tree in zip(batch, trees, strict=True):
            name = tree.image
            if name not in pictures:
                known = features is not None and str(name) in features
                pictures[name] = features.picture(str(name)) if known and features else self.picture(i, processor)
        return pack(trees, model, [pictures[tree.image] for tree in trees])

    def prefetch(
        self,
        batches: Sequence[MicroBatch],
        processor: Any,
        model: Any,
        packing: Packing,
        features: FeatureTable | None = None,
    ) -> Iterator[tuple[MicroBatch, Packed | Plain]]:
        """Collate micro-batches; the next ones are read and decoded while one is computed."""
        left, pending = iter(batches), deque[tuple[MicroBatch, Future[Packed | Plain]]]()

        def submit(count: int) -> None:
            for batch in islice(left, count):
                collated = reader.submit(self.collate, batch.items, processor, model, packing, features)
                pending.append((batch, collated))

        with ThreadPoolExecutor(1) as reader:
            submit(_AHEAD)
            while pending:
                batch, reading = pending.popleft()
                submit(1)
                yield batch, reading.result()

    def picture(self, i: int, processor: Any) -> Picture | None:
        """Decode and prepare the images of an item, for its prompt; None where it has none."""
        if self.items["image"][i].as_py() is None:
            return None
        written = self._encode([i], processor)
        return Picture(written.images, {name: values[0] for name, values in written.per_token.items()})

    def write_prompts(self, batch: Sequence[int], processor: Any, model: Any) -> Plain:
        """Lay prompts out as generation wants them: padded at the left, without judgments."""
        trees = [replace(self.tree(i), branches=[[]], weights=None) for i in batch]
        return separate(trees, model, self._encode(batch, processor), left=True)

    def _encode(self, batch: Sequence[int], processor: Any) -> EncodedPrompts:
        """Let the processor write prompts with their images, again: the driver kept the tokens alone."""
        rows = self.items.select(["prompt", "places", "turns"]).take(list(batch)).to_pylist()
        written = encode_prompts(processor, list(map(prompt_of, rows)), [self._images(i) for i in batch])
        for i, ids in zip(batch, written.ids, strict=True):
            if ids != self.items["prefix"][i].as_py():
                raise RuntimeError(
                    f"item {self.ids[i]}: the processor writes {len(ids)} tokens for its prompt and images, and "
                    f"{self.shapes[i].prefix} for other images of these sizes"
                )
        return written

    def _images(self, i: int) -> list[Image.Image]:
        rows = [self._image_rows[name] for name in image_names(self.items["image"][i].as_py())]
        return [decode_rgb(self.images["bytes"][row].as_py(), LIMITS) for row in rows]

    @cached_property
    def n_images(self) -> list[int]:
        """How many images every item shows."""
        return [len(image_names(shown)) for shown in self.items["image"].to_pylist()]


_AHEAD = 2
"""Micro-batches that are read before they are computed."""

_NAMES = ("items", "images")
