"""Rows of the table `items` about one image, and the tables of a part that borrows nothing."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from carevl.store.ingested import Ingested
from carevl.store.schemas import BORROWED_CAPTIONS, IMAGES

NO_LOANS = {
    "borrowed": pa.Table.from_pylist([], IMAGES),
    "borrowed_captions": pa.Table.from_pylist([], BORROWED_CAPTIONS),
}
"""What processors read beside a part whose items show its own images alone."""


def about(image_id: str) -> dict[str, Any]:
    """The columns of an item whose only image stands before its question."""
    return {"images": [image_id], "places": [0], "turns": [], "sources": []}


def write_images(ingested: Ingested, number: int, images: pa.Table) -> None:
    """Write the images of a part that borrows nothing."""
    ingested.images.write(number, images)
    ingested.borrowed.write(number, images.slice(0, 0))
