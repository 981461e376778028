"""Stage `dpo`, phase 2: the judge prefers chosen to rejected judgments, with phase-1 targets mixed into every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.cluster.jobs import PoolJob, Processor
from carevl.cluster.resources import for_pool, for_workers
from carevl.models.judge_spec import asking_of
from carevl.models.locate import Weights
from carevl.models.own_code import trust_own_code
from carevl.stages.base import (
    Counts,
    LoadedModel,
    RunContext,
    Stage,
    in_training,
    judge_pixels,
    keeps_adapter,
    phase2_members,
    pixel_inputs,
    reads,
)
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
    from carevl.data.drawn import DataRoot
    from carevl.settings.asking import Asking
    from carevl.settings.models import Pool
    from carevl.settings.training import Training
    from carevl.settings.tree import Settings
    from carevl.training.reference import Reference


def run(context: RunContext) -> Counts:
    """Add the log-probabilities of the judge before to the pairs, and train it on them.

    Raises:
        RunError: there is no pair at all.
    """
    [table] = context.pending
    settings, directory = context.settings, context.table(table).directory
    columns = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
    rows, referenced = Table(directory / "rows"), Table(directory / "reference")
    filled = write_rows(context.table("select"), columns, context.ingested, rows)
    if not filled:
        raise RunError(
            "dpo: no pair of judgments was selected, so there is nothing to prefer; lower select.min_gap, or raise "
            "sample.samples or sample.temperature so that judgments differ"
        )
    pixels = judge_pixels(settings)
    judge, adapter = context.start_of("dpo")
    files = [rows.part(number) for number in filled]
    if _has_pool(settings):
        processor = ReferenceProcessor(judge, settings.dpo, adapter, pixels, asking_of(settings.judge))
        context.run_pools([reference_job("reference", processor, settings.judge.pool, rows, referenced)], filled)
        files = [referenced.part(number) for number in filled]
    from carevl.training.driver import train

    targets = Table(context.table("sft").directory / "rows")
    replay = [targets.part(number) for number in targets.parts()]
    dev = write_dev_parts(settings, settings.dpo, context.ingested, directory)
    progress, log = context.training_progress(table), context.log_for(table)
    facts = batch_token_facts(context.keys[table], settings.dpo, log)
    trained = train(
        "dpo",
        files,
        judge.path,
        directory,
        settings.dpo,
        revision=judge.revision,
        adapter=adapter,
        replay=replay,
        dev=dev,
        resize_pixels=pixels,
        asking=asking_of(settings.judge),
        trust_remote_code=settings.judge.trust_remote_code,
        on_progress=progress,
        log=log,
        stall_seconds=settings.cluster.stall_seconds,
    )
    if trained.rounding is not None:
        log(trained.rounding.line())
    return {table: training_counts(trained) | facts}


def _has_pool(settings: Settings) -> bool:
    """Return whether a pool of actors computes the reference; the workers do where none of them holds the judge."""
    return not settings.dpo.spreads_weights


def reference_job(name: str, processor: ReferenceProcessor, pool: Pool, pairs: Table, target: Table) -> PoolJob:
    """Return the job of a pool that asks a judge for the log-probabilities of pairs of judgments."""
    return PoolJob(
        name=name,
        processor=processor,
        sources={"pairs": pairs},
        target=target,
        pool=pool,
        key="item_id",
        identity=("prompt", "chosen", "rejected"),
    )


@dataclass
class ReferenceProcessor(Processor):
    """Adds the log-probabilities of the judge that DPO begins with to a part of its rows."""

    judge: Weights
    training: Training
    adapter: Path | None = None
    resize_pixels: int | None = None
    asking: Asking | None = None
    reference: Reference = field(init=False, repr=False)

    def setup(self) -> None:
        from carevl.training.reference import Reference

        with trust_own_code(self.judge.code):
            directory = self.judge.directory
            self.reference = Reference(
                directory, self.training, self.adapter, resize_pixels=self.resize_pixels, asking=self.asking
            )

    def process(self, tables: Mapping[str, pa.Table]) -> pa.Table:
        rows = self.reference(tables["pairs"])
        return rows.append_column("error", pa.nulls(rows.num_rows))


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what phase 2 depends on, apart from its pairs and the phase-1 judge."""
    del root, table
    start = {"begins_with": "base and adapter"} if keeps_adapter(settings) else {}
    return {"training": training_inputs(settings.dpo) | pixel_inputs(settings), **start}


def reservations(settings: Settings) -> list[Reservation]:
    """Return what the reference's pool and the workers reserve."""
    workers = for_workers("dpo", "dpo.workers", settings.dpo.workers)
    return [for_pool("dpo", "judge.pool", settings.judge.pool), workers] if _has_pool(settings) else [workers]


def models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the judge: the reference's pool, if there is one, and the workers hold it, one after the other."""
    trained = in_training("judge", settings.judge, "dpo", settings.dpo)
    return [*reference_models(settings, table), trained] if _has_pool(settings) else [trained]


def reference_models(settings: Settings, table: str) -> list[LoadedModel]:
    """Return the judge as the reference's pool holds it."""
    del table
    judge = settings.judge
    trained = in_training("judge", judge, "dpo", settings.dpo)
    return [replace(trained, reservation="judge.pool", gpus=judge.pool.num_gpus, learns=False)]


STAGE = Stage(
    name="dpo",
    members=phase2_members,
    inputs=reads("select", "demonstrate", "sft"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=reservations,
    models=models,
    find_equal=find_equal_training,
    contents=TRAINED_FILES,
)
