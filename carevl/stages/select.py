"""Stage `select`: sampled judgments become chosen and rejected pairs. A pure function of stored rows.

A verdict's score is the weighted mean of the share of the pair's judgments, in both orders, that agree with it, of the
probability that the experts give it, and of what the judge's own evidence and its answer to the bare question say for
it. In each order a judgment of the better verdict is chosen, and one of the other verdict (or without any) rejected,
with the same evidence if there is one: then the two differ in nothing but what is to be learned. With `same_evidence`
they always do. Pairs of responses on which all judgments agree give nothing to learn.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from carevl.judging.prompts import contradicted
from carevl.stages.base import Counts, RunContext, Stage, reads
from carevl.stages.sampling import Item, Prompted, both_orders, by_item, choose_rows, typical
from carevl.stats.draws import hash_uniform
from carevl.store.schemas import PAIRS

if TYPE_CHECKING:
    from carevl.data.drawn import DataRoot
    from carevl.settings import Settings
    from carevl.settings.stages import Select

VERSION = 6
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_STYLE = 100
_NAMES_ANSWERS = re.compile(r"\b(?:answer|response)s? [12]\b", re.IGNORECASE)
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those it its they them their he she his her i me my we our you your
        is are was were be been am has have had do does did can could will would of to in on at by for from with and or
        but as if so than then there here what which who when where how""",
    )
)


def choose(settings: Settings, items: pa.Table, routes: pa.Table, judgments: pa.Table) -> pa.Table:
    """The pairs of phase 2: PAIRS."""
    select = settings.select
    written: dict[tuple[str, tuple[int, ...]], list[dict[str, Any]]] = defaultdict(list)
    for row in judgments.to_pylist():
        if row["error"] is None:
            written[row["item_id"], tuple(row["order"])].append(row)
    witness = None
    if select.evidence_weight or select.answer_weight:
        witness = Witness(
            (text for texts in items["responses"].to_pylist() for text in texts or ()),
            (row["evidence"] for rows in written.values() for row in rows if row["evidence"]),
        )
    pairs: list[dict[str, Any]] = []
    for item, of_item in by_item(items, routes):
        for route in of_item:
            if route["route"] == "low":
                prompts = both_orders(route["first"], route["second"])
                judged = [written[item["item_id"], prompted.order] for prompted in prompts]
                answers = written[item["item_id"], ()] if select.answer_weight else []
                in_both = [row for rows in judged for row in rows]
                scores = verdict_scores(select, item, route, in_both, witness, answers)
                if select.same_evidence:
                    pairs += _contradictions(select, item, prompts, in_both, answers, scores)
                else:
                    for prompted, rows in zip(prompts, judged, strict=True):
                        pairs += _pairs(select, item, prompted, rows, answers, scores)
    if select.balance:
        pairs = _balanced(pairs, settings.seed)
    return pa.Table.from_pylist(pairs, PAIRS)


class Witness:
    """What evidence says for a response: of the words that speak, how many of its own stand there.

    Words of the question do not speak, as any response may repeat them; nor do function words of English, nor those of
    style, which responses have more than `_STYLE` times as often as evidence has.
    """

    def __init__(self, responses: Iterable[str], evidence: Iterable[str]) -> None:
        written, seen = _shares(responses), _shares(evidence)
        self.speaking = {word for word, share in seen.items() if share * _STYLE >= written.get(word, 0.0)}

    def told(self, question: str, first: str, second: str, judgments: Sequence[dict[str, Any]]) -> float:
        """How much more the evidence given most often says for the first response than for the second, from -1 to 1.

        s_1 - s_2, times the share of the judgments (or answers) that give this evidence; s is the share of a response's
        own words, those that the other one has not, that stand in it, and 1/2 where there are none.
        """
        evidence, n = _most_given(judgments)
        asked, a, b, seen = (_content_words(text) for text in (question, first, second, evidence))
        own = ((words - asked) & self.speaking for words in (a - b, b - a))
        s_1, s_2 = (len(words & seen) / len(words) if words else 0.5 for words in own)
        return (s_1 - s_2) * n / len(judgments) if n else 0.0


def _shares(texts: Iterable[str]) -> dict[str, float]:
    """The share of texts that have a content word."""
    counts, n = Counter[str](), 0
    for text in texts:
        counts.update(_content_words(text))
        n += 1
    return {word: count / n for word, count in counts.items()}


def verdict_scores(
    select: Select,
    item: Item,
    route: dict[str, Any],
    judgments: Sequence[dict[str, Any]],
    witness: Witness | None,
    answers: Sequence[dict[str, Any]] = (),
) -> dict[int | None, float]:
    """The score of either winner, from 0 to 1; 0 for a judgment without a verdict (None).

    Args:
        judgments: those of the pair, in both orders.
        witness: reads evidence and answers; None where they have no weight.
        answers: to the bare question.
    """
    first, second = route["first"], route["second"]
    probability = 0.5 if route["probability"] is None else route["probability"]
    texts = item["question"], item["responses"][first], item["responses"][second]
    told = [
        (weight, witness.told(*texts, rows) if witness and weight else 0.0)
        for weight, rows in ((select.evidence_weight, judgments), (select.answer_weight, answers))
    ]
    total = select.consistency_weight + select.expert_weight + sum(weight for weight, _ in told)
    scores: dict[int | None, float] = {None: 0.0}
    for winner, expected, side in ((first, probability, 1), (second, 1.0 - probability, -1)):
        agreeing = sum(row["winner"] == winner for row in judgments) / max(1, len(judgments))
        weighted = select.consistency_weight * agreeing + select.expert_weight * expected
        weighted += sum(weight * (0.5 + 0.5 * side * said) for weight, said in told)
        scores[winner] = weighted / max(total, 1e-9)
    return scores


def _most_given(judgments: Sequence[dict[str, Any]]) -> tuple[str, int]:
    given = Counter(row["evidence"] for row in judgments if row["evidence"])
    return given.most_common(1)[0] if given else ("", 0)


def _content_words(text: str) -> set[str]:
    """The words of a text but for function words and names of answers; numbers up to ten are written out."""
    found = re.findall(r"[^\W_]+", _NAMES_ANSWERS.sub("", text).lower())
    written = (_NUMBERS[int(word)] if word.isdecimal() and int(word) < len(_NUMBERS) else word for word in found)
    return {word for word in written if word not in _FUNCTION_WORDS}


def _pairs(
    select: Select,
    item: Item,
    prompted: Prompted,
    rows: Sequence[dict[str, Any]],
    answers: Sequence[dict[str, Any]],
    scores: dict[int | None, float],
) -> Iterator[dict[str, Any]]:
    best = max(prompted.order, key=lambda winner: scores[winner])
    chosen = [row for row in rows if row["winner"] == best]
    rejected = [row for row in rows if scores[best] - scores[row["winner"]] >= select.min_gap]
    if not chosen:
        return
    winner = typical(_like(chosen, _most_given(answers)[0]), rows)
    kept: set[tuple[str, str]] = set()
    rejected.sort(key=lambda row: (scores[row["winner"]], row["evidence"] != winner["evidence"], row["sample"]))
    for loser in rejected:
        lengths = sorted((len(winner["text"]), len(loser["text"])))
        if lengths[1] > select.max_length_ratio * lengths[0] or (winner["text"], loser["text"]) in kept:
            continue
        if len(kept) == select.pairs_per_order:
            return
        yield {
            **_facts(item, prompted, scores, best, loser["winner"]),
            "rank": len(kept),
            "chosen": winner["text"],
            "rejected": loser["text"],
        }
        kept.add((winner["text"], loser["text"]))


def _contradictions(
    select: Select,
    item: Item,
    prompts: Sequence[Prompted],
    rows: Sequence[dict[str, Any]],
    answers: Sequence[dict[str, Any]],
    scores: dict[int | None, float],
) -> Iterator[dict[str, Any]]:
    """In each order a judgment of the better verdict, and the same with the other verdict.

    A judgment of the other order will do as well, its verdict renamed, unless its evidence names an answer by number:
    a judge that always prefers what it is shown first has the better verdict in one order only.
    """
    best, other = sorted(prompts[0].order, key=lambda winner: -scores[winner])
    if scores[best] - scores[other] < select.min_gap or all(row["winner"] == best for row in rows):
        return
    answer = _most_given(answers)[0]
    for prompted in prompts:
        agreeing = [
            row
            for row in rows
            if row["winner"] == best
            and (tuple(row["order"]) == prompted.order or not _NAMES_ANSWERS.search(row["evidence"]))
        ]
        if not agreeing:
            continue
        found = typical(_like(agreeing, answer), rows)
        texts = found["text"], contradicted(found["text"])
        chosen, rejected = texts if tuple(found["order"]) == prompted.order else reversed(texts)
        yield {
            **_facts(item, prompted, scores, best, other),
            "rank": 0,
            "chosen": chosen,
            "rejected": rejected,
        }


def _facts(
    item: Item, prompted: Prompted, scores: dict[int | None, float], best: int, other: int | None
) -> dict[str, Any]:
    """What a row of PAIRS says beside its two judgments."""
    return {
        "item_id": item["item_id"],
        "order": prompted.order,
        "prompt": prompted.write(item),
        "winner": best,
        "score_chosen": scores[best],
        "score_rejected": scores[other],
    }


def _like(judgments: Sequence[dict[str, Any]], answer: str) -> Sequence[dict[str, Any]]:
    """Those of the judgments whose evidence shares most content words with an answer (Jaccard's index)."""
    words = _content_words(answer)
    if not words:
        return judgments
    evidence = [_content_words(row["evidence"]) for row in judgments]
    alike = [len(words & said) / len(words | said) for said in evidence]
    return [row for row, likeness in zip(judgments, alike, strict=True) if likeness == max(alike)]


def _balanced(pairs: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """As many pairs whose chosen verdict names the first response shown as the second: the narrowest gaps go."""
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
    return {"version": VERSION, "seed": settings.seed, **settings.select.model_dump()}


STAGE = Stage(name="select", inputs=reads("sample"), fingerprint_inputs=fingerprint_inputs, run=run)
