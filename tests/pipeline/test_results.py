"""The shares of right labels: a winner where the truth is a tie is a wrong one, and ties are counted beside them."""

import pyarrow as pa
import pytest

from carevl.data.truth import Truth
from carevl.pipeline.results import pair_figures, routing_figures, table
from carevl.store.schemas import PAIRS, ROUTES
from carevl.store.table import Table

ITEMS = {name: {"images": ["a"], "question": name, "responses": ["yes", "no", "Yes."]} for name in "xyz"}
TRUTHS = {("a", name): Truth("kind", True, {"yes": 5, "no": 1, "Yes.": 5}) for name in "xyz"}


@pytest.fixture
def make_table(tmp_path):
    def make(schema, rows):
        made = Table(tmp_path / "table")
        made.write(0, pa.Table.from_pylist(rows, schema))
        return made

    return make


def _routes():
    labels = [("x", 0, 1, "high", 0), ("y", 0, 2, "high", 2), ("y", 1, 2, "low", 1), ("z", 0, 2, "low", -1)]
    names = ("item_id", "first", "second", "route", "winner")
    return [dict(zip(names, label, strict=True)) | {"reason": "undecided"} for label in labels]


def test_a_winner_on_a_tie_lowers_the_precision_and_none_there_does_not(make_table):
    figures = routing_figures(make_table(ROUTES, _routes()), ITEMS, TRUTHS)
    assert (figures["high_precision"]["value"], figures["high_ties"]) == (0.5, 1)
    assert (figures["low_precision"]["value"], figures["low_ties"]) == (0.0, 0)
    lines = list(table({"routing": figures}))
    assert lines[1].endswith("(wrong: 1 on ties)")
    assert lines[2].endswith("(wrong: 0 on ties)")


def test_a_pair_that_prefers_one_of_two_equally_good_responses_is_not_the_right_way(make_table):
    stored = [
        ("x", "pairwise", [0, 1], 0, 1),
        ("x", "pairwise", [1, 0], 0, 1),
        ("y", "pairwise", [0, 2], 2, 0),
        ("z", "pointwise", [1], 1, 0),
    ]
    names = ("item_id", "task", "order", "winner", "loser")
    figures = pair_figures(make_table(PAIRS, [dict(zip(names, row, strict=True)) for row in stored]), ITEMS, TRUTHS)
    assert (figures["right_way"]["value"], figures["ties"]) == (0.5, 1)
    assert figures["tasks"] == {"pairwise": 3, "pointwise": 1}
    [line] = table({"pairs": figures})
    assert line.startswith("pairs of phase 2: 4 (3 pairwise, 1 pointwise) from 3 items, 0.500")
    assert line.endswith("the right way (wrong: 1 on ties)")


def test_pairs_of_a_version_before_other_tasks_are_counted(make_table):
    rows = [{"item_id": "x", "order": [1, 0], "winner": 0}, {"item_id": "y", "order": [0, 1], "winner": 1}]
    schema = pa.schema([field for field in PAIRS if field.name not in ("task", "loser")])
    figures = pair_figures(make_table(schema, rows), ITEMS, TRUTHS)
    assert (figures["tasks"], figures["right_way"]["value"]) == ({"pairwise": 2}, 0.5)


def test_without_truth_nothing_is_said_of_right_and_wrong(make_table):
    figures = routing_figures(make_table(ROUTES, _routes()), ITEMS, {})
    assert figures.keys() == {"high", "low", "dropped", "reasons"}
