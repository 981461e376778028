"""The ceiling of phase 2: what it learns where every low pair has its true label, in a drawn world."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.data.truth import label_outcome
from carevl.pipeline.results import drawn_truths
from carevl.stages import route_low
from carevl.stages.base import Counts, RunContext, reads_items
from carevl.store.run import RunError
from carevl.store.schemas import ROUTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from carevl.data.drawn import DataRoot
    from carevl.data.truth import Truth
    from carevl.settings.tree import Settings

VERSION = 1
_ITEMS = ["item_id", "images", "question", "responses", "gold"]
_WINS = {"right": "first", "wrong": "second"}
"""Outcome of the first response's label to the column that names the winner."""


def true_labels(items: pa.Table, routes: pa.Table, truths: Mapping[tuple[str, str], Truth]) -> pa.Table:
    """Return the low pairs of unlabelled items: high with the true winner, low where there is none. ROUTES."""
    of_item = {row["item_id"]: row for row in items.select(_ITEMS).to_pylist() if row["gold"] is None}
    rows = []
    for row in routes.filter(pc.equal(routes["route"].cast(pa.string()), "low")).to_pylist():
        item = of_item.get(row["item_id"])
        outcome = None if item is None else label_outcome(truths, item, row["first"], row["second"])
        if outcome in _WINS:
            winner = row[_WINS[outcome]]
            probability = np.float32(winner == row["first"]).item()
            row |= {"route": "high", "winner": winner, "probability": probability, "reason": "above_threshold"}
        if item is not None:
            rows.append(row)
    return pa.Table.from_pylist(rows, ROUTES)


def _run(context: RunContext) -> Counts:
    [table] = context.pending
    items, routes, target = context.ingested.items, context.table("route"), context.table(table)
    truths = drawn_truths(context.settings, context.run)
    if not truths:
        raise RunError("compare: the arm oracle reads the truth of a drawn world, and no source is one; leave it out")
    counts = {"rows_in": 0, "rows_out": 0, "errors": 0}
    for number in items.parts():
        labelled = true_labels(items.read(number, _ITEMS), routes.read(number), truths)
        target.write(number, labelled)
        counts = {name: n + (name != "errors") * labelled.num_rows for name, n in counts.items()}
    return {table: counts}


def _fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    del settings, root, table
    return {"oracle": VERSION}


STAGE = replace(
    route_low.STAGE,
    inputs=reads_items(route="route"),
    fingerprint_inputs=_fingerprint_inputs,
    run=_run,
    directory="compare/oracle",
)
"""In place of `route_low`."""
