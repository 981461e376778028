"""In which format a model's weights are stored."""

from __future__ import annotations

import json
import struct
from collections import Counter
from functools import cache
from pathlib import Path

_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@cache
def stored_dtype(model: Path) -> str | None:
    """Return the torch format that most weights of a directory have, such as `bfloat16`, from the files' headers.

    Returns:
        None where there are no weights.
    """
    sizes: Counter[str] = Counter()
    for file in model.glob("*.safetensors"):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                sizes[tensor["dtype"]] += end - start
    if not sizes:
        return None
    most = sizes.most_common(1)[0][0]
    return _NAMES.get(most, most)
