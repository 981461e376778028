"""Rows of text and images become items: token ids, the images that they name, and how long they are.

The driver encodes once; workers map the two Arrow files into memory and read single items from them.
"""

from __future__ import annotations

import hashlib
import io
import math
import sys
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

from carevl.data.images import ImageLimits, bound_pixels, decode_rgb
from carevl.data.rows import RowError
from carevl.errors import UserError
from carevl.judging.verdicts import recognise_verdict
from carevl.models.families import family_of
from carevl.models.families.base import Picture
from carevl.models.packing import Packed, Shape, Tree, computed_tokens, pack
from carevl.models.prompts import EncodedPrompts, Prompt, encode_prompts, encode_reply
from carevl.store.parts import read_names, read_part
from carevl.store.schemas import TRAINING_IMAGES, TRAINING_ITEMS, row_error
from carevl.training.image_sizes import by_size
from carevl.training.plain import Plain, separate
from carevl.training.schedule import MicroBatch

if TYPE_CHECKING:
    from carevl.settings.training import Packing, Phase
    from carevl.training.features import FeatureTable

COLUMNS: dict[Phase, list[str]] = {
    "sft": ["item_id", "image", "prompt", "target"],
    "dpo": ["item_id", "image", "prompt", "chosen", "rejected"],
}
"""`item_id` names a row in messages; `image` are the bytes of the file; the rest are texts."""
REFERENCE = ["reference_chosen", "reference_rejected"]
"""Log-probabilities of chosen and rejected under the reference, in nats."""

_AND = " and "
_LIMITS = ImageLimits(max_image_bytes=sys.maxsize, max_image_pixels=sys.maxsize)  # ingest has let these images in


def read_rows(files: Sequence[Path], phase: Phase, *, reference: bool) -> pa.Table:
    """Read the rows of parquet files.

    Raises:
        UserError: there is no file or no row, or a column is missing.
    """
    columns = [*COLUMNS[phase], *(REFERENCE if reference else [])]
    tables = []
    for file in files:
        present = read_names(file)
        if missing := [name for name in columns if name not in present]:
            raise UserError(f"{file} has no column {', '.join(missing)}; rows for {phase} have {', '.join(columns)}")
        tables.append(read_part(file, columns))
    rows = pa.concat_tables(tables) if tables else None
    if rows is None or not rows.num_rows:
        raise UserError(f"there are no rows for {phase} in {', '.join(map(str, files)) or 'no file'}")
    return rows


class ItemError(Exception):
    """A row that cannot be trained on. `kind` is for counting, the message for people."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class _Shown:
    """An image as the judge sees it: pixels of each side, and its file if that is not the original."""

    width: int
    height: int
    data: bytes | None

    @classmethod
    def of(cls, original: bytes, resize_pixels: int | None) -> _Shown:
        picture = decode_rgb(original, _LIMITS)
        bounded = bound_pixels(picture, resize_pixels)
        if bounded is picture:
            return cls(*picture.size, None)
        # Workers load it in every epoch: a file without loss spares them the original's pixels.
        file = io.BytesIO()
        bounded.save(file, "PNG", compress_level=1)
        return cls(*bounded.size, file.getvalue())


class Encoder:
    """Turns rows into items with a judge's processor.

    Args:
        max_tokens: most tokens that an item may cost.
        packing: how it will be computed.
        verdict_weight: how often the tokens of a target's verdict count.
        resize_pixels: larger images are resized to so many pixels, once; None: they stay as they are.
    """

    def __init__(
        self,
        processor: Any,
        max_tokens: int,
        *,
        packing: Packing = "shared",
        verdict_weight: float = 1.0,
        resize_pixels: int | None = None,
    ) -> None:
        self.processor = by_size(processor)
        self.max_tokens, self.packing = max_tokens, packing
        self.verdict_weight, self.resize_pixels = verdict_weight, resize_pixels
        self._shown: dict[str, _Shown] = {}
        self.longest, self.shortest_refused = 0, math.inf
        """Tokens of the longest item, and of the shortest that was left out or not joined with another of its prompt:
        from the one on and below the other, any `max_tokens` gives the same items."""

    def tree(self, row: dict[str, Any], phase: Phase) -> Tree:
        """Return one row's prefix and judgments.

        Raises:
            ItemError: it lacks a text, or it is longer than `max_tokens`.
            RowError: its image does not decode.
        """
        texts = [row["target"]] if phase == "sft" else [row["chosen"], row["rejected"]]
        if not row["image"] or row["prompt"] is None or not all(texts):
            raise ItemError("incomplete", f"image, prompt or judgment is empty; {phase} needs all of them")
        image = hashlib.sha256(row["image"]).hexdigest()
        if image not in self._shown:
            self._shown[image] = _Shown.of(row["image"], self.resize_pixels)
        prefix = self._prefix(row["prompt"], self._shown[image].width, self._shown[image].height)
        tokenizer = self.processor.tokenizer
        branches = [[*encode_reply(tokenizer, text)[0], tokenizer.eos_token_id] for text in texts]
        weighted = phase == "sft" and self.verdict_weight != 1.0
        tree = Tree(prefix, branches, image, [self._weights(texts[0])] if weighted else None)
        tokens = computed_tokens([tree.shape], self.packing)
        if not self._fits(tokens):
            message = f"{tokens} tokens, over batch_tokens {self.max_tokens}; raise it, or shorten the texts"
            raise ItemError("too_long", message)
        return tree

    def _fits(self, tokens: int) -> bool:
        fits = tokens <= self.max_tokens
        if fits:
            self.longest = max(self.longest, tokens)
        else:
            self.shortest_refused = min(self.shortest_refused, tokens)
        return fits

    def _weights(self, target: str) -> list[float]:
        """Return how much every token of a target counts, the one that ends it among them."""
        recognised = recognise_verdict(target)
        begin = None if recognised is None else recognised[1].begin
        _, offsets = encode_reply(self.processor.tokenizer, target)
        heavy = [begin is not None and begin < end for _, end in offsets]
        return [*(self.verdict_weight if of_verdict else 1.0 for of_verdict in heavy), 1.0]

    def _prefix(self, prompt: str, width: int, height: int) -> list[int]:
        blank = Image.new("RGB", (width, height))
        try:
            return encode_prompts(self.processor, [Prompt(prompt)], [blank]).ids[0]
        except Exception as error:  # processors refuse images and texts by whatever they stumble over
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            message = f"the processor refuses an image of {width} x {height}, or its prompt: {reason}"
            raise ItemError("refused", message) from error

    def encode(
        self, rows: pa.Table, phase: Phase
    ) -> tuple[list[dict[str, Any]], dict[str, bytes], list[dict[str, Any]]]:
        """Return (items, images by their hash, errors); every row is in the first or the third, in order.

        Targets of one prompt become one item of several judgments, as far as `max_tokens` lets them.

        Returns:
            Items as `Items.of` takes them; errors as {row, item_id, error}, rows counted from 0.
        """
        items, images, errors = [], {}, []
        for number, row in enumerate(rows.to_pylist()):
            reference = [row[name] for name in REFERENCE if name in row]
            try:
                tree = self.tree(row, phase)
                if None in reference:
                    raise ItemError("no_reference", "the row has no reference log-probabilities")
            except (ItemError, RowError) as error:
                problem = row_error("train", error.kind, str(error))
                errors.append({"row": number, "item_id": row["item_id"], "error": problem})
                continue
            assert tree.image is not None
            images[tree.image] = self._shown[tree.image].data or row["image"]
            items.append(
                {
                    "item_id": row["item_id"],
                    "phase": phase,
                    "image": tree.image,
                    "prompt": row["prompt"],
                    "prefix": tree.prefix,
                    "branches": tree.branches,
                    "weights": tree.weights,
                    "reference": reference,
                }
            )
        return (self._group_by_prompt(items) if phase == "sft" else items), images, errors

    def _group_by_prompt(self, items: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Merge items that share image and prompt, where the first of them stood."""
        open_items: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}
        grouped = []
        for item in items:
            prompt = item["image"], tuple(item["prefix"])
            group = open_items.get(prompt)
            branches = [*([] if group is None else group["branches"]), *item["branches"]]
            shape = Shape(len(item["prefix"]), tuple(map(len, branches)))
            if group is None or not self._fits(computed_tokens([shape], self.packing)):
                open_items[prompt] = item
                grouped.append(item)
                continue
            group["branches"] = branches
            if item["weights"] is not None:
                group["weights"] = [*group["weights"], *item["weights"]]
            if item["item_id"] not in group["item_id"].split(_AND):
                group["item_id"] += _AND + item["item_id"]
        return grouped


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
    counts = Counter(item["image"] for item in items)
    for image in sorted(counts, key=place):
        if sum(counts[name] for name in held) >= share * len(items):
            break
        held.add(image)
    if len(held) == len(counts):
        raise UserError(f"holdout {share} leaves none of {len(items)} items to train on; lower it, or give more images")
    return [item for item in items if item["image"] not in held], [item for item in items if item["image"] in held]


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
        pictures: dict[str, Picture] = {}
        for i, tree in zip(batch, trees, strict=True):
            name = str(tree.image)
            if name not in pictures:
                known = features is not None and name in features
                pictures[name] = features.picture(name) if known and features else self.picture(i, processor)
        return pack(trees, model, [pictures[str(tree.image)] for tree in trees])

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

    def picture(self, i: int, processor: Any) -> Picture:
        """Decode and prepare the image of an item, for its prompt."""
        written = self._encode([i], processor)
        return Picture(written.images, {name: values[0] for name, values in written.per_token.items()})

    def write_prompts(self, batch: Sequence[int], processor: Any, model: Any) -> Plain:
        """Lay prompts out as generation wants them: padded at the left, without judgments."""
        trees = [replace(self.tree(i), branches=[[]], weights=None) for i in batch]
        return separate(trees, model, self._encode(batch, processor), left=True)

    def _encode(self, batch: Sequence[int], processor: Any) -> EncodedPrompts:
        """Let the processor write prompts with their images, again: the driver kept the tokens alone."""
        prompts = [Prompt(self.items["prompt"][i].as_py()) for i in batch]
        written = encode_prompts(processor, prompts, [self._image(i) for i in batch])
        for i, ids in zip(batch, written.ids, strict=True):
            if ids != self.items["prefix"][i].as_py():
                raise RuntimeError(
                    f"item {self.ids[i]}: the processor writes {len(ids)} tokens for its prompt and image, and "
                    f"{self.shapes[i].prefix} for another image of that size"
                )
        return written

    def _image(self, i: int) -> Image.Image:
        row = self._image_rows[self.items["image"][i].as_py()]
        return decode_rgb(self.images["bytes"][row].as_py(), _LIMITS)


_AHEAD = 2
"""Micro-batches that are read before they are computed."""

_NAMES = ("items", "images")
