"""Stage `demonstrate`: the base judge judges the high-confidence items; where it agrees with the label, it is a target.

A pair becomes targets only if judgments in both orders agree with its label: evidence that leads to the label whatever
stands first. Ratings and rankings are asked of a share of the items, so that one judge learns all three tasks; a
ranking agrees that puts the winner of every high pair before its loser, a rating that is a whole number, as the prompt
asks. Targets are written in the grammar of judgments, whatever the judge's own wording, so that phase 1 learns one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.judging.prompts import write_judgment
from carevl.models.judge_spec import asking_of
from carevl.models.locate import weights_fingerprint
from carevl.stages.base import Counts, RunContext, Stage, reads_items
from carevl.stages.sampling import (
    Item,
    Prompted,
    SamplingSpec,
    both_orders,
    by_item,
    choose_rows,
    in_grammar,
    judge_inputs,
    judge_items,
    judge_models,
    judge_reservations,
    judgment_rows,
    typical,
)
from carevl.stats.draws import hash_uniform
from carevl.store.schemas import TARGETS

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.asking import Asking
    from carevl.settings.stages import Demonstrate
    from carevl.settings.tree import Settings

VERSION = 3
GOOD, BAD = 4, 2
"""Least rating of a pair's winner, and greatest of its loser, that agree with the label."""


def sampling_spec(settings: Settings) -> SamplingSpec:
    """Return what the base judge is asked."""
    demonstrate = settings.demonstrate
    return SamplingSpec(
        _Prompts(demonstrate, settings.seed), demonstrate.samples, demonstrate.temperature, settings.seed
    )


@dataclass(frozen=True)
class _Prompts:
    demonstrate: Demonstrate
    seed: int

    def __call__(self, item: Item, routes: Sequence[dict[str, Any]]) -> list[Prompted]:
        high = _high(routes)
        prompts = [prompted for route in high for prompted in both_orders(route["first"], route["second"])]
        if high and self._chosen(item, "pointwise", self.demonstrate.pointwise_share):
            prompts += [Prompted("pointwise", (i,)) for i in (high[0]["first"], high[0]["second"])]
        n = len(item["responses"])
        if n > 2 and rankable(n, high) and self._chosen(item, "ranking", self.demonstrate.ranking_share):
            prompts.append(Prompted("ranking", shown_order(item, self.seed)))
        return prompts

    def _chosen(self, item: Item, task: str, share: float) -> bool:
        return hash_uniform(self.seed, item["item_id"], task) < share


def shown_order(item: Mapping[str, Any], seed: int) -> tuple[int, ...]:
    """Return the order in which the responses of an item are shown to be ranked, drawn by chance."""
    return tuple(sorted(range(len(item["responses"])), key=lambda i: hash_uniform(seed, item["item_id"], "shown", i)))


def rankable(n_responses: int, high: Sequence[dict[str, Any]]) -> bool:
    """Return whether every response of an item is in one of its high pairs, so that these say much of how they rank."""
    return {i for route in high for i in (route["first"], route["second"])} == set(range(n_responses))


def make_targets(settings: Settings, items: pa.Table, routes: pa.Table, judgments: pa.Table) -> pa.Table:
    """Return the targets of phase 1, a pure function of stored rows: TARGETS."""
    share, asking = settings.demonstrate.verdict_only_share, asking_of(settings.judge)
    written: dict[tuple[str, str, tuple[int, ...]], list[dict[str, Any]]] = defaultdict(list)
    for row in judgment_rows(judgments, asking):
        written[row["item_id"], row["task"], tuple(row["order"])].append(row)
    targets: list[dict[str, Any]] = []
    bare: list[dict[str, Any]] = []
    prompts_of = sampling_spec(settings).prompts
    for item, of_item in by_item(items, routes):
        prompts = prompts_of(item, of_item)
        for group in _groups(prompts):
            agreeing = [
                [row for row in written[item["item_id"], p.task, p.order] if _agrees(row, p, of_item)] for p in group
            ]
            if all(agreeing):
                among = [row for rows in agreeing for row in rows]
                texts = [in_grammar(typical(rows, among), p.order) for p, rows in zip(group, agreeing, strict=True)]
                targets += [_target(item, p, text, asking, evidence=True) for p, text in zip(group, texts, strict=True)]
            elif group[0].task == "pairwise":
                bare += [_target(item, p, _verdict(p, of_item), asking, evidence=False) for p in group]
    keep = round(len(targets) * share / (1 - share))
    bare.sort(key=lambda row: hash_uniform(settings.seed, row["item_id"], "bare"))
    return pa.Table.from_pylist([*targets, *bare[:keep]], TARGETS)


def _groups(prompts: Sequence[Prompted]) -> Iterator[list[Prompted]]:
    """Yield prompts that stand or fall together: both orders of a pair, both ratings of a pair."""
    groups: dict[tuple[Any, ...], list[Prompted]] = defaultdict(list)
    for prompted in prompts:
        groups[prompted.task, tuple(sorted(prompted.order)) if prompted.task == "pairwise" else ()].append(prompted)
    yield from groups.values()


def _label(order: tuple[int, ...], routes: Sequence[dict[str, Any]]) -> int:
    [winner] = [route["winner"] for route in routes if {route["first"], route["second"]} == set(order)]
    return int(winner)


def _agrees(row: dict[str, Any], prompted: Prompted, routes: Sequence[dict[str, Any]]) -> bool:
    if row["status"] != "ok":
        return False
    if prompted.task == "pairwise":
        return bool(row["winner"] == _label(prompted.order, routes))
    if prompted.task == "ranking":
        return all(_place(row, _loser(route)) > _place(row, route["winner"]) for route in _high(routes))
    winner = _high(routes)[0]["winner"]
    if row["rating"] % 1:
        return False  # the prompt asks for a whole number
    return bool(row["rating"] >= GOOD if prompted.order[0] == winner else row["rating"] <= BAD)


def _high(routes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [route for route in routes if route["route"] == "high"]


def _loser(route: dict[str, Any]) -> int:
    return int(route["first"] + route["second"] - route["winner"])


def _place(row: dict[str, Any], response: int) -> int:
    return int(row["ranking"].index(response))


def _verdict(prompted: Prompted, routes: Sequence[dict[str, Any]]) -> str:
    return write_judgment("", winner=prompted.order.index(_label(prompted.order, routes)) + 1)


def _target(item: Item, prompted: Prompted, text: str, asking: Asking, *, evidence: bool) -> dict[str, Any]:
    return {
        "item_id": item["item_id"],
        "task": prompted.task,
        "order": prompted.order,
        **prompted.columns(item, asking),
        "text": text,
        "evidence": evidence,
    }


def run(context: RunContext) -> Counts:
    """Ask the base judge about every high-confidence item, and make targets of what agrees with the label.

    Raises:
        RunError: few of its texts have a verdict that can be read; said as soon as some are there.
    """
    [table] = context.pending
    settings, judged = context.settings, context.table(table, "judgments")
    spec = sampling_spec(settings)
    least = settings.demonstrate.min_parsed
    counts = judge_items(context, table, settings.judge, spec, context.table("route"), judged, min_parsed=least)[table]
    target = context.table(table, "targets")
    choose_rows(context, make_targets, judged, target)
    evidence = target.read(columns=["evidence"])["evidence"].to_pylist()
    return {table: {**counts, "targets": len(evidence), "with_evidence": sum(evidence)}}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what targets depend on, apart from items and routes."""
    del root, table
    judge = {"weights": weights_fingerprint(settings.judge.path, settings.judge.revision), **judge_inputs(settings)}
    return {
        "version": VERSION,
        "seed": settings.seed,
        "judge": judge,
        **settings.demonstrate.model_dump(exclude={"min_parsed"}),
    }


def row_facts(cause: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a judgment depends on: not which pairs are judged, nor what becomes of the judgments."""
    return {name: cause.get(name) for name in ("version", "seed", "judge", "samples", "temperature")}


STAGE = Stage(
    name="demonstrate",
    inputs=reads_items("route"),
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    reservations=judge_reservations("demonstrate"),
    models=judge_models,
    retryable="judge",
    row_facts=row_facts,
    contents=("targets/part-*.parquet",),
)
