"""Stage `route`: which labels can be trusted. A pure function of items and scores, run again in seconds.

Every part is read twice: once to fit the router, which needs the labelled pairs and a sample of the others, and once
to route it. So memory is bounded by the labels and the largest part, not by the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.pairs import NO_CAPTION, Pairs
from carevl.confidence.policies import fit_router
from carevl.stages.base import PARTS, Counts, RunContext, Stage
from carevl.store.run import RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.router import RouterSettings
    from carevl.settings.tree import Settings

VERSION = 2
SAMPLE = 100_000
"""Most items without a label that scales and label model are read from."""
_ITEMS = ["item_id", "image_id", "responses", "source_preference", "gold", "error"]
_SCORES = ["item_id", "expert", "view", "scores"]


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what routing depends on, apart from items and scores."""
    del root, table
    return {"router": router_facts(settings.router)}


def router_facts(router: RouterSettings) -> dict[str, Any]:
    """Return the router's settings and version."""
    return {"version": VERSION, **router.model_dump(mode="json")}


def run_route(settings: Settings, items: Table, scores: Sequence[Table], target: Table) -> Mapping[str, Any]:
    """Fit the router on the labelled items, routes every pair, and writes the parts of `routes`.

    Returns:
        rows_in (items), rows_out (pairs), errors, pairs per route and reason, and the router's notes.

    Raises:
        RunError: the target precision cannot be guaranteed and the settings name no fallback policy.
    """
    fitting = read_fitting(items, scores, [expert.name for expert in settings.experts])
    try:
        router = fit_router(settings.router, fitting.labelled, fitting.unlabelled)
    except CannotCertifyError as error:
        raise RunError(f"route: {error}; or set router.fallback to a policy without a guarantee") from error
    routes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for number, batch in zip(items.parts(), router.route_stream(_parts(items, scores)), strict=True):
        target.write(number, pa.Table.from_batches([batch]))
        routes.update(batch["route"].to_pylist())
        reasons.update(batch["reason"].to_pylist())
    return {
        "rows_in": fitting.n_items,
        "rows_out": routes.total(),
        "errors": 0,
        "routes": dict(routes),
        "reasons": dict(reasons),
        "threshold": router.threshold,
        "notes": list(router.notes),
    }


@dataclass(frozen=True)
class Fitting:
    """What a router is fitted on: all pairs with labels, and those of about SAMPLE items without."""

    pairs: Pairs
    is_labelled: NDArray[np.bool_]
    """[n_pairs]"""
    n_items: int
    """Items in all the parts."""

    @property
    def labelled(self) -> Pairs | None:
        """The pairs of items with labels, None when there are none."""
        return self.pairs.select(self.is_labelled) if self.is_labelled.any() else None

    @property
    def unlabelled(self) -> Pairs | None:
        """The pairs of the other items, None when there are none."""
        return None if self.is_labelled.all() else self.pairs.select(~self.is_labelled)


def read_fitting(items: Table, scores: Sequence[Table], experts: Sequence[str]) -> Fitting:
    """Read every part once and keeps the items with labels and the first of the others.

    A part's items lie in the order of a hash, so the first of them are a fair sample.
    """
    views: set[str] = set()
    kept_items, kept_scores, n_items = [], [], 0
    most = -(-SAMPLE // max(1, len(items.parts())))
    for part_items, part_scores in _parts(items, scores):
        n_items += len(part_items)
        views.update(part_scores["view"].unique().to_pylist())
        labelled = part_items["gold"].is_valid().to_numpy()
        chosen = part_items.filter(pa.array(labelled | (np.cumsum(~labelled) <= most)))
        kept_items.append(chosen)
        kept_scores.append(part_scores.filter(pc.is_in(part_scores["item_id"], chosen["item_id"])))
    kept = pa.concat_tables(kept_items)
    pairs = Pairs.from_arrow(kept, pa.concat_tables(kept_scores), experts, sorted(views - {NO_CAPTION}))
    return Fitting(pairs, kept["gold"].is_valid().to_numpy()[pairs.item], n_items)


def _parts(items: Table, scores: Sequence[Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield items and scores of every part, in order."""
    for number in items.parts():
        yield items.read(number, _ITEMS), pa.concat_tables([table.read(number, _SCORES) for table in scores])


def run(context: RunContext) -> Counts:
    """Fit the router and route every pair."""
    [table] = context.pending
    scores = [context.table(f"score/{expert.name}") for expert in context.settings.experts]
    return {table: run_route(context.settings, context.ingested.items, scores, context.table(table))}


def inputs(settings: Settings, table: str) -> dict[str, str]:
    """Return the items and the scores of every expert."""
    del table
    return {name: name for name in ("ingest", *(f"score/{expert.name}" for expert in settings.experts))}


STAGE = Stage(name="route", inputs=inputs, fingerprint_inputs=fingerprint_inputs, run=run, contents=PARTS)
