"""The stages of an arm: those of `carevl run`, with labels and targets of its own.

Equal keys are equal tables: what two arms share is made once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from carevl.compare.labels import decided, pair_uniforms
from carevl.compare.oracle import STAGE as ORACLE
from carevl.pipeline.run import run_stage
from carevl.stages import (
    STAGES,
    caption,
    demonstrate,
    evaluate,
    gather,
    ingest,
    respond,
    route,
    score,
    sft,
)
from carevl.stages.base import Counts, RunContext, Stage, reads, reads_items
from carevl.stages.rounds import CHOOSING
from carevl.stages.sampling import Item, Prompted, Prompts, SamplingSpec, choose_rows, judge_items
from carevl.store.run import RunError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carevl.compare.labels import Labels
    from carevl.data.drawn import DataRoot
    from carevl.settings.tree import Settings

VERSION = 1
BENCHMARK = "vl-rewardbench"
DATA_STAGES = (ingest.STAGE, respond.STAGE, gather.STAGE, caption.STAGE, score.STAGE)
"""Stages that no seed changes: items, captions and scores."""

ROUTER = replace(route.STAGE, name="router", directory="route")
"""The routes as they were decided; an arm's own labels take the name `route`."""


def arm_stages(
    labels: Labels | None = None, path: str | None = None, images: str | None = None, *, oracle: bool = False
) -> tuple[Stage, ...]:
    """Return the stages of an arm: those of `carevl run`, with its labels as `route` and its targets as `demonstrate`.

    Beside them `router`, the routes as they were decided, and `judgments`, which all arms choose their targets from.

    Args:
        labels: what becomes of the router's labels; they stay as they are when None.
        path: benchmark data to evaluate on, with their images; the development data when None.
        oracle: whether low pairs have their true labels.
    """
    replaced: dict[str, tuple[Stage, ...]] = {
        "route": (ROUTER, JUDGMENTS, route.STAGE if labels is None else _label_stage(labels)),
        "demonstrate": (_TARGETS,),
        "evaluate": (_evaluate_stage(path, images),),
    }
    if oracle:
        replaced["route_low"] = (ORACLE,)
    return tuple(stage for original in STAGES for stage in replaced.get(original.name, (original,)))


def run_tables(context: RunContext, tables: Collection[str], stages: Sequence[Stage]) -> None:
    """Make those of the named tables that are not there, in order.

    A table that two arms share is made by the arm that comes first; the other waits.
    """
    for stage in stages:
        names = [name for name in stage.tables(context.settings) if name in tables]
        pending = {name: key for name in names if context.run.action(key := context.keys[name])[0] != "skip"}
        if pending:
            with ExitStack() as locks:
                for directory in sorted(str(context.table(name).directory) for name in pending):
                    locks.enter_context(_MAKING.setdefault(directory, Lock()))
                run_stage(context, stage, list(pending))


_MAKING: dict[str, Lock] = {}
"""Directory of a table to the lock that its maker holds."""


def _label_stage(labels: Labels) -> Stage:
    """Return the stage that gives the router's pairs an arm's labels."""

    def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
        del root, table
        return {"compare": VERSION, "seed": settings.seed, **asdict(labels)}

    def run(context: RunContext) -> Counts:
        [table] = context.pending
        router, target, seed = context.table("router"), context.table(table), context.settings.seed
        most = _largest_lot(context) if labels.rule == "subset" else 1.0
        n_rows = n_high = 0
        for number in router.parts():
            rows = labels.apply(router.read(number), seed, most)
            target.write(number, rows)
            n_rows += rows.num_rows
            n_high += int((rows["route"].cast(pa.string()).to_numpy(zero_copy_only=False) == "high").sum())
        return {table: {"rows_in": n_rows, "rows_out": n_rows, "errors": 0, "high": n_high}}

    inputs = reads_items(route="router")
    return Stage("route", inputs, fingerprint_inputs, run, directory="compare/labels")


def _largest_lot(context: RunContext) -> float:
    """Return the lot below which there are as many pairs to learn from as the router found high."""
    drawn: list[NDArray[np.float64]] = []
    n_high = 0
    for routes in training_routes(context):
        high = routes["route"].cast(pa.string()).to_numpy(zero_copy_only=False) == "high"
        n_high += int(high.sum())
        drawn.append(pair_uniforms(routes, context.settings.seed, "subset")[decided(routes)])
    ordered = np.sort(np.concatenate(drawn))
    return float(ordered[n_high - 1]) if n_high else -1.0


def training_routes(context: RunContext) -> Iterator[pa.Table]:
    """Yield the router's pairs of every part, without those of labelled items and of items with an error."""
    items, router = context.ingested.items, context.table("router")
    for number in router.parts():
        rows = items.read(number, ["item_id", "gold", "error"])
        learned = rows.filter(pc.and_(rows["gold"].is_null(), rows["error"].is_null()))
        routes = router.read(number)
        yield routes.filter(pc.is_in(routes["item_id"], learned["item_id"].combine_chunks()))


@dataclass(frozen=True)
class _Every:
    """Everything that `demonstrate` could ask the base judge about an item, whatever its labels."""

    prompts: Prompts

    def __call__(self, item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
        high = [
            route if route["route"] == "dropped" else route | {"route": "high", "winner": route["first"]}
            for route in routes
        ]
        prompts = [self.prompts(item, subset) for subset in (high, *([route] for route in high))]
        return list(dict.fromkeys(prompted for of_subset in prompts for prompted in of_subset))


def _demonstrate_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    return {**demonstrate.fingerprint_inputs(settings, root, table), "compare": VERSION}


def _judge_every_pair(context: RunContext) -> Counts:
    """Ask the base judge about every pair: arms differ in which of the judgments become targets."""
    [table] = context.pending
    plain = demonstrate.sampling_spec(context.settings)
    spec = SamplingSpec(_Every(plain.prompts), plain.samples, plain.temperature, plain.seed)
    return judge_items(context, table, context.settings.judge, spec, context.table("router"), context.table(table))


def _choose_targets(context: RunContext) -> Counts:
    """Choose targets as the stage `demonstrate` does, by the arm's labels."""
    [table] = context.pending
    judged = context.table("judgments")
    n_chosen = choose_rows(context, demonstrate.make_targets, judged, context.table(table, "targets"))
    n_judged = sum(judged.read(number, ["item_id"]).num_rows for number in judged.parts())
    return {table: {"rows_in": n_judged, "rows_out": n_chosen, "errors": 0}}


JUDGMENTS = Stage(
    "judgments", reads_items(route="router"), _demonstrate_inputs, _judge_every_pair, directory="compare/judgments"
)

_TARGETS = Stage(
    "demonstrate", reads("route", "judgments"), _demonstrate_inputs, _choose_targets, directory="compare/targets"
)


def _evaluate_stage(path: str | None, images: str | None) -> Stage:
    """Return the stage `evaluate` on the comparison's one benchmark."""

    def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
        return dict(evaluate.STAGE.fingerprint_inputs(on_benchmark(settings, path, images), root, table))

    return replace(evaluate.STAGE, fingerprint_inputs=fingerprint_inputs)


def on_benchmark(settings: Settings, path: str | None = None, images: str | None = None) -> Settings:
    """Return the settings with VL-RewardBench, asked in both orders, as their only benchmark.

    Args:
        path: other data than the development data, with their own directory of images.

    Raises:
        RunError: the settings do not name that benchmark.
    """
    for benchmark in settings.benchmarks:
        if benchmark.name == BENCHMARK:
            place = {} if path is None else {"path": path, "images": images}
            strict = benchmark.model_copy(update={"protocols": ["strict"], "draws": 1, **place})
            return settings.model_copy(update={"benchmarks": [strict]})
    raise RunError(f"compare: judges are compared on {BENCHMARK}, and the settings' benchmarks do not name it")


PHASE1 = ("router", "judgments", "route", "demonstrate", sft.STAGE.name)


def choosing(settings: Settings) -> tuple[str, ...]:
    """Return the tables that lead from the phase-1 judge to the pairs of phase 2."""
    return tuple(table for stage in CHOOSING for table in stage.tables(settings))
