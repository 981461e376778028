"""Images and items: the tables of ingest, three in one directory, and items that have got their responses since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from carevl.store.earlier_versions import ItemTable, LoanTable
from carevl.store.run import Run
from carevl.store.schemas import BORROWED_CAPTIONS, IMAGES, SET_ASIDE, WRITERS
from carevl.store.table import Table


@dataclass(frozen=True)
class Ingested:
    """The tables of the stage, in one directory with one manifest.

    An item lies in the part of its first image, or, without any, in that of its own hash.

    Args:
        gathered: directory of the stage `gather`, whose items take the place of those of ingest; None where all
            sources have responses.
    """

    directory: Path
    gathered: Path | None = None

    @classmethod
    def of(cls, tables: Mapping[str, Table]) -> Ingested:
        """Return the tables of a run, by the names of its stages."""
        return cls(tables["ingest"].directory, tables["gather"].directory if "gather" in tables else None)

    @classmethod
    def behind(cls, run: Run, manifest: Mapping[str, Any]) -> Ingested:
        """Return the tables that one was made from, however many stages before; for ingest and gather, their own.

        Raises:
            RunError: one of the tables between them is gone.
        """
        source = dict(manifest)
        while (inputs := source["cause"].get("inputs")) and "ingest" not in inputs:
            source = run.origin(source, next(iter(inputs)))
        gathered = source if source["stage"] == "gather" else None
        if inputs and "gather" in inputs:
            gathered = run.origin(source, "gather")
        place = None if gathered is None else run.root / "gather" / gathered["fingerprint"]
        return cls(run.root / "ingest" / run.origin(source, "ingest")["fingerprint"], place)

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
        return ItemTable(self.gathered or self.directory / "items")

    @property
    def questions(self) -> Table:
        """The items as the sources have them: some may have no responses."""
        return ItemTable(self.directory / "items")

    @property
    def writers(self) -> Table:
        """Who wrote the responses that models were asked for."""
        return LoanTable((self.gathered or self.directory) / "writers", WRITERS)

    def read_images(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Return every image that items of a part show."""
        return pa.concat_tables([table.read(number, columns) for table in (self.images, self.borrowed)])

    def failed(self) -> set[str]:
        """Return the ids of the items that could not be read; those set aside are not among them."""
        return {
            row["item_id"]
            for row in self.questions.read(columns=["item_id", "error"]).to_pylist()
            if row["error"] is not None and row["error"]["kind"] not in SET_ASIDE
        }


def borrowed_captions(captions: Table) -> Table:
    """Return the captions of the images that parts borrow; they lie below all captions."""
    return LoanTable(captions.directory / "borrowed", BORROWED_CAPTIONS)
