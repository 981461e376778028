"""Features of images under a frozen vision tower: computed once in a phase, read back for every use after that.

A phase shows an image once for every item about it in every epoch. Where that is more than once, the workers share out
the images before the first step, and each writes what it computed into a file of its own.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from carevl.models.families import family_of
from carevl.models.families.base import Family, Picture
from carevl.models.tree_attention import cast_floats, trains_vision
from carevl.store.damage import encode_json
from carevl.store.listing import describe
from carevl.store.table import write_atomically
from carevl.training.record import find_feature_problems
from carevl.training.steps import all_gather

if TYPE_CHECKING:
    from torch import Tensor

    from carevl.training.loop import Loop

_SCHEMA = pa.schema(
    [("image", pa.string()), ("inputs", pa.string()), ("tokens", pa.int64()), ("features", pa.large_binary())]
)
_SHARE_OF_DISK = 0.5
"""Most of the free disk that features may take."""
_BATCH = 16
"""Images that the vision tower sees at a time."""


class FeatureTable:
    """Features of images by name, mapped into memory from Arrow files; numbers in `dtype`."""

    def __init__(self, files: Sequence[Path], dtype: torch.dtype) -> None:
        self.dtype = dtype
        tables = [pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files]
        self._rows = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        self._places = {name: i for i, name in enumerate(self._rows["image"].to_pylist())}

    def __contains__(self, image: str) -> bool:
        return image in self._places

    def picture(self, image: str) -> Picture:
        """Return an image with its features, [tokens, size]."""
        row = self._places[image]
        inputs = {name: torch.tensor(v) for name, v in json.loads(self._rows["inputs"][row].as_py()).items()}
        data = torch.frombuffer(bytearray(self._rows["features"][row].as_buffer()), dtype=self.dtype)
        return Picture(inputs, features=data.view(self._rows["tokens"][row].as_py(), -1))


def compute_features(loop: Loop, directory: Path) -> FeatureTable | None:
    """Compute the features of all images that a training uses more than once; every worker has to call it.

    Returns:
        None where features are no constants, images enter a model otherwise than as embeddings, no image is used
        twice, or the disk has no room: then the vision tower runs in every step.
    """
    model = loop.judge.model
    family = family_of(model)
    images = _used_more_than_once(loop)
    if loop.packing == "plain" or not family.embeds or trains_vision(model) or not images:
        return None
    directory.mkdir(exist_ok=True, parents=True)
    size = model.get_input_embeddings().embedding_dim * model.dtype.itemsize
    counts = _count_tokens(loop, images, family.image_token(model.config))
    needed = size * sum(counts.values())
    [fits, *_] = all_gather(needed <= _SHARE_OF_DISK * shutil.disk_usage(directory).free, loop.world)
    if not fits:
        return None
    file = directory / f"{loop.rank}-of-{loop.world}.arrow"
    if not _is_whole(file):
        unfinished = file.with_suffix(".unfinished")
        with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            # Under ZeRO 3 the weights of the tower are gathered for every batch: all workers have as many.
            share = images[loop.rank :: loop.world] or images[:1]
            for batch in _batches(share, -(-len(images) // loop.world)):
                for row in _compute(loop, family, batch, counts):
                    writer.write_table(pa.Table.from_pylist([row], _SCHEMA))
        unfinished.replace(file)
        write_atomically(file.with_suffix(".json"), encode_json(describe(directory, [file.name])))
    all_gather(None, loop.world)
    files = [directory / f"{rank}-of-{loop.world}.arrow" for rank in range(loop.world)]
    return FeatureTable(files, model.dtype)


def _is_whole(file: Path) -> bool:
    """Return whether features are there, and what was written."""
    listing = file.with_suffix(".json")
    return listing.exists() and not find_feature_problems(listing)


def _used_more_than_once(loop: Loop) -> list[str]:
    items = loop.items.items["image"].to_pylist()
    uses = Counter(items)
    for i in range(loop.config.schedule.n_items):
        uses[items[i]] += loop.config.schedule.epochs - 1
    return [image for image, count in uses.items() if image is not None and count > 1]


def _count_tokens(loop: Loop, images: Sequence[str], token: int) -> Mapping[str, int]:
    counted, counts = set(images), dict[str, int]()
    for image, prefix in zip(loop.items.items["image"], loop.items.items["prefix"], strict=True):
        name = image.as_py()
        if name in counted and name not in counts:
            counts[name] = prefix.as_py().count(token)
    return counts


def _batches(images: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    """Yield the images in as many batches as the worker with most images has; the last one comes again if need be."""
    for start in range(0, most, _BATCH):
        yield images[start : start + _BATCH] or images[-1:]


@torch.no_grad()
def _compute(loop: Loop, family: Family, images: Sequence[str], counts: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    model, device = loop.judge.model, loop.engine.device
    items = map(loop.items.first_with, images)
    pictures = [picture for i in items if (picture := loop.items.picture(i, loop.processor)) is not None]
    joined = cast_floats({name: value.to(device) for name, value in family.join(pictures).items()}, model.dtype)
    features = torch.split(family.features(model, joined), [counts[name] for name in images])
    for name, picture, own in zip(images, pictures, features, strict=True):
        inputs = family.position_inputs(model, picture.images)
        yield {
            "image": name,
            "inputs": json.dumps({key: value.tolist() for key, value in inputs.items()}),
            "tokens": len(own),
            "features": _bytes(own.to(model.dtype)),
        }


def _bytes(features: Tensor) -> bytes:
    return features.contiguous().cpu().view(torch.uint8).numpy().tobytes()
