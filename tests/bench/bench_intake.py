"""Image intake against plain Pillow on the same images: `python tests/bench/bench_intake.py [DIRECTORY]`.

Prints two JSON lines. Each image of the directory (drawn ones where there is none) is decoded by all sides in turn on
one thread; its time is the fastest of the rounds, in CPU seconds. The value is Pillow's time for all images over
intake's, 1.0 meaning no overhead. Intake hashes the bytes, checks the caps, decodes and reads the orientation; with
looks it also makes the perceptual hash and the thumbnail that near-duplicates are found by. Pillow opens and loads.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from carevl.data.images import ImageLimits, examine, identify
from carevl.data.perceptual_hash import signature_of

ROUNDS = 15
PHOTOS = Path(__file__).parents[2].parent / "shared" / "data" / "photos"


def drawn() -> list[bytes]:
    """Ten JPEG pictures of 640 x 480 pixels with the detail of a photograph."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((640, 480))
        grain = rng.integers(-12, 13, (480, 640, 3))
        pixels = np.clip(np.asarray(coarse).astype(int) + grain, 0, 255).astype(np.uint8)
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "JPEG", quality=90)
        pictures.append(data.getvalue())
    return pictures


def seconds(decode: Callable[[bytes], object], data: bytes) -> float:
    started = time.process_time()
    decode(data)
    return time.process_time() - started


def plain(data: bytes) -> None:
    Image.open(io.BytesIO(data)).load()


def main(directory: Path) -> None:
    images = [path.read_bytes() for path in sorted(directory.glob("*.jpg"))] or drawn()
    limits = ImageLimits()
    sides: dict[str, Callable[[bytes], object]] = {
        "pillow": plain,
        "intake_share": lambda data: identify(data, limits),
        "intake_with_looks_share": lambda data: signature_of(examine(data, limits)[1]),
    }
    total = dict.fromkeys(sides, 0.0)
    for data in images:
        rounds = [[seconds(decode, data) for decode in sides.values()] for _ in range(ROUNDS)]
        for name, times in zip(sides, zip(*rounds, strict=True), strict=True):
            total[name] += min(times)
    for name in list(sides)[1:]:
        share = round(total["pillow"] / total[name], 3)
        figure = {
            "figure": name,
            "value": share,
            "unit": "share of Pillow's images/s",
            "peer": f"Pillow {PIL.__version__} open and load",
            "ratio": share,
            "goal": 0.9,
            "images": len(images),
            "images_per_second": round(len(images) / total[name], 1),
        }
        print(json.dumps(figure))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PHOTOS)
