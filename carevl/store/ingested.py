"""The tables of ingest: three in one directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from carevl.store.earlier_versions import ItemTable, LoanTable
from carevl.store.schemas import BORROWED_CAPTIONS, CONTAMINATED, IMAGES
from carevl.store.table import Table


@dataclass(frozen=True)
class Ingested:
    """The tables of the stage, in one directory with one manifest.

    An item lies in the part of its first image, or, without any, in that of its own hash.
    """

    directory: Path

    @property
    def images(self) -> Table:
        """One row per distinct image."""
        return Table(self.directory / "images")

    @property
    def borrowed(self) -> Table:
        """The images that items show and that lie in the parts of others: one row for each of them and part."""
        return LoanTable(self.directory / "borrowed", IMAGES)

    @property
    def items(self) -> Table:
        """One row per distinct item."""
        return ItemTable(self.directory / "items")

    def read_images(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return every image that items of a part show."""
        return pa.concat_tables([table.read(number, columns) for table in (self.images, self.borrowed)])

    def failed(self) -> set[str]:
        """Return the ids of the items that could not be read; those set aside as contaminated are not among them."""
        return {
            row["item_id"]
            for row in self.items.read(columns=["item_id", "error"]).to_pylist()
            if row["error"] is not None and row["error"]["kind"] != CONTAMINATED
        }


def borrowed_captions(captions: Table) -> Table:
    """Return the captions of the images that parts borrow; they lie below all captions."""
    return LoanTable(captions.directory / "borrowed", BORROWED_CAPTIONS)
