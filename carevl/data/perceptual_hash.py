"""The signature of an image, in 200 bytes: enough to find what may be its near-duplicates, and to rule out most others.

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
class ImageSignature:
    """Width and height in pixels, a 64-bit perceptual hash, and the mean colours of 8 x 8 cells (192 bytes of RGB)."""

    width: int
    height: int
    hash: int
    thumbnail: bytes


def signature_of(image: Image.Image) -> ImageSignature:
    """Return the signature of an RGB image that stands upright. Equal pixels have equal signatures."""
    points = image.resize((min(image.width, _POINTS), min(image.height, _POINTS)), Image.Resampling.NEAREST)
    small = points.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    bits = np.packbits(imagehash.phash(small).hash).tobytes()
    thumbnail = small.resize((CELLS, CELLS), Image.Resampling.BOX).tobytes()
    return ImageSignature(*image.size, int.from_bytes(bits), thumbnail)


def may_be_near_duplicates(first: ImageSignature, second: ImageSignature) -> bool:
    """Tell whether one image may be the other resized, compressed anew or cropped a little: its pixels decide."""
    if (first.hash ^ second.hash).bit_count() > MOST_BITS:
        return False
    return bool(thumbnails_agree(np.frombuffer(first.thumbnail, np.uint8), np.frombuffer(second.thumbnail, np.uint8)))


def thumbnails_agree(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell whether thumbnails agree, bool [...] of uint8 [..., 192]; the last axis holds one thumbnail each."""
    difference = np.maximum(first, second) - np.minimum(first, second)  # of unsigned numbers: a plain one would wrap
    agree: NDArray[np.bool_] = difference.max(axis=-1) <= MOST_COLOUR
    return agree
