"""Tables of versions whose items had one image and no turns: they are read as if this version had written them."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from carevl.store.parts import read_names
from carevl.store.schemas import ITEMS
from carevl.store.table import Table

_ADDED = ("images", "places", "turns")
"""Columns of items that stand for the column `image_id` of before."""


class ItemTable(Table):
    """The table `items`."""

    def read(self, number: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return one part, or all of them in order, as `Table.read`."""
        numbers = self.parts() if number is None else [number]
        return pa.concat_tables([self._read_part(n, columns) for n in numbers], promote_options="permissive")

    def _read_part(self, number: int, columns: list[str] | None) -> pa.Table:
        if "images" in read_names(self.part(number)):
            return super().read(number, columns)
        names = list(ITEMS.names) if columns is None else columns
        stored = [name for name in names if name not in _ADDED]
        rows = super().read(number, [*stored, "image_id"])
        one = rows["image_id"].is_valid().to_numpy(zero_copy_only=False)
        lists = {
            "images": [[name] if name else [] for name in rows["image_id"].to_pylist()],
            "places": [[0] if shown else [] for shown in one],
            "turns": [[]] * len(rows),
        }
        added = {name: pa.array(lists[name], ITEMS.field(name).type) for name in _ADDED}
        return pa.table({name: added[name] if name in added else rows[name] for name in names})


@dataclass(frozen=True)
class LoanTable(Table):
    """A table of what parts borrow, which reads as empty where a version wrote none."""

    schema: pa.Schema

    def read(self, number: int | None = None, columns: list[str] | None = None) -> pa.Table:
        """Return one part, or all of them in order, as `Table.read`."""
        if self.directory.is_dir():
            return super().read(number, columns)
        empty = self.schema.empty_table()
        return empty if columns is None else empty.select(columns)


def with_places(rows: pa.Table) -> pa.Table:
    """Return rows of TARGETS or PAIRS with the places of their images, which a version before did not write."""
    if "places" in rows.column_names:
        return rows
    return rows.append_column("places", pa.array([[0]] * len(rows), pa.list_(pa.int32())))


def with_tasks(pairs: pa.Table) -> pa.Table:
    """Return rows of PAIRS with their tasks and losers; a version before wrote those of pairwise prompts alone."""
    if "task" in pairs.column_names:
        return pairs
    rows = zip(pairs["order"].to_pylist(), pairs["winner"].to_pylist(), strict=True)
    losers = pa.array([sum(order) - winner for order, winner in rows], pa.int32())
    tasks = pa.array(["pairwise"] * len(pairs), pa.string())
    return pairs.append_column("task", tasks).append_column("loser", losers)
