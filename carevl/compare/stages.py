"""Makes what the stages of an arm need beyond those of `carevl run`, and runs them in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from carevl.cluster.jobs import PoolJob
from carevl.compare.labels import decided, pair_uniforms
from carevl.pipeline import core as pipeline
from carevl.stages import demonstrate, sampling
from carevl.stages.base import Context, Counts
from carevl.stages.makers import MAKERS, Maker
from carevl.stages.sampling import Asking, Item, Prompted, Prompts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from carevl.compare.labels import Labels


def run_stages(context: Context, names: Sequence[str], makers: dict[str, Maker]) -> None:
    """Makes those of the named stages that are not there, in order; the experts of `score/…` together.

    A stage that two arms share is made by the one that comes first; the other waits.
    """
    pending = [name for name in names if context.where.action(context.causes[name])[0] != "skip"]
    for stage, group in itertools.groupby(pending, key=lambda name: name.split("/")[0]):
        together = list(group)
        with ExitStack() as held:
            for directory in sorted(str(context.table(name).directory) for name in together):
                held.enter_context(_MAKING.setdefault(directory, Lock()))
            pipeline.make_stages(context, together, makers[stage])


_MAKING: dict[str, Lock] = {}
"""Who makes a stage's directory holds its lock."""


def makers(labels: Labels | None) -> dict[str, Maker]:
    """What makes each stage of an arm with these labels."""
    own: dict[str, Maker] = {"router": MAKERS["route"], "judgments": _judgments, "demonstrate": _targets}
    if labels is not None:
        own["route"] = _Relabel(labels)
    return MAKERS | own


@dataclass(frozen=True)
class _Relabel:
    """Makes `route`: the router's pairs with an arm's labels."""

    labels: Labels

    def __call__(self, context: Context, pending: list[str]) -> Counts:
        [name] = pending
        router, target, seed = context.table("router"), context.table(name), context.settings.seed
        most = _largest_lot(context) if self.labels.rule == "subset" else 1.0
        n_rows = n_high = 0
        for number in router.parts():
            rows = self.labels.apply(router.read(number), seed, most)
            target.write(number, rows)
            n_rows += rows.num_rows
            n_high += int((rows["route"].cast(pa.string()).to_numpy(zero_copy_only=False) == "high").sum())
        return {name: {"rows_in": n_rows, "rows_out": n_rows, "errors": 0, "high": n_high}}


def _largest_lot(context: Context) -> float:
    """The lot below which there are as many pairs to learn from as the router found high."""
    drawn: list[NDArray[np.float64]] = []
    n_high = 0
    for routes in training_routes(context):
        high = routes["route"].cast(pa.string()).to_numpy(zero_copy_only=False) == "high"
        n_high += int(high.sum())
        drawn.append(pair_uniforms(routes, context.settings.seed, "subset")[decided(routes)])
    ordered = np.sort(np.concatenate(drawn))
    return float(ordered[n_high - 1]) if n_high else -1.0


def training_routes(context: Context) -> Iterator[pa.Table]:
    """The router's pairs of every part, without those of labelled items and of items with an error."""
    items, router = context.ingested.items, context.table("router")
    for number in router.parts():
        rows = items.read(number, ["item_id", "gold", "error"])
        learned = rows.filter(pa.compute.and_(rows["gold"].is_null(), rows["error"].is_null()))
        routes = router.read(number)
        yield routes.filter(pa.compute.is_in(routes["item_id"], learned["item_id"].combine_chunks()))


@dataclass(frozen=True)
class _Every:
    """Everything that `demonstrate` could ask the base judge about an item, whatever its labels."""

    prompts: Prompts

    def __call__(self, item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
        high = [
            route if route["route"] == "dropped" else route | {"route": "high", "winner": route["first"]}
            for route in routes
        ]
        asked = [self.prompts(item, some) for some in (high, *([route] for route in high))]
        return list(dict.fromkeys(prompted for prompts in asked for prompted in prompts))


def _judgments(context: Context, pending: list[str]) -> Counts:
    """The base judge's judgments of every pair: arms differ in which of them become targets."""
    [name] = pending
    settings = context.settings
    plain = demonstrate.asking(settings)
    asking = Asking(_Every(plain.prompts), plain.samples, plain.temperature, plain.seed)
    job = PoolJob(
        name=name,
        processor=sampling.JudgeProcessor(settings.judge, asking),
        sources={
            "items": context.ingested.items,
            "images": context.ingested.images,
            "routes": context.table("router"),
        },
        target=context.table(name),
        pool=settings.judge.pool,
        key="item_id",
        identity=("task", "order", "sample"),
        expected_keys=asking.wanted,
    )
    return context.pools([job])


def _targets(context: Context, pending: list[str]) -> Counts:
    """Targets as the stage `demonstrate` chooses them, by the arm's labels."""
    [name] = pending
    items, routes, judged = context.ingested.items, context.table("route"), context.table("judgments")
    target = context.table(name, "targets")
    n_judged = n_chosen = 0
    for number in items.parts():
        answers = judged.read(number)
        chosen = demonstrate.choose(context.settings, items.read(number), routes.read(number), answers)
        target.write(number, chosen)
        n_judged += answers.num_rows
        n_chosen += chosen.num_rows
    return {name: {"rows_in": n_judged, "rows_out": n_chosen, "errors": 0}}
