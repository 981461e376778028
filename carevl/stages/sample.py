"""Stage `sample`: the phase-1 judge judges every low-confidence pair several times, in both orders.

Where the settings say so it also answers the bare question: what it sees when no response leads it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carevl.stages.base import PARTS, Counts, RunContext, Stage, phase2_members, reads_items, serving_inputs
from carevl.stages.sampling import (
    Item,
    Prompted,
    SamplingSpec,
    both_orders,
    judge_inputs,
    judge_items,
    judge_models,
    judge_reservations,
)

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings

VERSION = 2


def sampling_spec(settings: Settings) -> SamplingSpec:
    """Return what the phase-1 judge is asked."""
    prompts = _with_answer if settings.sample.answers else _low_pairs
    return SamplingSpec(prompts, settings.sample.samples, settings.sample.temperature, settings.seed)


def _low_pairs(item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
    del item
    low = [route for route in routes if route["route"] == "low"]
    return [prompted for route in low for prompted in both_orders(route["first"], route["second"])]


def _with_answer(item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
    pairs = _low_pairs(item, routes)
    return [*pairs, Prompted("answer", ())] if pairs else []


def run(context: RunContext) -> Counts:
    """Ask the phase-1 judge about every low-confidence pair."""
    [table] = context.pending
    judge, spec = context.trained_judge("sft"), sampling_spec(context.settings)
    return judge_items(context, table, judge, spec, context.table("route"), context.table(table))


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what judgments depend on, apart from items, routes and the phase-1 judge."""
    del root, table
    sample = settings.sample.model_dump()
    judge = {**judge_inputs(settings), **serving_inputs(settings, "sft")}
    return {"version": VERSION, "seed": settings.seed, "judge": judge, **sample}


def row_facts(cause: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a judgment depends on: not which pairs are judged."""
    facts = {name: cause.get(name) for name in ("version", "seed", "judge", "samples", "temperature")}
    return facts | {"sft": cause["inputs"]["sft"]}


STAGE = Stage(
    name="sample",
    members=phase2_members,
    inputs=reads_items("route", "sft"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=judge_reservations("sample"),
    models=judge_models,
    retryable="judge",
    row_facts=row_facts,
    contents=PARTS,
)
