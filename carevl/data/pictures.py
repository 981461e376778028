"""Pictures of the rows of a table of images: decoded where they are needed, or ahead of that by a preparer."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
from PIL import Image

from carevl.data.images import ImageLimits, decode_rgb
from carevl.data.rows import RowError
from carevl.store.schemas import RGB

INGESTED = ImageLimits(max_image_pixels=sys.maxsize)
"""The limits of images that ingest has let in."""


def picture(row: Mapping[str, Any], limits: ImageLimits = INGESTED, resize_pixels: int | None = None) -> Image.Image:
    """Return the picture of a row, upright, as 8-bit RGB.

    Args:
        resize_pixels: as for `decode_rgb`; a column `rgb` was made with the same.

    Raises:
        RowError: as `decode_rgb`.
    """
    rgb = row.get("rgb")
    if rgb is None:
        return decode_rgb(row["bytes"], limits, resize_pixels)
    return Image.frombuffer("RGB", (rgb["width"], rgb["height"]), rgb["pixels"], "raw", "RGB", 0, 1)


def shown_images(tables: Mapping[str, pa.Table]) -> pa.Table:
    """Return the images that a part's items show: those of the part, and those that it borrows."""
    return pa.concat_tables([tables["images"], tables["borrowed"]], promote_options="permissive")


def decode_shown(
    tables: Mapping[str, pa.Table], needed: Collection[str] | None = None, resize_pixels: int | None = None
) -> dict[str, pa.Table]:
    """Return a part's tables with the pictures of `shown_images` decoded, as `decode_images` does it."""
    images = decode_images(shown_images(tables), needed, resize_pixels=resize_pixels)
    return {**tables, "images": images, "borrowed": images.slice(0, 0)}


def decode_images(
    images: pa.Table,
    needed: Collection[str] | None = None,
    limits: ImageLimits = INGESTED,
    key: str = "image_id",
    resize_pixels: int | None = None,
) -> pa.Table:
    """Return the table with a column `rgb` that `picture` reads. Bytes remain only of images that do not decode.

    Args:
        needed: keys of the images whose pixels are read; all of them when None.
        resize_pixels: as for `decode_rgb`.
    """
    pixels, kept = [], []
    for row in images.select([key, "bytes"]).to_pylist():
        rgb, left = None, None
        if needed is None or row[key] in needed:
            rgb = _rgb(row["bytes"], limits, resize_pixels)
            left = row["bytes"] if rgb is None else None
        pixels.append(rgb)
        kept.append(left)
    place = images.column_names.index("bytes")
    images = images.set_column(place, "bytes", pa.array(kept, pa.large_binary()))
    return images.append_column("rgb", pa.array(pixels, RGB))


def _rgb(data: bytes | None, limits: ImageLimits, resize_pixels: int | None) -> dict[str, Any] | None:
    try:
        image = decode_rgb(data or b"", limits, resize_pixels)
    except RowError:
        return None
    return {"width": image.width, "height": image.height, "pixels": image.tobytes()}
