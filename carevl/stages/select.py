"""Stage `select`: sampled judgments become chosen and rejected pairs. A pure function of stored rows.

A verdict's score is the mean of what the rules of selection (`stages/selection/`) say for it, by their weights. In each
order a judgment of the better verdict is chosen, and one of the other verdict (or without any) rejected, with the same
evidence if there is one: then the two differ in nothing but what is to be learned. With `same_evidence` they always do.
Where testimony has a weight, pairs count whose label it makes trusted, and no others. Chosen evidence is what the rules
prefer (testimony what the experts rate best who have read it), and of that what the judge gives most often.
Pairs of responses on which all judgments agree give nothing to learn. Judgments with a verdict are written in the
grammar, whatever the judge's own wording, so that nothing is preferred for its form.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import rankdata

from carevl.models.judge_spec import asking_of
from carevl.settings.earlier_versions import split_rules
from carevl.stages import score_testimony
from carevl.stages.base import PARTS, Counts, RunContext, Stage, phase2_members
from carevl.stages.other_tasks import NO_TARGETS, OtherTasks, TargetFacts, TrustedPair
from carevl.stages.sampling import Prompted, both_orders, by_item, choose_rows, in_grammar, judgment_rows, typical
from carevl.stages.score_testimony import EVIDENCE, evidence_of
from carevl.stages.selection import RULES, JudgedPair, SelectionRule
from carevl.stages.selection.base import Part, Row
from carevl.stats.draws import hash_uniform
from carevl.store.schemas import PAIRS

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.stages import Select
    from carevl.settings.tree import Settings

VERSION = 6
NAMES_ANSWERS = re.compile(r"\b(?:answer|response)s? [12]\b", re.IGNORECASE)
"""How evidence names a response by the place that it is shown at."""
WeightedRule = tuple[SelectionRule, float]


def choose(
    settings: Settings,
    items: pa.Table,
    routes: pa.Table,
    judgments: pa.Table,
    trusted: pa.Table | None = None,
    *scores: pa.Table,
    targets: TargetFacts = NO_TARGETS,
) -> pa.Table:
    """Return the pairs of phase 2: PAIRS.

    Args:
        trusted: ROUTES of the low pairs, once experts have read testimony.
        scores: SCORES of every expert that has, which rate evidence.
        targets: what pairs of ratings and rankings take over from phase 1.
    """
    select, rules = settings.select, weighted_rules(settings.select)
    again = {} if trusted is None else {_pair_of(row): row for row in trusted.to_pylist()}
    rated = rate_evidence(judgments, scores)
    written: dict[tuple[str, tuple[int, ...]], list[dict[str, Any]]] = defaultdict(list)
    asking = asking_of(settings.judge)
    for row in judgment_rows(judgments, asking):
        if row["error"] is None:
            written[row["item_id"], tuple(row["order"])].append(row)
    part = Part(
        [text for texts in items["responses"].to_pylist() for text in texts or ()],
        [row["evidence"] for rows in written.values() for row in rows if row["evidence"]],
    )
    pairs: list[dict[str, Any]] = []
    others = OtherTasks(targets, asking, settings.seed)
    for item, of_item in by_item(items, routes):
        ordered = [TrustedPair.of_route(route) for route in of_item if route["route"] == "high"]
        for route in of_item:
            label = again.get(_pair_of(route))
            if route["route"] != "low" or (select.testimony_weight and (label is None or label["route"] != "high")):
                continue
            prompts = both_orders(route["first"], route["second"])
            judged = [written[item["item_id"], prompted.order] for prompted in prompts]
            in_both = [row for rows in judged for row in rows]
            answers, ratings = written[item["item_id"], ()], rated.get(item["item_id"], {})
            facts = JudgedPair(item, route, in_both, answers, part, label, ratings)
            pair = _Judged(facts, rules, verdict_scores(rules, facts))
            if select.same_evidence:
                chosen = [*_contradictions(select, pair, prompts, in_both)]
            else:
                of_order = zip(prompts, judged, strict=True)
                chosen = [row for prompted, rows in of_order for row in _pairs(select, pair, prompted, rows)]
            asked = {prompted.order: prompted.columns(item, asking) for prompted in prompts}
            pairs += [{**row, **asked[row["order"]]} for row in chosen]
            ordered += pair.trusted(select.min_gap)
        others.add(item, ordered)
    if select.balance:
        pairs = _balanced(pairs, settings.seed)
    pairs += others.take(targets.wanted(select), len(pairs))
    return pa.Table.from_pylist(pairs, PAIRS)


@dataclass(frozen=True)
class _Judged:
    """A pair of responses to an item with the scores of its verdicts, by the rules that have a weight."""

    pair: JudgedPair
    rules: Sequence[WeightedRule]
    scores: Mapping[int | None, float]

    def best(self, judgments: Sequence[Row], among: Sequence[Row]) -> Row:
        """Return the judgment whose evidence the rules prefer, one after the other, and is then given most often."""
        for rule, _ in self.rules:
            judgments = rule.prefer(self.pair, judgments)
        return typical(judgments, among)

    def trusted(self, min_gap: float) -> list[TrustedPair]:
        """Return the order of the two responses, where the scores differ by so much, with what speaks for it."""
        rows = self.pair.judgments
        best, other = sorted((self.pair.route["first"], self.pair.route["second"]), key=lambda i: -self.scores[i])
        if self.scores[best] - self.scores[other] < min_gap:
            return []
        speaking = [row for row in rows if row["winner"] == best and not _names_answers(row)]
        source = self.best(speaking, rows) if speaking else None
        return [TrustedPair(best, other, (self.scores[best], self.scores[other]), source)]


def rate_evidence(judgments: pa.Table, scores: Sequence[pa.Table]) -> dict[str, dict[str, float]]:
    """Return the rating of evidence, by item: its mean rank among that of the item over the experts, 0 to 1."""
    texts = evidence_of(judgments) if scores else {}
    ranks: dict[str, list[Any]] = defaultdict(list)
    for table in scores:
        for row in table.filter(pc.equal(table["view"], EVIDENCE)).select(["item_id", "scores"]).to_pylist():
            if row["scores"] is not None:
                ranks[row["item_id"]].append(rankdata(row["scores"]) / len(row["scores"]))
    return {
        name: dict(zip(texts[name], np.mean(of_experts, axis=0).tolist(), strict=True))
        for name, of_experts in ranks.items()
    }


def _pair_of(row: Row) -> tuple[str, int, int]:
    return row["item_id"], row["first"], row["second"]


def weighted_rules(select: Select) -> list[WeightedRule]:
    """Return the rules that have a weight: the registered ones, then a user's own."""
    weights = [(rule, rule.weight(select)) for rule in RULES.values()]
    weights += [(RULES[path], weight) for path, weight in select.rules.items() if path not in RULES]
    return [(rule, weight) for rule, weight in weights if weight]


def verdict_scores(rules: Sequence[WeightedRule], pair: JudgedPair) -> dict[int | None, float]:
    """Return the score of either winner, from 0 to 1; 0 for a judgment without a verdict (None)."""
    total = max(sum(weight for _, weight in rules), 1e-9)
    support = [(weight, rule.support(pair)) for rule, weight in rules]
    scores: dict[int | None, float] = {None: 0.0}
    for place, which in enumerate(("first", "second")):
        scores[pair.route[which]] = sum(weight * sides[place] for weight, sides in support) / total
    return scores


def _pairs(
    select: Select, judged: _Judged, prompted: Prompted, rows: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    scores = judged.scores
    best = max(prompted.order, key=lambda winner: scores[winner])
    chosen = [row for row in rows if row["winner"] == best]
    rejected = [row for row in rows if scores[best] - scores[row["winner"]] >= select.min_gap]
    if not chosen:
        return
    winner = judged.best(chosen, rows)
    better = in_grammar(winner, prompted.order)
    kept: set[str] = set()
    rejected.sort(key=lambda row: (scores[row["winner"]], row["evidence"] != winner["evidence"], row["sample"]))
    for loser in rejected:
        worse = loser["text"] if loser["winner"] is None else in_grammar(loser, prompted.order)
        lengths = sorted((len(better), len(worse)))
        if lengths[1] > select.max_length_ratio * lengths[0] or worse in kept:
            continue
        if len(kept) == select.pairs_per_order:
            return
        yield {
            **_facts(judged, prompted, best, loser["winner"]),
            "rank": len(kept),
            "chosen": better,
            "rejected": worse,
        }
        kept.add(worse)


def _contradictions(
    select: Select, judged: _Judged, prompts: Sequence[Prompted], rows: Sequence[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """In each order a judgment of the better verdict, and the same with the other verdict.

    A judgment of the other order will do as well, its verdict renamed, unless its evidence (or thinking that is kept)
    names an answer by number: a judge that always prefers what it is shown first has the better verdict in one order
    only.
    """
    scores = judged.scores
    best, other = sorted(prompts[0].order, key=lambda winner: -scores[winner])
    if scores[best] - scores[other] < select.min_gap or all(row["winner"] == best for row in rows):
        return
    for prompted in prompts:
        agreeing = [
            row
            for row in rows
            if row["winner"] == best and (tuple(row["order"]) == prompted.order or not _names_answers(row))
        ]
        if not agreeing:
            continue
        source = judged.best(agreeing, rows)
        chosen, rejected = (in_grammar({**source, "winner": winner}, prompted.order) for winner in (best, other))
        yield {
            **_facts(judged, prompted, best, other),
            "rank": 0,
            "chosen": chosen,
            "rejected": rejected,
        }


def _names_answers(row: Row) -> bool:
    """Return whether the evidence of a judgment, or thinking that is kept, names an answer by number."""
    return NAMES_ANSWERS.search(row["thinking"] + row["evidence"]) is not None


def _facts(judged: _Judged, prompted: Prompted, best: int, other: int | None) -> dict[str, Any]:
    """Return what a row of PAIRS says beside its prompt and its two judgments."""
    return {
        "item_id": judged.pair.item["item_id"],
        "task": prompted.task,
        "order": prompted.order,
        "winner": best,
        "loser": sum(prompted.order) - best,
        "score_chosen": judged.scores[best],
        "score_rejected": judged.scores[other],
    }


def _balanced(pairs: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return as many pairs whose chosen verdict names the first response shown as the second: the narrowest gaps go."""
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for pair in pairs:
        sides[pair["winner"] == pair["order"][0]].append(pair)
    size = min(map(len, sides.values()))

    def rank(pair: dict[str, Any]) -> tuple[float, float]:
        return pair["score_rejected"] - pair["score_chosen"], hash_uniform(seed, pair["item_id"], pair["order"])

    dropped = {id(pair) for side in sides.values() for pair in sorted(side, key=rank)[size:]}
    return [pair for pair in pairs if id(pair) not in dropped]


def run(context: RunContext) -> Counts:
    """Make pairs of the sampled judgments."""
    [table] = context.pending
    sampled = context.table("sample")
    again = [context.table(name) for name in _again(context.settings)]
    asked = context.settings.select.other_tasks
    targets = TargetFacts.read(context.table("demonstrate", "targets")) if asked else NO_TARGETS
    n_pairs = choose_rows(context, partial(choose, targets=targets), sampled, context.table(table), *again)
    manifest = sampled.manifest or {}
    return {table: {"rows_in": manifest.get("rows_out", 0), "rows_out": n_pairs, "errors": 0}}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what pairs depend on, apart from the judgments."""
    del root, table
    weights, rules = split_rules(settings.select.rules)
    own = {"rules", "pointwise_share", "ranking_share"}.difference(settings.select.other_tasks)
    own |= set() if settings.select.testimony_weight else {"testimony_weight"}
    facts = {**settings.select.model_dump(exclude=own), **weights, **({"rules": rules} if rules else {})}
    return {"version": VERSION, "seed": settings.seed, **facts}


def _again(settings: Settings) -> tuple[str, ...]:
    """Return what is read beside the judgments, where experts have read testimony."""
    return ("route_low", *score_testimony.STAGE.tables(settings)) if settings.testifies else ()


def inputs(settings: Settings, table: str) -> dict[str, str]:
    """Return the judgments, what experts say who have read testimony, and targets where other tasks follow them."""
    del table
    targets = ("demonstrate",) if settings.select.other_tasks else ()
    return {name: name for name in ("sample", *_again(settings), *targets)}


STAGE = Stage(
    name="select",
    members=phase2_members,
    inputs=inputs,
    fingerprint_inputs=fingerprint_inputs,
    run=run,
    contents=PARTS,
)
