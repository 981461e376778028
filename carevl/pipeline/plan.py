"""What a run would do, before it runs: actions, rows, reservations, warnings."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from carevl.cluster.connect import check_cluster, is_private, ray_cluster
from carevl.cluster.resources import Reservation, Supply, card_memory, describe, find_unplaceable, supply
from carevl.models.experts import EXPERT_KINDS
from carevl.models.hub import COMMIT
from carevl.models.nvidia import find_unseen
from carevl.pipeline import results
from carevl.pipeline.admission import reservations
from carevl.pipeline.check import check_record, check_settings
from carevl.pipeline.downloads import (
    download_lines,
    find_models,
    find_problems,
    loaded_models,
    models_by_setting,
)
from carevl.pipeline.fit import find_fits
from carevl.pipeline.keys import stage_keys
from carevl.pipeline.measure import measure
from carevl.pipeline.trained import trained_lines
from carevl.settings.schemes import split_scheme
from carevl.stages import STAGES
from carevl.stages.respond import count_asks
from carevl.stages.rounds import RoundOutcomes
from carevl.store.run import Run, RunError
from carevl.store.table import Table

if TYPE_CHECKING:
    from carevl.settings.tree import Settings


@dataclass(frozen=True)
class PlannedTable:
    """A table with what a run would do about it, and why."""

    name: str
    fingerprint: str
    action: str
    reason: str


def plan_run(settings: Settings, run: Run) -> list[PlannedTable]:
    """Return what a run would do, table by table.

    A table that has to be made again may come out as before; then what was made from it is kept.

    Raises:
        SettingsError: a run cannot use the settings.
        RunError: it is a rehearsal and the run directory's last run was none, or the other way round.
    """
    check_settings(settings)
    check_record(settings, run)
    keys = stage_keys(settings, run)
    planned = [PlannedTable(name, key.fingerprint, *run.action(key)) for name, key in keys.items()]
    kept = "; kept if what it is made from comes out as before"
    return [
        replace(table, reason=f"{table.reason}{kept}") if table.action == "recompute" and _only_inputs(table) else table
        for table in planned
    ]


def _only_inputs(table: PlannedTable) -> bool:
    """Return whether nothing else has changed but what a table is made from."""
    return all(reason.startswith("inputs.") for reason in table.reason.split("; "))


def plan_lines(settings: Settings, run: Run, measured: bool, log: Callable[[str], None]) -> Iterator[str]:
    """Yield the lines of `carevl plan`.

    Raises:
        RunError: something that a stage reserves can never be had, a model cannot be downloaded, or does not fit on a
            card; the lines before it come first. Or another token than this process has is wanted.
        MachineError: the cluster cannot be reached.
        UserError: there is nothing to train where the settings say.
    """
    check_cluster(settings.cluster)
    planned = plan_run(settings, run)
    if settings.cluster.rehearse:
        yield results.REHEARSAL
    for table in planned:
        yield f"{table.name:16s} {table.fingerprint}  {table.action}: {table.reason}"
    yield from round_lines(settings, run)
    ingested = run.table_of("ingest", planned[0].fingerprint)
    yield _rows_line(ingested)
    yield from _question_lines(settings, ingested)
    yield from (f"warning: {problem}" for problem in unpinned(settings))
    pending = {table.name for table in planned if table.action != "skip"}
    loaded, states = loaded_models(settings, pending), find_models(models_by_setting(settings, pending))
    yield from download_lines(states)
    card = card_memory(settings.cluster) if any(model.gpus for _, model in loaded) else None
    fits = find_fits(loaded, states, card)
    yield from (fit.line() for fit in fits)
    yield from head_lines(settings)
    yield from trained_lines(settings, pending, states["judge"].directory if "judge" in states else None)
    problems = find_problems(states) + [problem for fit in fits if (problem := fit.problem())]
    with ray_cluster(settings.cluster) if measured or not is_private(settings.cluster) else nullcontext():
        needs = reservations(settings, pending)
        nodes = supply(settings.cluster, needs)
        yield from _reservation_lines(needs, nodes)
        problems += _unseen_gpus(settings, needs) + find_unplaceable(needs, nodes)
        if problems:
            raise RunError("\n".join(problems))
        if measured:
            yield from map(str, measure(settings, run, pending, log))


def round_lines(settings: Settings, run: Run) -> Iterator[str]:
    """Yield which rounds helped, and what becomes of those of which nobody knows yet."""
    keys = stage_keys(settings, run)
    outcomes = RoundOutcomes(run, lambda: keys)
    yield from outcomes.lines(settings.rounds)
    if settings.rounds > 1 and None in itertools.takewhile(
        lambda helped: helped is not False, map(outcomes.helped, range(1, settings.rounds + 1))
    ):
        yield f"{'rounds':16s} each is made if the one before it helps, and kept if it helps itself"


def _unseen_gpus(settings: Settings, needs: Sequence[Reservation]) -> list[str]:
    """Return why GPUs of this machine cannot be used, if a run here needs any; nodes of a cluster are asked later."""
    cluster = settings.cluster
    elsewhere = not is_private(cluster) or cluster.launcher is not None
    if cluster.rehearse or elsewhere or not any(need.resources.get("GPU") for need in needs):
        return []
    unseen = find_unseen()
    return [] if unseen is None else [unseen]


def unpinned(settings: Settings) -> list[str]:
    """Return a warning for every model of the hub whose weights may change between two runs."""
    models = models_by_setting(settings, [table for stage in STAGES for table in stage.tables(settings)])
    return [
        f"{place}: {model.path} may change between two runs; pin {place}.revision to a commit of 40 hex digits"
        for place, model in models.items()
        if split_scheme(model.path) is None and not Path(model.path).is_dir()
        if not COMMIT.fullmatch(model.revision or "")
    ]


def head_lines(settings: Settings) -> Iterator[str]:
    """Yield what gives the scores of every expert whose files are on this machine."""
    for n, expert in enumerate(settings.experts):
        if (description := EXPERT_KINDS[expert.kind].describe(expert)) is not None:
            yield f"experts.{n} ({expert.name}): {description}"


def _rows_line(ingested: Table) -> str:
    """Return how many rows there are, if they have been read."""
    manifest = ingested.manifest
    if manifest is None:
        return "rows are counted when ingest has run"
    return f"{manifest['rows_in']} source rows, {manifest['rows_out']} items of {manifest['images']} distinct images"


def _question_lines(settings: Settings, ingested: Table) -> Iterator[str]:
    """Yield what every responder is asked, in texts and their most tokens where the questions have been counted."""
    questions = (ingested.manifest or {}).get("questions")
    for responder in settings.respond.models:
        each = count_asks(responder, settings.respond.negatives)
        total = ""
        if questions is not None:
            texts = questions * each
            total = f": about {texts:.0f} for {questions} questions, {texts * responder.max_tokens:.2g} tokens at most"
        yield f"{'respond/' + responder.name:16s} {each:g} answers to a question{total}; those that are there are kept"


def _reservation_lines(needs: Sequence[Reservation], nodes: Supply) -> Iterator[str]:
    """A line per stage: what each of its actors or workers reserves, how many there are, how many fit."""
    if needs:
        yield f"{'reserves':16s} {'each':28s} {'actors':>8s} {'room for':>8s}   on {nodes.name}"
    for need in needs:
        actors = f"{need.least}..{need.most}" if need.least < need.most else str(need.most)
        actors = "auto" if need.most == sys.maxsize else actors
        yield f"{need.stage:16s} {describe(need.resources):28s} {actors:>8s} {need.count_fitting(nodes.nodes):8d}"
