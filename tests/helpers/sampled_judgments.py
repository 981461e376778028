"""Hand-made samples of a judge about items of one question, and the pairs that `select` chooses of them."""

import pyarrow as pa

from carevl.judging.prompts import write_judgment
from carevl.judging.verdicts import read_verdict
from carevl.settings.loader import load_settings
from carevl.stages import select
from carevl.store.schemas import ITEMS, JUDGMENTS, SCORES
from tests.helpers.items import about

FIRST, SECOND = [0, 1], [1, 0]


def sampled(item_id, order, *judged):
    rows = []
    for sample, (winner, evidence) in enumerate(judged):
        text = (
            "I cannot tell from this image."
            if winner is None
            else write_judgment(evidence, winner=order.index(winner) + 1)
        )
        read = read_verdict(text).in_items(order)
        facts = {"evidence": read.evidence, "winner": read.winner, "status": read.status, "text": text}
        rows.append({"item_id": item_id, "task": "pairwise", "order": order, "sample": sample, **facts})
    return rows


def answered(item_id, *texts):
    return [
        {"item_id": item_id, "task": "answer", "order": [], "sample": n, "evidence": text, "status": "ok", "text": text}
        for n, text in enumerate(texts)
    ]


def choose(judgments, *overrides, probability=0.5, trusted=None, rated=()):
    weights = ("consistency_weight=1", "expert_weight=0.5", "testimony_weight=0", "rules={}")
    plain = [f"select.{setting}" for setting in (*weights, "balance=false", "same_evidence=false", "min_gap=0.2")]
    settings = load_settings("mini", [*plain, *overrides])
    ids = sorted({row["item_id"] for row in judgments})
    items = [{"item_id": name, **about("i"), "question": "How many?", "responses": ["Two.", "Three."]} for name in ids]
    routes = [
        {"item_id": name, "first": 0, "second": 1, "winner": 0, "route": "low", "probability": probability}
        for name in ids
    ]
    tables = (
        pa.Table.from_pylist(items, ITEMS),
        pa.Table.from_pylist(routes),
        pa.Table.from_pylist(judgments, JUDGMENTS),
        *(() if trusted is None else (pa.Table.from_pylist(trusted),)),
        *(pa.Table.from_pylist(rows, SCORES) for rows in rated),
    )
    return select.choose(settings, *tables).to_pylist()
