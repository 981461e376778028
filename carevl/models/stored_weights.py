"""What a model's weights take up: as they are stored, and in the numbers that they are loaded as."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_LOADED = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class StoredWeights:
    """Bytes of the files, and how many weights there are of each format, by its name in safetensors."""

    size: int
    parameters: Mapping[str, int]

    def loaded_as(self, dtype: str) -> int:
        """Return the bytes of the weights as numbers of a format; `auto`: as they are stored.

        Weights that are no plain floating-point numbers stay what they are.
        """
        if dtype == "auto":
            return self.size
        return self.size + sum(
            n * (_LOADED[dtype] - _BYTES[form]) for form, n in self.parameters.items() if form in _BYTES
        )


def read_stored_weights(directory: Path) -> StoredWeights:
    """Return what a model's safetensors files say at their beginning; they are not loaded."""
    size, parameters = 0, Counter[str]()
    for file in directory.glob("*.safetensors"):
        size += file.stat().st_size
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                parameters[tensor["dtype"]] += math.prod(tensor["shape"])
    return StoredWeights(size, parameters)
