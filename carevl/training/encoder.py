"""Rows of text and images become items: token ids, the images that they name, and how long they are."""

from __future__ import annotations

import hashlib
import io
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from carevl.data.images import ImageLimits, bound_pixels, decode_rgb
from carevl.data.rows import RowError
from carevl.errors import UserError
from carevl.judging.turns import Turn
from carevl.judging.verdicts import recognise_verdict
from carevl.models.control_strings import encode_reply
from carevl.models.packing import Shape, Tree, computed_tokens
from carevl.models.prompts import Prompt, encode_prompts
from carevl.store.parts import read_names, read_part
from carevl.store.schemas import row_error
from carevl.training.image_sizes import by_size

if TYPE_CHECKING:
    from carevl.settings.training import Packing, Phase

COLUMNS: dict[Phase, list[str]] = {
    "sft": ["item_id", "image", "prompt", "target"],
    "dpo": ["item_id", "image", "prompt", "chosen", "rejected"],
}
"""`item_id` names a row in messages; `image` are the bytes of the file; the rest are texts.

A row with `images`, a list of files, has no need of `image`. With them come `places` of the prompt, and `turns` before
it as {role, text, places}: where images stand (`carevl.judging.turns.Turn`); one before the prompt if nothing is said.
"""
MORE_COLUMNS = ["images", "places", "turns"]
REFERENCE = ["reference_chosen", "reference_rejected"]
"""Log-probabilities of chosen and rejected under the reference, in nats."""

_AND = " and "
LIMITS = ImageLimits(max_image_bytes=sys.maxsize, max_image_pixels=sys.maxsize)
"""Of images that ingest has let in."""


def read_rows(files: Sequence[Path], phase: Phase, *, reference: bool) -> pa.Table:
    """Read the rows of parquet files.

    Raises:
        UserError: there is no file or no row, or a column is missing.
    """
    columns = [*COLUMNS[phase], *(REFERENCE if reference else [])]
    tables = []
    for file in files:
        present = read_names(file)
        needed = [name for name in columns if name != "image" or "images" not in present]
        if missing := [name for name in needed if name not in present]:
            raise UserError(f"{file} has no column {', '.join(missing)}; rows for {phase} have {', '.join(columns)}")
        tables.append(read_part(file, [name for name in (*columns, *MORE_COLUMNS) if name in present]))
    rows = pa.concat_tables(tables, promote_options="permissive") if tables else None
    if rows is None or not rows.num_rows:
        raise UserError(f"there are no rows for {phase} in {', '.join(map(str, files)) or 'no file'}")
    return rows


def files_of(row: Mapping[str, Any]) -> list[bytes]:
    """Return the image files of a row, in the order of their places."""
    files: list[bytes] | None = row.get("images")
    return [row["image"]] if files is None else files


def prompt_of(row: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a row, with its places and the turns before it."""
    places, turns = row.get("places"), row.get("turns") or []
    earlier = tuple(Turn(turn["role"], turn["text"], tuple(turn["places"])) for turn in turns)
    return Prompt(row["prompt"], places=(0,) if places is None else tuple(places), earlier=earlier)


JOINED = "+"
"""Between the names of images that are shown together."""


def image_names(shown: str | None) -> list[str]:
    """Return the names of the images that a tree shows."""
    return [] if shown is None else shown.split(JOINED)


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
        picture = decode_rgb(original, LIMITS)
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
        mixes_sizes: whether the judge reads images of several sizes in one prompt.
    """

    def __init__(
        self,
        processor: Any,
        max_tokens: int,
        *,
        packing: Packing = "shared",
        verdict_weight: float = 1.0,
        resize_pixels: int | None = None,
        mixes_sizes: bool = True,
    ) -> None:
        self.processor = by_size(processor)
        self.mixes_sizes = mixes_sizes
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
        files = files_of(row)
        if not all(files) or row["prompt"] is None or not all(texts):
            raise ItemError("incomplete", f"image, prompt or judgment is empty; {phase} needs all of them")
        prompt, images = prompt_of(row), [hashlib.sha256(file).hexdigest() for file in files]
        if prompt.n_images != len(images):
            raise ItemError("images", f"it has {len(images)} images, and places for {prompt.n_images}")
        for image, file in zip(images, files, strict=True):
            if image not in self._shown:
                self._shown[image] = _Shown.of(file, self.resize_pixels)
        shown = [self._shown[image] for image in images]
        if not self.mixes_sizes and len({(image.width, image.height) for image in shown}) > 1:
            raise ItemError("sizes", "its judge takes all images of a prompt for as large as the first")
        prefix = self._prefix(prompt, shown)
        tokenizer = self.processor.tokenizer
        branches = [[*encode_reply(tokenizer, text)[0], tokenizer.eos_token_id] for text in texts]
        weighted = phase == "sft" and self.verdict_weight != 1.0
        tree = Tree(prefix, branches, JOINED.join(images) or None, [self._weights(texts[0])] if weighted else None)
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

    def _prefix(self, prompt: Prompt, images: Sequence[_Shown]) -> list[int]:
        blanks = [Image.new("RGB", (image.width, image.height)) for image in images]
        try:
            return encode_prompts(self.processor, [prompt], [blanks]).ids[0]
        except Exception as error:  # processors refuse images and texts by whatever they stumble over
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
            what = f"an image of {sizes}, or its prompt" if len(images) == 1 else f"images of {sizes}, or their prompt"
            message = f"the processor refuses {what if images else 'a prompt without images'}: {reason}"
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
            for name, file in zip(image_names(tree.image), files_of(row), strict=True):
                images[name] = self._shown[name].data or file
            items.append(
                {
                    "item_id": row["item_id"],
                    "phase": phase,
                    "image": tree.image,
                    "prompt": row["prompt"],
                    "places": list(prompt_of(row).places),
                    "turns": [asdict(turn) for turn in prompt_of(row).earlier],
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
