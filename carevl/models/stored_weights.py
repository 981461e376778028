"""A model's weights as they are stored: their files, their format, and what they take up as loaded."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from carevl.errors import reading
from carevl.settings.names import path_component

INDEX = "model.safetensors.index.json"
VALUE_HEAD = "value_head.safetensors"
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LOADED = {"float32": 4, "float16": 2, "bfloat16": 2}


def gigabytes(size: float) -> str:
    """Return a number of bytes in words: `16.6 GB`."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True)
class StoredWeights:
    """Bytes of the files, and how many weights there are of each format, by its name in safetensors."""

    size: int
    parameters: Mapping[str, int]

    def loaded_as(self, dtype: str, bits: int | None = None) -> int:
        """Return the bytes of the weights as numbers of a format; `auto`: as they are stored.

        Weights that are no plain floating-point numbers stay what they are. Where most have so many `bits`, it is what
        all of them would take, and so the least that they take.
        """
        if bits is not None:
            return sum(self.parameters.values()) * bits // 8
        if dtype == "auto":
            return self.size
        return self.size + sum(
            n * (_LOADED[dtype] - _BYTES[form]) for form, n in self.parameters.items() if form in _BYTES
        )


def read_stored_weights(directory: Path) -> StoredWeights:
    """Return what a model's safetensors files say at their beginning; they are not loaded."""
    parameters = Counter[str]()
    for _, tensor in _tensors(directory):
        parameters[tensor["dtype"]] += math.prod(tensor["shape"])
    return StoredWeights(sum(file.stat().st_size for file in weight_files(directory)), parameters)


@cache
def stored_dtype(directory: Path) -> str | None:
    """Return the torch format that most bytes of a model's weights have, such as `bfloat16`; None without weights."""
    sizes = Counter[str]()
    for _, tensor in _tensors(directory):
        start, end = tensor["data_offsets"]
        sizes[tensor["dtype"]] += end - start
    if not sizes:
        return None
    most = sizes.most_common(1)[0][0]
    return _NAMES.get(most, most)


def tensor_names(directory: Path) -> list[str]:
    """Return the names of all tensors.

    Raises:
        ValueError: a file is no safetensors file.
    """
    return [name for name, _ in _tensors(directory)]


def tensor_shapes(directory: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor, by name; errors as for `tensor_names`."""
    return {name: tensor["shape"] for name, tensor in _tensors(directory)}


def _tensors(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of every tensor, and what the headers of the safetensors files say of it."""
    for file in weight_files(directory):
        with reading(file), file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        yield from ((name, tensor) for name, tensor in header.items() if name != "__metadata__")


def weight_files(directory: Path) -> list[Path]:
    """Return the files that hold a model's weights: those of its index, or the only one; other formats may lie beside.

    Mistral's repositories hold all weights a second time in `consolidated.safetensors`. TRL and LLaMA-Factory write a
    value head into a file of its own, which no index names.
    """
    whole, head = directory / "model.safetensors", directory / VALUE_HEAD
    files = indexed_files(directory) or ([whole] if whole.is_file() else sorted(directory.glob("*.safetensors")))
    return [*files, head] if head.is_file() and head not in files else files


def indexed_files(directory: Path) -> list[Path] | None:
    """Return the files that a model's index names; None where it has no index, and so one file.

    Raises:
        UserError: one of them lies elsewhere.
    """
    index = directory / INDEX
    if not index.is_file():
        return None
    with reading(index):
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return [directory / path_component(name, f"{index}: file of weights") for name in names]
