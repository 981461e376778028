"""Stage `sft`, phase 1: the judge imitates the targets."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from carevl.cluster.resources import for_workers
from carevl.data.drawn import DataRoot
from carevl.models.judge_spec import asking_of
from carevl.models.locate import weights_fingerprint
from carevl.stages import judge_sets
from carevl.stages.base import (
    Counts,
    LoadedModel,
    RunContext,
    Stage,
    asking_inputs,
    in_training,
    judge_pixels,
    pixel_inputs,
    reads_items,
)
from carevl.stages.ingest import limits_of
from carevl.stages.injected_lines import inject_lines
from carevl.stages.train_rows import (
    TRAINED_FILES,
    batch_token_facts,
    find_equal_training,
    training_counts,
    training_inputs,
    write_dev_parts,
    write_rows,
)
from carevl.store.run import RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.cluster.resources import Reservation
    from carevl.settings.tree import Settings
    from carevl.store.ingested import Ingested


def run(context: RunContext) -> Counts:
    """Train the judge on the targets.

    Raises:
        RunError: there is no target at all.
    """
    [table] = context.pending
    settings, directory = context.settings, context.table(table).directory
    rows = Table(directory / "rows")
    targets = context.table("demonstrate", "targets")
    filled = write_targets(targets, context.ingested, rows, settings.sft.injected_share, settings.seed)
    filled += judge_sets.write_judge_sets(
        settings.data.judge_sets,
        DataRoot.of(settings, context.run),
        rows,
        max(targets.parts(), default=-1) + 1,
        limits_of(settings.data),
        settings.max_error_fraction,
        context.log_for(table),
    )
    if not filled:
        raise RunError(
            "sft: no judgment of the base judge agrees with a high-confidence label in both orders, so there is "
            "nothing to learn from; raise demonstrate.samples, or begin with a judge that writes verdicts: "
            "`carevl check` shows how it is asked"
        )
    from carevl.training.driver import train

    files = [rows.part(number) for number in filled]
    dev = write_dev_parts(settings, settings.sft, context.ingested, directory)
    progress, log = context.training_progress(table), context.log_for(table)
    facts = batch_token_facts(context.keys[table], settings.sft, log)
    trained = train(
        "sft",
        files,
        settings.judge.path,
        directory,
        settings.sft,
        revision=settings.judge.revision,
        dev=dev,
        resize_pixels=judge_pixels(settings),
        asking=asking_of(settings.judge),
        trust_remote_code=settings.judge.trust_remote_code,
        on_progress=progress,
        log=log,
        stall_seconds=settings.cluster.stall_seconds,
    )
    if trained.rounding is not None:
        log(trained.rounding.line())
    return {table: training_counts(trained) | facts}


def write_targets(targets: Table, ingested: Ingested, rows: Table, injected_share: float, seed: int) -> list[int]:
    """Join images to the targets, and lines to some of their prompts; return the parts that have rows."""
    inject = partial(inject_lines, share=injected_share, seed=seed) if injected_share else None
    return write_rows(targets, {"prompt": "prompt", "target": "text"}, ingested, rows, inject)


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what phase 1 depends on, apart from its targets."""
    del table
    judge = {"weights": weights_fingerprint(settings.judge.path, settings.judge.revision), **asking_inputs(settings)}
    training = training_inputs(settings.sft) | pixel_inputs(settings)
    return {"judge": judge, "training": training, **judge_sets.facts(settings.data.judge_sets, root)}


def reservations(settings: Settings) -> list[Reservation]:
    """Return what the workers reserve."""
    return [for_workers("sft", "sft.workers", settings.sft.workers)]


def models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the judge that is trained."""
    del table
    return [in_training("judge", settings.judge, "sft", settings.sft)]


STAGE = Stage(
    name="sft",
    inputs=reads_items("demonstrate"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=reservations,
    models=models,
    find_equal=find_equal_training,
    contents=TRAINED_FILES,
)
