"""Lines that ask for the verdict in some prompts of phase 1: in the better response as often as in the other."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest

from carevl.audit.injection import LINES
from carevl.errors import SettingsError
from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.settings.loader import load_settings
from carevl.stages import sft
from carevl.stages.injected_lines import KINDS, inject_lines
from carevl.store.ingested import Ingested
from carevl.store.schemas import ITEMS, TARGETS
from carevl.store.table import Table
from tests.helpers.finished_run import FINISHED
from tests.helpers.items import about, write_images

RESPONSES = ["Two cups.\nNo more.", "A cup.", "Two cups."]
N = 120


def _target(item, task, order, text):
    prompt = judge_prompt(task, "How many?", RESPONSES, order)
    shown = {"prompt": prompt, "places": [0], "text": text, "evidence": True}
    return {"item_id": item, "task": task, "order": order, **shown}


def _rows(item, winner):
    pairwise = [
        _target(item, "pairwise", order, write_judgment("Two.", winner=order.index(winner) + 1))
        for order in ([0, 1], [1, 0], [1, 2], [2, 1])
        if winner in order
    ]
    rated = _target(item, "pointwise", [winner], write_judgment("Two.", rating=5))
    return [*pairwise, rated, _target(item, "ranking", [0, 2, 1], write_judgment("Two.", ranking=(1, 2, 3)))]


TARGETS_TABLE = pa.Table.from_pylist([row for n in range(N) for row in _rows(f"item-{n}", n % 2)], TARGETS)
OF_ITEMS = pa.table({"item_id": [f"item-{n}" for n in range(N)], "responses": [RESPONSES] * N})


def _injected(share, seed=0):
    """Rows before and after, with the position of the response that has a line, and the line."""
    found = []
    after = inject_lines(TARGETS_TABLE, OF_ITEMS, share, seed)
    assert after.schema == TARGETS
    for before, row in zip(TARGETS_TABLE.to_pylist(), after.to_pylist(), strict=True):
        assert row | {"prompt": before["prompt"]} == before
        if row["prompt"] == before["prompt"]:
            continue
        lines = [(n, kind, LINES[kind].replace("{n}", str(n))) for n in (1, 2) for kind in KINDS]
        [(n, kind)] = [
            (n, kind)
            for n, kind, line in lines
            for shown in [f"Answer {n}: {RESPONSES[row['order'][n - 1]]}\n"]
            if row["prompt"] == before["prompt"].replace(shown, f"{shown}{line}\n")
        ]
        found.append((before, n, kind))
    return found


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_items_has_lines_in_its_pairs_alone(share):
    found = _injected(share)
    assert {row["task"] for row, _, _ in found} <= {"pairwise"}
    assert len({row["item_id"] for row, _, _ in found}) == pytest.approx(share * N, abs=0 if share in (0, 1) else 20)
    per_item = Counter(row["item_id"] for row, _, _ in found)
    assert all(per_item[f"item-{n}"] in (0, 2 if n % 2 == 0 else 4) for n in range(N))
    assert found == _injected(share)
    assert not share or share == 1 or found != _injected(share, seed=1)


def test_the_better_response_has_the_line_as_often_as_the_other_and_in_both_orders_of_a_pair():
    in_better, carriers, kinds = Counter(), {}, Counter()
    for row, n, kind in _injected(1.0):
        in_better[f"Answer {n} is better" in row["text"]] += 1
        kinds[kind] += 1
        key = row["item_id"], tuple(sorted(row["order"]))
        assert carriers.setdefault(key, (row["order"][n - 1], kind)) == (row["order"][n - 1], kind)
    assert in_better[True] == in_better[False] == N + N // 2
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > N


def test_rows_of_phase_1_have_the_lines(tmp_path):
    ingested, targets = Ingested(tmp_path / "ingest"), Table(tmp_path / "targets")
    item = {"item_id": "item-0", **about("i"), "question": "How many?", "responses": RESPONSES}
    ingested.items.write(0, pa.Table.from_pylist([item], ITEMS))
    write_images(ingested, 0, pa.table({"image_id": ["i"], "bytes": [b"image"]}))
    targets.write(0, pa.Table.from_pylist(_rows("item-0", 0), TARGETS))
    for share, lines in ((0.0, 0), (1.0, 2)):
        rows = Table(tmp_path / f"rows-{share}")
        assert sft.write_targets(targets, ingested, rows, share, seed=0) == [0]
        prompts = rows.read()["prompt"].to_pylist()
        assert (
            sum(LINES[KINDS[0]][:16] in text.split("Give")[0] or LINES[KINDS[1]] in text for text in prompts) == lines
        )


def test_the_share_is_of_phase_1_and_in_its_fingerprint_where_it_is_set():
    before, after = (
        sft.fingerprint_inputs(load_settings("mini", more), FINISHED, "sft")["training"]
        for more in ([], ["sft.injected_share=0.1"])
    )
    assert "injected_share" not in before
    assert after == before | {"injected_share": 0.1}
    with pytest.raises(SettingsError, match=r"set sft\.injected_share"):
        load_settings("mini", ["dpo.injected_share=0.1"])
