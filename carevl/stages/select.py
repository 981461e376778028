"""Stage `select`: sampled judgments become chosen and rejected pairs. A pure function of stored rows.

A verdict's score is the mean of what the rules of selection (`stages/selection/`) say for it, by their weights. In each
order a judgment of the better verdict is chosen, and one of the other verdict (or without any) rejected, with the same
evidence if there is one: then the two differ in nothing but what is to be learned. With `same_evidence` they always do.
Pairs of responses on which all judgments agree give nothing to learn. Judgments with a verdict are written in the
grammar, whatever the judge's own wording, so that nothing is preferred for its form.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.models.judge_spec import asking_of
from carevl.stages.base import PARTS, Counts, RunContext, Stage, reads
from carevl.stages.sampling import Item, Prompted, both_orders, by_item, choose_rows, in_grammar, judgment_rows, typical
from carevl.stages.selection import RULES, JudgedPair, SelectionRule
from carevl.stages.selection.base import Part
from carevl.stages.selection.witness import NAMES_ANSWERS, Row, content_words, most_given
from carevl.stats.draws import hash_uniform
from carevl.store.schemas import PAIRS

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings.stages import Select
    from carevl.settings.tree import Settings

VERSION = 6


def choose(settings: Settings, items: pa.Table, routes: pa.Table, judgments: pa.Table) -> pa.Table:
    """Return the pairs of phase 2: PAIRS."""
    select = settings.select
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
    for item, of_item in by_item(items, routes):
        for route in of_item:
            if route["route"] == "low":
                prompts = both_orders(route["first"], route["second"])
                judged = [written[item["item_id"], prompted.order] for prompted in prompts]
                in_both = [row for rows in judged for row in rows]
                pair = JudgedPair(item, route, in_both, written[item["item_id"], ()], part)
                scores = verdict_scores(select, pair)
                answers = pair.answers if select.answer_weight else []
                if select.same_evidence:
                    chosen = [*_contradictions(select, item, prompts, in_both, answers, scores)]
                else:
                    of_order = zip(prompts, judged, strict=True)
                    chosen = [pair for p, rows in of_order for pair in _pairs(select, item, p, rows, answers, scores)]
                asked = {prompted.order: prompted.columns(item, asking) for prompted in prompts}
                pairs += [{**pair, **asked[pair["order"]]} for pair in chosen]
    if select.balance:
        pairs = _balanced(pairs, settings.seed)
    return pa.Table.from_pylist(pairs, PAIRS)


def weighted_rules(select: Select) -> list[tuple[SelectionRule, float]]:
    """Return the rules that have a weight: the registered ones, then a user's own."""
    weights = [(rule, rule.weight(select)) for rule in RULES.values()]
    weights += [(RULES[path], weight) for path, weight in select.rules.items() if path not in RULES]
    return [(rule, weight) for rule, weight in weights if weight]


def verdict_scores(select: Select, pair: JudgedPair) -> dict[int | None, float]:
    """Return the score of either winner, from 0 to 1; 0 for a judgment without a verdict (None)."""
    rules = weighted_rules(select)
    total = max(sum(weight for _, weight in rules), 1e-9)
    support = [(weight, rule.support(pair)) for rule, weight in rules]
    scores: dict[int | None, float] = {None: 0.0}
    for place, which in enumerate(("first", "second")):
        scores[pair.route[which]] = sum(weight * sides[place] for weight, sides in support) / total
    return scores


def _pairs(
    select: Select,
    item: Item,
    prompted: Prompted,
    rows: Sequence[dict[str, Any]],
    answers: Sequence[Row],
    scores: dict[int | None, float],
) -> Iterator[dict[str, Any]]:
    best = max(prompted.order, key=lambda winner: scores[winner])
    chosen = [row for row in rows if row["winner"] == best]
    rejected = [row for row in rows if scores[best] - scores[row["winner"]] >= select.min_gap]
    if not chosen:
        return
    winner = typical(_like(chosen, most_given(answers)[0]), rows)
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
            **_facts(item, prompted, scores, best, loser["winner"]),
            "rank": len(kept),
            "chosen": better,
            "rejected": worse,
        }
        kept.add(worse)


def _contradictions(
    select: Select,
    item: Item,
    prompts: Sequence[Prompted],
    rows: Sequence[dict[str, Any]],
    answers: Sequence[Row],
    scores: dict[int | None, float],
) -> Iterator[dict[str, Any]]:
    """In each order a judgment of the better verdict, and the same with the other verdict.

    A judgment of the other order will do as well, its verdict renamed, unless its evidence (or thinking that is kept)
    names an answer by number: a judge that always prefers what it is shown first has the better verdict in one order
    only.
    """
    best, other = sorted(prompts[0].order, key=lambda winner: -scores[winner])
    if scores[best] - scores[other] < select.min_gap or all(row["winner"] == best for row in rows):
        return
    answer = most_given(answers)[0]
    for prompted in prompts:
        agreeing = [
            row
            for row in rows
            if row["winner"] == best
            and (tuple(row["order"]) == prompted.order or not NAMES_ANSWERS.search(row["thinking"] + row["evidence"]))
        ]
        if not agreeing:
            continue
        source = typical(_like(agreeing, answer), rows)
        chosen, rejected = (in_grammar(source | {"winner": winner}, prompted.order) for winner in (best, other))
        yield {
            **_facts(item, prompted, scores, best, other),
            "rank": 0,
            "chosen": chosen,
            "rejected": rejected,
        }


def _facts(
    item: Item, prompted: Prompted, scores: dict[int | None, float], best: int, other: int | None
) -> dict[str, Any]:
    """Return what a row of PAIRS says beside its prompt and its two judgments."""
    return {
        "item_id": item["item_id"],
        "order": prompted.order,
        "winner": best,
        "score_chosen": scores[best],
        "score_rejected": scores[other],
    }


def _like(judgments: Sequence[dict[str, Any]], answer: str) -> Sequence[dict[str, Any]]:
    """Return those of the judgments whose evidence shares most content words with an answer (Jaccard's index)."""
    words = content_words(answer)
    if not words:
        return judgments
    evidence = [content_words(row["evidence"]) for row in judgments]
    alike = [len(words & seen) / len(words | seen) for seen in evidence]
    return [row for row, likeness in zip(judgments, alike, strict=True) if likeness == max(alike)]


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
    n_pairs = choose_rows(context, choose, sampled, context.table(table))
    manifest = sampled.manifest or {}
    return {table: {"rows_in": manifest.get("rows_out", 0), "rows_out": n_pairs, "errors": 0}}


def fingerprint_inputs(settings: Settings, root: DataRoot, table: str) -> dict[str, Any]:
    """Return what pairs depend on, apart from the judgments."""
    del root, table
    own = set() if settings.select.rules else {"rules"}
    return {"version": VERSION, "seed": settings.seed, **settings.select.model_dump(exclude=own)}


STAGE = Stage(name="select", inputs=reads("sample"), fingerprint_inputs=fingerprint_inputs, run=run, contents=PARTS)
