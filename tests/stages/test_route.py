from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.settings.loader import load_settings
from carevl.stages import route
from carevl.store.run import RunError
from carevl.store.schemas import ITEMS, SCORES
from carevl.store.table import Table
from tests.helpers.items import about

EXPERTS = ("llama", "qwen2", "mistral")
reads: Counter[tuple[Path, int]] = Counter()


class CountedTable(Table):
    """A table that counts how often each part is read."""

    def read(self, number=None, columns=None):
        reads[self.part(number)] += 1
        return super().read(number, columns)


@pytest.fixture
def tables(tmp_path):
    """Items in three parts, a third of them labelled, and the scores of three experts; one view is in part 2 only."""
    rng = np.random.default_rng(0)
    items = CountedTable(tmp_path / "items")
    scores = [CountedTable(tmp_path / expert) for expert in EXPERTS]
    reads.clear()
    for part in range(3):
        rows = [
            {
                "item_id": f"{part}-{k:03d}",
                **about(f"image-{part}-{k // 2}"),
                "responses": ["yes", "no", "maybe"][: 2 + k % 2],
                "gold": [1.0, 0.0, 0.0][: 2 + k % 2] if k % 3 == 0 else None,
            }
            for k in range(60)
        ]
        items.write(part, pa.Table.from_pylist(rows, ITEMS))
        for table in scores:
            table.write(
                part,
                pa.Table.from_pylist(
                    [
                        {
                            "item_id": row["item_id"],
                            "expert": table.directory.name,
                            "view": view,
                            "scores": (rng.normal(size=len(row["responses"])) + [1, 0, 0][: len(row["responses"])]),
                        }
                        for row in rows
                        for view in (("default", "none") if part < 2 else ("default", "other", "none"))
                    ],
                    SCORES,
                ),
            )
    return items, scores


def test_parts_are_read_once_to_fit_and_once_to_route_and_the_routes_are_those_of_all_pairs_at_once(tables, tmp_path):
    items, scores = tables
    settings = load_settings("mini", ["router.threshold=0.6"])
    target = Table(tmp_path / "routes")
    counts = route.run_route(settings, items, scores, target)
    assert set(reads.values()) == {2}
    assert len(reads) == 3 * (1 + len(EXPERTS))

    everything = pa.concat_tables([table.read(part) for table in scores for part in range(3)])
    all_items = pa.concat_tables([items.read(part) for part in range(3)])
    pairs = Pairs.from_arrow(all_items, everything, EXPERTS, ["default", "other"])
    labelled = ~np.isnan(pairs.gold)
    expected = fit_router(settings.router, pairs.select(labelled), pairs.select(~labelled)).route(pairs)
    assert target.read().equals(pa.Table.from_batches([expected]))
    assert counts["rows_in"] == 180
    assert counts["rows_out"] == sum(counts["routes"].values()) == len(pairs)


def test_what_is_held_to_fit_is_the_labels_and_a_bounded_sample_of_every_part(tables, monkeypatch):
    items, scores = tables
    monkeypatch.setattr(route, "SAMPLE", 30)
    fitting = route.read_fitting(items, scores, EXPERTS)
    labelled, unlabelled = (
        set(part.item_id.take(part.item).to_pylist()) for part in (fitting.labelled, fitting.unlabelled)
    )
    assert labelled == {f"{part}-{k:03d}" for part in range(3) for k in range(0, 60, 3)}
    firsts = [k for k in range(60) if k % 3][:10]
    assert unlabelled == {f"{part}-{k:03d}" for part in range(3) for k in firsts}
    assert fitting.n_items == 180


def test_a_guarantee_that_cannot_be_given_names_the_way_out(tables, tmp_path):
    settings = load_settings("mini", ["router.policy=target_precision"])
    items, scores = tables
    with pytest.raises(RunError, match=r"route: .* labelled images; .*router\.fallback"):
        route.run_route(settings, items, scores, Table(tmp_path / "routes"))
