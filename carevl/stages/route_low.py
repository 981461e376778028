"""Stage `route_low`: which labels of low pairs can be trusted once experts have read what the judge saw.

The router of the stage `route` once more, fitted on other labelled images and on low pairs alone. A trusted label
stands only where labelled pairs of the same group of questions are right as often as they have to be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from carevl.confidence.groups import Group, find_openings, judge_groups
from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.label_shares import serves
from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.confidence.routing import Router, reroute
from carevl.stages.base import PARTS, Counts, RunContext, Stage, item_inputs, testimony_members
from carevl.stages.route import SAMPLE, label_facts, router_facts
from carevl.stages.score_testimony import testimony_views
from carevl.store.run import RunError
from carevl.store.schemas import ROUTES

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings
    from carevl.store.table import Table

VERSION = 1
_ITEMS = ["item_id", "images", "question", "responses", "gold", "sources", "error"]
_SCORES = ["item_id", "expert", "view", "scores"]


@dataclass(frozen=True)
class LowPairs:
    """Low pairs with the scores of those who read testimony; of labelled ones those that this router may look at."""

    pairs: Pairs
    questions: Sequence[str]
    """[n_items]"""
    sources: Sequence[str]
    """[n_items]"""

    @property
    def is_labelled(self) -> NDArray[np.bool_]:
        """[n_pairs]"""
        return ~np.isnan(self.pairs.gold)

    def select(self, rows: NDArray[Any]) -> LowPairs:
        """Select pairs, with the items that they are of and no others: fitting holds what it needs of all parts."""
        pairs = self.pairs.select(rows)
        used, item = np.unique(pairs.item, return_inverse=True)
        ids = (pairs.item_id.take(pa.array(used)), pairs.image_id.take(pa.array(used)))
        pairs = replace(pairs, item_id=ids[0], image_id=ids[1], item=item.astype(np.int32))
        return LowPairs(pairs, [self.questions[n] for n in used], [self.sources[n] for n in used])

    def per_pair(self, values: Sequence[str]) -> list[str]:
        """Return the value of each pair's item."""
        return [values[item] for item in self.pairs.item]


@dataclass(frozen=True)
class LowTables:
    """Tables that low pairs are read from."""

    settings: Settings
    items: Table
    routes: Table
    scores: Sequence[Table]

    def read(self, number: int) -> LowPairs:
        """Read the low pairs of a part. Its pairs come in the order of its routes."""
        items = self.items.read(number, _ITEMS)
        scores = pa.concat_tables([table.read(number, _SCORES) for table in self.scores])
        experts = [expert.name for expert in self.settings.testimony_experts]
        pairs = Pairs.from_arrow(items, scores, experts, testimony_views(self.settings))
        low = pc.equal(self.routes.read(number, ["route"])["route"].cast(pa.string()), "low").to_numpy()
        shares, seed = self.settings.labels, self.settings.router.seed
        held = [serves(name, "low_router", shares, seed) for name in pairs.image_id.to_pylist()]
        mine = items["gold"].is_null().to_numpy() | np.array(held, dtype=np.bool_)
        sources = [rows[0]["source"] if rows else "" for rows in items["sources"].to_pylist()]
        whole = LowPairs(pairs, [text or "" for text in items["question"].to_pylist()], sources)
        return whole.select(low & mine[pairs.item])

    def parts(self) -> Iterator[LowPairs]:
        """Yield the low pairs of every part."""
        for number in self.items.parts():
            yield self.read(number)


@dataclass(frozen=True)
class LowFit:
    """A fitted router, with what labelled pairs say of groups."""

    router: Router
    groups: Mapping[str, Group] | None
    """None: no label says anything."""
    group_of: Callable[[LowPairs], list[str]]

    def facts(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        groups = {name or "other": asdict(group) for name, group in (self.groups or {}).items()}
        return {"threshold": self.router.threshold, "notes": list(self.router.notes), "groups": groups}

    def route(self, low: LowPairs, *, unlabelled: bool) -> pa.RecordBatch:
        """Return rows of ROUTES.

        Args:
            unlabelled: whether labels are trusted of which no labelled pair says anything.
        """
        routes = self.router.route(low.pairs)
        silent = np.isnan(low.pairs.margins).all(axis=(1, 2))
        routes = reroute(routes, pa.array(silent), "no_testimony")
        high = np.array(routes["route"].to_pylist(), dtype=object) == "high"
        if self.groups is None:
            return routes if unlabelled else reroute(routes, pa.array(high), "no_labels")
        verdicts = [self.groups[name].verdict if name in self.groups else "few_labels" for name in self.group_of(low)]
        for reason in ("few_labels", "group_below"):
            chosen = high & np.array([verdict == reason for verdict in verdicts], dtype=np.bool_)
            routes = reroute(routes, pa.array(chosen), reason)
        return routes


def fit(settings: Settings, tables: LowTables) -> LowFit | None:
    """Fit the router on the labelled low pairs and a sample of the others, and judge the groups; None without any pair.

    Raises:
        RunError: the target precision cannot be guaranteed, and the settings name no fallback policy.
    """
    chosen = settings.low_router
    most = -(-SAMPLE // max(1, len(tables.items.parts())))
    kept = [low.select(_first(low, most)) for low in tables.parts()]
    pairs = Pairs.concat([low.pairs for low in kept])
    if not len(pairs):
        return None
    questions = [text for low in kept for text in low.questions]
    seen = LowPairs(pairs, questions, [name for low in kept for name in low.sources])
    labelled = seen.select(seen.is_labelled) if seen.is_labelled.any() else None
    others = pairs.select(~seen.is_labelled) if not seen.is_labelled.all() else None
    try:
        router = fit_router(chosen, None if labelled is None else labelled.pairs, others)
    except CannotCertifyError as error:
        raise RunError(f"route_low: {error}; or set low_router.fallback to a policy without a guarantee") from error
    group_of = _grouping(chosen.group_by, labelled, chosen.group_labels)
    if labelled is None:
        return LowFit(router, None, group_of)
    trusted = np.array(router.route(labelled.pairs)["route"].to_pylist(), dtype=object) == "high"
    winners = router.ensemble.signals(labelled.pairs).winner
    names = [name for name, is_trusted in zip(group_of(labelled), trusted, strict=True) if is_trusted]
    right = (winners == labelled.pairs.gold)[trusted]
    return LowFit(router, judge_groups(names, right, chosen.precision, chosen.group_labels), group_of)


def _first(low: LowPairs, most: int) -> NDArray[np.bool_]:
    """Return which pairs a router is fitted on: labelled ones, and the first others."""
    labelled = low.is_labelled
    return labelled | (np.cumsum(~labelled) <= most)


def _grouping(by: str, labelled: LowPairs | None, least: int) -> Callable[[LowPairs], list[str]]:
    if by == "source":
        return lambda low: low.per_pair(low.sources)
    if by == "none" or labelled is None:
        return lambda low: [""] * len(low.pairs)
    opening = find_openings(labelled.per_pair(labelled.questions), least)
    return lambda low: [opening(question) for question in low.per_pair(low.questions)]


def run(context: RunContext) -> Counts:
    """Fit the router and route every low pair again."""
    [table] = context.pending
    settings, target = context.settings, context.table(table)
    scores = [context.table(f"score_testimony/{expert.name}") for expert in settings.testimony_experts]
    tables = LowTables(settings, context.ingested.items, context.table("route"), scores)
    fitted = fit(settings, tables)
    routes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for number in tables.items.parts():
        low = tables.read(number)
        batches = (
            [fitted.route(low, unlabelled=settings.low_router.without_labels)] if fitted and len(low.pairs) else []
        )
        rows = pa.Table.from_batches(batches, ROUTES)
        target.write(number, rows)
        routes.update(rows["route"].to_pylist())
        reasons.update(rows["reason"].to_pylist())
    counts = {"rows_in": routes.total(), "rows_out": routes.total(), "errors": 0}
    facts = {"routes": dict(routes), "reasons": dict(reasons)}
    return {table: counts | facts | ({} if fitted is None else fitted.facts())}


def inputs(settings: Settings, table: str) -> dict[str, str]:
    """Return the items, their routes, and the scores of every expert that read testimony."""
    del table
    scores = (f"score_testimony/{expert.name}" for expert in settings.testimony_experts)
    return item_inputs(settings) | {name: name for name in ("route", *scores)}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what routing depends on, apart from items, routes and scores."""
    del root, table
    return {"low_version": VERSION, "router": router_facts(settings.low_router), **label_facts(settings)}


STAGE = Stage(
    name="route_low",
    members=testimony_members,
    inputs=inputs,
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    contents=PARTS,
)
