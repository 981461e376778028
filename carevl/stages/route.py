"""Stage `route`: which labels can be trusted. A pure function of items and scores, run again in seconds.

Every part is read twice: once to fit the router, which needs the labelled pairs and a sample of the others, and once
to route it. So memory is bounded by the labels and the largest part, not by the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.label_shares import serving
from carevl.confidence.pairs import NO_CAPTION, Pairs
from carevl.confidence.policies import fit_router
from carevl.confidence.routing import drop_items
from carevl.stages.base import PARTS, Counts, RunContext, Stage, item_inputs
from carevl.stats.draws import hash_uniform
from carevl.store.run import RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.router import RouterSettings
    from carevl.settings.tree import Settings

VERSION = 2
SAMPLE = 100_000
"""Most items without a label that scales and label model are read from."""
_ITEMS = ["item_id", "images", "responses", "source_preference", "gold", "error"]
_SCORES = ["item_id", "expert", "view", "scores"]


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what routing depends on, apart from items and scores."""
    del root, table
    router, data = {"router": router_facts(settings.router), **label_facts(settings)}, settings.data
    if data.text_only_share == type(data).model_fields["text_only_share"].default:
        return router
    return {**router, "text_only_share": data.text_only_share, "seed": settings.seed}


def label_facts(settings: Settings) -> dict[str, Any]:
    """Return how labelled images are divided, where they are."""
    labels = settings.labels
    return {} if labels is None else {"labels": {**labels.model_dump(), "seed": settings.router.seed}}


def router_facts(router: RouterSettings) -> dict[str, Any]:
    """Return the router's settings and version."""
    return {"version": VERSION, **router.model_dump(mode="json")}


def run_route(
    settings: Settings,
    items: Table,
    scores: Sequence[Table],
    target: Table,
    log: Callable[[str], None] | None = None,
) -> Mapping[str, Any]:
    """Fit the router on the labelled items, routes every pair, and writes the parts of `routes`.

    Args:
        log: called with a line about items of text alone that are dropped.

    Returns:
        rows_in (items), rows_out (pairs), errors, pairs per route and reason, and the router's notes.

    Raises:
        RunError: the target precision cannot be guaranteed and the settings name no fallback policy; or all items to
            learn from are about text alone, and not all may be.
    """
    fitting = read_fitting(items, scores, [expert.name for expert in settings.caption_experts])
    keeps = choose_text_only(settings, fitting, log)
    try:
        router = fit_router(settings.router, fitting.labelled_for(settings), fitting.unlabelled)
    except CannotCertifyError as error:
        raise RunError(f"route: {error}; or set router.fallback to a policy without a guarantee") from error
    routes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for number in items.parts():
        block = _part(items, scores, number)
        [batch] = router.route_stream([block])
        batch = drop_items(batch, {name for name in _of_text(block[0]) if not keeps(name)}, "text_only_share")
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


def choose_text_only(settings: Settings, fitting: Fitting, log: Callable[[str], None] | None) -> Callable[[str], bool]:
    """Return which items of text alone are kept, by their id: as many as `data.text_only_share` allows, by chance.

    Raises:
        RunError: there are no others, and not all may be kept.
    """
    share, n_text, n_shown = settings.data.text_only_share, fitting.n_text, fitting.n_shown
    if share == 1 or not n_text:
        return lambda item_id: True
    if not n_shown:
        raise RunError(
            f"route: all {n_text} items are about text alone, and data.text_only_share = {share:g} of them may be; if "
            "a judge of texts is wanted, set it to 1; else see `carevl sources` for why no image was found"
        )
    kept = min(1.0, share / (1 - share) * n_shown / n_text)
    if kept < 1 and log:
        log(
            f"of {n_text} items about text alone some {round(n_text * kept)} are kept, as data.text_only_share = "
            f"{share:g} allows beside {n_shown} with images; the others are routed as dropped"
        )
    return lambda item_id: hash_uniform(settings.seed, item_id, "text only") < kept


def _of_text(items: pa.Table) -> list[str]:
    """Return the items to learn from that are about text alone."""
    is_text = pc.equal(pc.list_value_length(items["images"]), 0)
    names: list[str] = items["item_id"].filter(pc.and_(is_text, _is_learned(items))).to_pylist()
    return names


def _is_learned(items: pa.Table) -> pa.ChunkedArray:
    return pc.and_(items["error"].is_null(), items["gold"].is_null())


@dataclass(frozen=True)
class Fitting:
    """What a router is fitted on: all pairs with labels, and those of about SAMPLE items without."""

    pairs: Pairs
    is_labelled: NDArray[np.bool_]
    """[n_pairs]"""
    n_items: int
    """Items in all the parts."""
    n_text: int
    """Of those to learn from, the ones about text alone."""
    n_shown: int
    """And the ones about images."""

    @property
    def labelled(self) -> Pairs | None:
        """The pairs of items with labels, None when there are none."""
        return self.pairs.select(self.is_labelled) if self.is_labelled.any() else None

    def labelled_for(self, settings: Settings) -> Pairs | None:
        """Return the labelled pairs of those images that serve this router, None when there are none."""
        return self.labelled and serving("router", self.labelled, settings.labels, settings.router.seed)

    @property
    def unlabelled(self) -> Pairs | None:
        """The pairs of the other items, None when there are none."""
        return None if self.is_labelled.all() else self.pairs.select(~self.is_labelled)


def read_fitting(items: Table, scores: Sequence[Table], experts: Sequence[str]) -> Fitting:
    """Read every part once and keeps the items with labels and the first of the others.

    A part's items lie in the order of a hash, so the first of them are a fair sample.
    """
    views: set[str] = set()
    kept_items, kept_scores, n_items, n_text, n_learned = [], [], 0, 0, 0
    most = -(-SAMPLE // max(1, len(items.parts())))
    for part_items, part_scores in _parts(items, scores):
        n_items += len(part_items)
        n_text += len(_of_text(part_items))
        n_learned += pc.sum(_is_learned(part_items)).as_py() or 0
        views.update(part_scores["view"].unique().to_pylist())
        labelled = part_items["gold"].is_valid().to_numpy()
        chosen = part_items.filter(pa.array(labelled | (np.cumsum(~labelled) <= most)))
        kept_items.append(chosen)
        kept_scores.append(part_scores.filter(pc.is_in(part_scores["item_id"], chosen["item_id"])))
    kept = pa.concat_tables(kept_items)
    pairs = Pairs.from_arrow(kept, pa.concat_tables(kept_scores), experts, sorted(views - {NO_CAPTION}))
    is_labelled = kept["gold"].is_valid().to_numpy()[pairs.item]
    return Fitting(pairs, is_labelled, n_items, n_text, n_learned - n_text)


def _parts(items: Table, scores: Sequence[Table]) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield items and scores of every part, in order."""
    for number in items.parts():
        yield _part(items, scores, number)


def _part(items: Table, scores: Sequence[Table], number: int) -> tuple[pa.Table, pa.Table]:
    return items.read(number, _ITEMS), pa.concat_tables([table.read(number, _SCORES) for table in scores])


def run(context: RunContext) -> Counts:
    """Fit the router and route every pair."""
    [table] = context.pending
    scores = [context.table(f"score/{expert.name}") for expert in context.settings.caption_experts]
    items, target = context.ingested.items, context.table(table)
    return {table: run_route(context.settings, items, scores, target, context.log_for(table))}


def inputs(settings: Settings, table: str) -> dict[str, str]:
    """Return the items and the scores of every expert."""
    del table
    return item_inputs(settings) | {
        name: name for name in (f"score/{expert.name}" for expert in settings.caption_experts)
    }


STAGE = Stage(name="route", inputs=inputs, fingerprint_inputs=fingerprint_inputs, run=run, contents=PARTS)
