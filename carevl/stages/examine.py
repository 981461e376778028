"""Stages `choice` and `examine/…`: whether a round of phase 2 helped, on labelled pairs that serve nothing else.

Which pairs is settled before any model runs. A judge is right about one where the right verdict is more probable than
the wrong one in both orders, as at the checkpoints of a training that has `dev_pairs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.cluster.resources import for_pool
from carevl.models.judge_spec import asking_of
from carevl.stages.base import Counts, RunContext, Stage, item_inputs, judge_pixels, pixel_inputs
from carevl.stages.dpo import ReferenceProcessor, reference_job, reference_models
from carevl.stages.route import label_facts
from carevl.stages.train_rows import write_dev

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings
    from carevl.store.table import Table

VERSION = 1
EXAMINE = "examine"
_KEPT = ["item_id", "prompt", "chosen", "rejected", "reference_chosen", "reference_rejected", "error"]


def choose_pairs(context: RunContext) -> Counts:
    """Write the labelled pairs, a row for each order.

    Raises:
        RunError: there is none of which one response is better.
    """
    [table] = context.pending
    target = context.table(table)
    numbers = write_dev(context.settings, context.ingested, None, target, setting="rounds", without=1)
    n_rows = sum(target.read(number, ["item_id"]).num_rows for number in numbers)
    return {table: {"rows_in": n_rows, "rows_out": n_rows, "errors": 0}}


def choice_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what the pairs depend on, apart from the items."""
    del root, table
    asking = asking_of(settings.judge).model_dump(mode="json", exclude_defaults=True)
    return {"version": VERSION, "seed": settings.seed, "asking": asking, **label_facts(settings)}


CHOICE = Stage(
    name="choice",
    inputs=lambda settings, table: item_inputs(settings),
    fingerprint_inputs=choice_inputs,
    run=choose_pairs,
)


@dataclass
class ExamineProcessor(ReferenceProcessor):
    """Turns a part of labelled pairs into a judge's log-probabilities of right and wrong verdicts."""

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        return super().process(tables).select(_KEPT)


def count_right(answers: Table) -> tuple[int, int]:
    """Return the pairs of which a judge could be asked in both orders, and those that it is right about in both."""
    right: dict[str, bool] = {}
    unread: set[str] = set()
    for number in answers.parts():
        for row in answers.read(number, ["item_id", "reference_chosen", "reference_rejected"]).to_pylist():
            name, probable, other = row.values()
            if probable is None:
                unread.add(name)
            else:
                right[name] = right.get(name, True) and probable > other
    of_pairs = [is_right for name, is_right in right.items() if name not in unread]
    return len(of_pairs), sum(of_pairs)


def examine(context: RunContext) -> Counts:
    """Ask the judge that the last training made about the labelled pairs."""
    [table] = context.pending
    settings, pairs, target = context.settings, context.table("choice"), context.table(table)
    weights, adapter = context.start_of("dpo")  # of a round after this training
    processor = ExamineProcessor(weights, settings.dpo, adapter, judge_pixels(settings), asking_of(settings.judge))
    counts = context.run_pools([reference_job(table, processor, settings.judge.pool, pairs, target)], pairs.parts())
    n_pairs, n_right = count_right(target)
    context.log_for(table)(f"{n_right} of {n_pairs} labelled pairs right in both orders")
    return {table: {**counts[table], "pairs": n_pairs, "right": n_right}}


def examine_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what a judge's answers depend on, apart from its weights and the pairs."""
    del root, table
    computed = settings.dpo.model_dump(mode="json", include={"dtype", "batch_tokens"})
    return {"version": VERSION, **computed, "bits": settings.dpo.base_bits, **pixel_inputs(settings)}


def examine_stage(judge: str, phase: str) -> Stage:
    """Return the stage that examines the judge of a training.

    Args:
        judge: its name.
        phase: the table of the training.
    """

    def members(settings: Settings) -> Sequence[str]:
        del settings
        return (judge,)

    def reservations(settings: Settings) -> list[Reservation]:
        return [for_pool(f"{EXAMINE}/{judge}", "judge.pool", settings.judge.pool)]

    return Stage(
        name=EXAMINE,
        members=members,
        inputs=lambda settings, table: {"choice": "choice", "judge": phase},
        fingerprint_inputs=examine_inputs,
        run=examine,
        reservations=reservations,
        models=reference_models,
    )
