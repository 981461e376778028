"""The tables of ingest: two in one directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from carevl.store.schemas import CONTAMINATED
from carevl.store.table import Table


@dataclass(frozen=True)
class Ingested:
    """The two tables of the stage, in one directory with one manifest."""

    directory: Path

    @property
    def images(self) -> Table:
        """One row per distinct image."""
        return Table(self.directory / "images")

    @property
    def items(self) -> Table:
        """One row per distinct item."""
        return Table(self.directory / "items")

    def failed(self) -> set[str]:
        """Return the ids of the items that could not be read; those set aside as contaminated are not among them."""
        return {
            row["item_id"]
            for row in self.items.read(columns=["item_id", "error"]).to_pylist()
            if row["error"] is not None and row["error"]["kind"] != CONTAMINATED
        }
