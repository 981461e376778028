"""Lines by which a response may try to win, in some prompts of phase 1: the judge learns to judge as if they were not.

They are those of the audit (`carevl.audit.injection`) that can be written without a judge's chat template.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from carevl.audit.injection import LINES
from carevl.judging.verdicts import read_verdict
from carevl.stats.draws import hash_uniform

KINDS = ("verdict", "instruction")


def inject_lines(targets: pa.Table, items: pa.Table, share: float, seed: int) -> pa.Table:
    """Return a part of TARGETS, in a share of whose items each pair has a line at the end of one of its responses.

    As many of these pairs, give or take one, have it in the better response as in the other; both orders of a pair have
    it in the same. Ratings and rankings stay as they are.

    Args:
        items: `item_id` and `responses` of the items.
    """
    responses = dict(zip(items["item_id"].to_pylist(), items["responses"].to_pylist(), strict=True))
    rows = targets.to_pylist()
    carriers: dict[tuple[str, tuple[int, ...]], int] = {}
    for row in sorted(rows, key=lambda row: hash_uniform(seed, row["item_id"], sorted(row["order"]), "carrier")):
        item, pair = row["item_id"], tuple(sorted(row["order"]))
        chosen = row["task"] == "pairwise" and hash_uniform(seed, item, "injected") < share
        value = read_verdict(row["text"]).value
        if chosen and isinstance(value, int) and (item, pair) not in carriers:
            in_better = len(carriers) % 2 == 0
            carriers[item, pair] = row["order"][value - 1 if in_better else 2 - value]
    changed = [_with_line(row, carriers, responses[row["item_id"]], seed) for row in rows]
    return pa.Table.from_pylist(changed, targets.schema)


def _with_line(
    row: dict[str, Any], carriers: dict[tuple[str, tuple[int, ...]], int], responses: list[str], seed: int
) -> dict[str, Any]:
    item, pair = row["item_id"], tuple(sorted(row["order"]))
    carrier = carriers.get((item, pair)) if row["task"] == "pairwise" else None
    if carrier is None:
        return row
    kind = KINDS[int(hash_uniform(seed, item, pair, "kind") * len(KINDS))]
    n = row["order"].index(carrier) + 1
    shown = f"Answer {n}: {responses[carrier]}"
    before, found, behind = row["prompt"].rpartition(shown) if n == 2 else row["prompt"].partition(shown)
    if not found:
        return row
    line, end = "\n" + LINES[kind].replace("{n}", str(n)), len(before) + len(found)
    places = [place + len(line) * (place > end) for place in row["places"]]
    return row | {"prompt": f"{before}{found}{line}{behind}", "places": places}
