"""The arm whose low pairs have their true labels."""

import pyarrow as pa

from carevl.compare.oracle import true_labels
from carevl.data.truth import Truth
from carevl.store.schemas import ROUTES


def _item(name, gold=None):
    responses = ["Red.", "Blue.", "It is red."]
    return {"item_id": name, "images": [name], "question": "Which?", "responses": responses, "gold": gold}


def test_low_pairs_have_the_true_winner_and_ties_have_none():
    items = pa.Table.from_pylist([_item("a"), _item("b"), _item("labelled", [1.0, 0.0, 1.0])])
    pairs = [("a", 0, 1, "low"), ("a", 0, 2, "low"), ("a", 1, 2, "high"), ("b", 0, 1, "low"), ("labelled", 0, 1, "low")]
    routes = pa.Table.from_pylist(
        [{"item_id": name, "first": i, "second": j, "route": route, "winner": i} for name, i, j, route in pairs], ROUTES
    )
    ratings = {"Red.": 5, "Blue.": 1, "It is red.": 5}
    truths = {("a", "Which?"): Truth("colour", True, ratings), ("b", "Which?"): Truth("colour", True, {"Blue.": 5})}
    found = true_labels(items, routes, truths)
    assert found.schema == ROUTES
    rows = {(row["item_id"], row["first"], row["second"]): row for row in found.to_pylist()}
    assert {pair: (row["route"], row["winner"]) for pair, row in rows.items()} == {
        ("a", 0, 1): ("high", 0),
        ("a", 0, 2): ("low", 0),
        ("b", 0, 1): ("high", 1),
    }
    assert rows["b", 0, 1]["probability"] == 0.0
