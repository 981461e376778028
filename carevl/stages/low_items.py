"""Stages that ask the phase-1 judge about items with low pairs: what `testify` and `sample` have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from carevl.stages.base import PARTS, Counts, RunContext, Stage, reads_items, serving_inputs
from carevl.stages.sampling import SamplingSpec, judge_inputs, judge_items, judge_models, judge_reservations

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings


def phase1_stage(
    name: str,
    version: int,
    members: Callable[[Settings], Sequence[str]],
    spec: Callable[[Settings], SamplingSpec],
    asked: Callable[[Settings], Mapping[str, Any]],
    row_fields: Sequence[str],
) -> Stage:
    """Return a stage whose table has what the phase-1 judge writes about items with low pairs.

    Args:
        version: of what it asks.
        spec: settings to what the judge is asked.
        asked: settings to all else that its table depends on, beside items, routes, judge and seed.
        row_fields: those of `asked` that every row depends on, whichever items are asked about.
    """

    def run(context: RunContext) -> Counts:
        [table] = context.pending
        judge, routes = context.trained_judge(context.phases[-1]), context.table("route")
        return judge_items(context, table, judge, spec(context.settings), routes, context.table(table))

    def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
        del root, table
        judge = {**judge_inputs(settings), **serving_inputs(settings, "sft")}
        return {"version": version, "seed": settings.seed, "judge": judge, **asked(settings)}

    def row_facts(cause: Mapping[str, Any]) -> Mapping[str, Any]:
        facts = {field: cause.get(field) for field in ("version", "seed", "judge", *row_fields)}
        return facts | {"sft": cause["inputs"]["sft"]}

    return Stage(
        name=name,
        members=members,
        inputs=reads_items("route", "sft"),
        fingerprint_inputs=fingerprint_inputs,
        run=run,
        reservations=judge_reservations(name),
        models=judge_models,
        retryable="judge",
        row_facts=row_facts,
        contents=PARTS,
    )
