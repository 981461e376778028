"""Finds images of one picture among any number: signatures lie in a file, memory holds some 30 bytes for each image.

Signatures say which pairs may be of one picture, pixels which of them are.

Near-duplicates are searched by sorted neighbourhoods (Hernandez and Stolfo, SIGMOD 1995): in each of eight sort orders,
by the hash turned by 0, 8, … 56 bits, an image is compared with the next few. Two hashes that differ in a few bits
begin alike in one of the orders. Where more images than that have nearly the same hash, some pairs are not compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from carevl.data.perceptual_hash import CELLS, MOST_BITS, ImageSignature, thumbnails_agree
from carevl.data.pixel_comparison import View, show_the_same, view_of

_TURNS = range(0, 64, 8)
_NEIGHBOURS = 12
_AT_ONCE = 1 << 16
_MOST_CANDIDATES = 4
_SIGNATURE = np.dtype([("image", ">u8", 4), ("hash", "<u8"), ("thumbnail", "u1", (CELLS * CELLS * 3,))])


class NearDuplicates:
    """Collects signatures in a file, then says which images may be of one picture. An image may come several times."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._sink = file.open("wb")

    def add(self, image_id: str, signature: ImageSignature) -> None:
        """Add an image by its `image_id`, 64 hexadecimal digits."""
        self._sink.write(bytes.fromhex(image_id) + signature.hash.to_bytes(8, "little") + signature.thumbnail)

    def candidates(self) -> tuple[int, dict[str, list[str]]]:
        """Return the number of distinct images, and image_id to those before it, by image_id, that it may be like.

        There are at most 4 of these, the most alike by their hashes first.
        """
        self._sink.close()
        if not self._file.stat().st_size:
            return 0, {}
        signatures = np.memmap(self._file, _SIGNATURE, "r")
        # The first 8 bytes of a SHA-256 tell images apart: among 10 million, two agree once in 400,000 times.
        _, rows = np.unique(signatures["image"][:, 0], return_index=True)
        hashes = signatures["hash"][rows].astype(np.uint64)
        earlier: dict[int, set[tuple[int, int]]] = {}
        for lower, higher in _similar_pairs(signatures["thumbnail"], rows, hashes):
            bits = int(np.bitwise_count(hashes[lower] ^ hashes[higher]))
            nearest = earlier.setdefault(higher, set())
            nearest.add((bits, lower))
            if len(nearest) > _MOST_CANDIDATES:
                nearest.remove(max(nearest))
        names = {n: signatures["image"][rows[n]].tobytes().hex() for n in {*earlier, *_members(earlier.values())}}
        return len(rows), {names[n]: [names[lower] for _, lower in sorted(earlier[n])] for n in sorted(earlier)}


def _members(pairs: Iterable[set[tuple[int, int]]]) -> Iterator[int]:
    return (lower for nearest in pairs for _, lower in nearest)


def confirm(
    candidates: Mapping[str, Sequence[str]], images: Iterable[tuple[str, Image.Image]], file: Path
) -> tuple[dict[str, str], int]:
    """Compare the pixels of candidates.

    Args:
        candidates: as `NearDuplicates` gives them.
        images: every image among them by its image_id, in any order, once or several times.
        file: where views of the images lie while they are compared; memory holds two.

    Returns:
        image_id to the image_id whose picture it has, and the number of pairs that were compared. An image that others
        are mapped to is mapped to none itself.
    """
    same: dict[str, str] = {}
    compared = 0
    with file.open("w+b") as store:
        places = _store_views(images, store)
        for image in sorted(candidates.keys() & places.keys()):
            # A candidate that was mapped stands for the image that it was mapped to, which may be another candidate.
            for other in dict.fromkeys(same.get(earlier, earlier) for earlier in candidates[image]):
                if other in places:
                    compared += 1
                    if show_the_same(_read_view(store, places[other]), _read_view(store, places[image])):
                        same[image] = other
                        break
    return same, compared


_Place = tuple[int, int, tuple[int, ...]]


def _store_views(images: Iterable[tuple[str, Image.Image]], store: BinaryIO) -> dict[str, _Place]:
    """Write views one behind another; return where each begins, its bytes as they lie there, and its shape."""
    places: dict[str, _Place] = {}
    for name, image in images:
        if name not in places:
            view = view_of(image)
            packed = zlib.compress(view.tobytes(), 1)
            places[name] = store.tell(), len(packed), view.shape
            store.write(packed)
    return places


def _read_view(store: BinaryIO, place: _Place) -> View:
    start, size, shape = place
    store.seek(start)
    return np.frombuffer(zlib.decompress(store.read(size)), np.uint8).reshape(shape)


def _similar_pairs(
    thumbnails: NDArray[np.uint8], rows: NDArray[np.intp], hashes: NDArray[np.uint64]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of images that look alike, as (lower, higher) index; a pair may come several times."""
    for turn in _TURNS:
        turned = hashes << np.uint64(turn) | hashes >> np.uint64((64 - turn) % 64)
        order = np.argsort(turned, kind="stable")
        for step in range(1, min(_NEIGHBOURS, len(order) - 1) + 1):
            first, second = order[:-step], order[step:]
            close = np.flatnonzero(np.bitwise_count(hashes[first] ^ hashes[second]) <= MOST_BITS)
            for start in range(0, len(close), _AT_ONCE):
                block = close[start : start + _AT_ONCE]
                agree = thumbnails_agree(thumbnails[rows[first[block]]], thumbnails[rows[second[block]]])
                for pair in block[agree].tolist():
                    low, high = sorted((int(first[pair]), int(second[pair])))
                    yield low, high
