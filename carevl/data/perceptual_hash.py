"""What an image looks like, in 200 bytes: enough to find its near-duplicates, and to rule out most others.

The hash is `phash` of the library imagehash, the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions" (2010): of the brightness of 32 x 32 cells, one bit for each of the 8 x 8 lowest frequencies. It
knows no colour and no small parts, so the mean colours of 8 x 8 cells have to agree as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

CELLS = 8
"""Rows and columns of the thumbnail."""
MOST_BITS = 6
"""Hashes of near-duplicates differ in at most this many of 64 bits."""
MOST_COLOUR = 24
"""No channel of any cell of near-duplicates differs by more, of 255."""

_SIDE = 32
"""Cells in a row that imagehash looks at; an image of this size is not resized again."""
_POINTS = 160
"""Most points looked at on either side: the mean of 25 points of a cell is close to the mean of all, and cheaper."""


@dataclass(frozen=True)
class Look:
    """Width and height in pixels, a 64-bit perceptual hash, and the mean colours of 8 x 8 cells (192 bytes of RGB)."""

    width: int
    height: int
    hash: int
    thumbnail: bytes


def look_at(image: Image.Image) -> Look:
    """The look of an RGB image that stands upright. Equal pixels have equal looks."""
    points = image.resize((min(image.width, _POINTS), min(image.height, _POINTS)), Image.Resampling.NEAREST)
    small = points.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    bits = np.packbits(imagehash.phash(small).hash).tobytes()
    thumbnail = small.resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()
    return Look(*image.size, int.from_bytes(bits), thumbnail)


def near(one: Look, two: Look) -> bool:
    """Whether two images are near-duplicates: one resized, compressed anew or lightly retouched."""
    if (one.hash ^ two.hash).bit_count() > MOST_BITS:
        return False
    return bool(alike(np.frombuffer(one.thumbnail, np.uint8), np.frombuffer(two.thumbnail, np.uint8)))


def alike(one: NDArray[np.uint8], two: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether thumbnails agree; the last axis holds one thumbnail each."""
    difference = np.maximum(one, two) - np.minimum(one, two)
    agree: NDArray[np.bool_] = difference.max(axis=-1) <= MOST_COLOUR
    return agree
