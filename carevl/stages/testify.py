"""Stage `testify`: what the phase-1 judge sees in an item with low pairs, when no response leads it on.

Labelled items testify, too, those of the images that the router of low pairs is fitted and tested on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carevl.confidence.label_shares import serves
from carevl.settings.router import LabelShares
from carevl.stages.base import PARTS, Counts, RunContext, Stage, reads_items, serving_inputs, testimony_members
from carevl.stages.route import label_facts
from carevl.stages.sampling import (
    Item,
    Prompted,
    SamplingSpec,
    judge_inputs,
    judge_items,
    judge_models,
    judge_reservations,
)

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings

VERSION = 1


@dataclass(frozen=True)
class _Ask:
    """What is asked about an item: once, whatever its pairs, where any is low."""

    words: str
    shares: LabelShares | None
    seed: int

    def __call__(self, item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
        if not item["images"] or not any(route["route"] == "low" for route in routes):
            return []
        if item["gold"] is not None and not serves(item["images"][0], "low_router", self.shares, self.seed):
            return []
        return [Prompted("testimony", (), self.words)]


def testimony_spec(settings: Settings) -> SamplingSpec:
    """Return what the phase-1 judge is asked."""
    testify = settings.testify
    ask = _Ask(testify.prompt, settings.labels, settings.router.seed)
    return SamplingSpec(ask, testify.samples, testify.temperature, settings.seed, labelled=True)


def run(context: RunContext) -> Counts:
    """Ask the phase-1 judge about every item with low pairs."""
    [table] = context.pending
    judge, spec = context.trained_judge("sft"), testimony_spec(context.settings)
    return judge_items(context, table, judge, spec, context.table("route"), context.table(table))


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what testimony depends on, apart from items, routes and the phase-1 judge."""
    del root, table
    judge = {**judge_inputs(settings), **serving_inputs(settings, "sft")}
    asked = {**label_facts(settings), **settings.testify.model_dump()}
    return {"version": VERSION, "seed": settings.seed, "judge": judge, **asked}


def row_facts(cause: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a testimony depends on: not who testifies."""
    facts = {name: cause.get(name) for name in ("version", "seed", "judge", "samples", "temperature", "prompt")}
    return facts | {"sft": cause["inputs"]["sft"]}


STAGE = Stage(
    name="testify",
    members=testimony_members,
    inputs=reads_items("route", "sft"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=judge_reservations("testify"),
    models=judge_models,
    retryable="judge",
    row_facts=row_facts,
    contents=PARTS,
)
