"""What arms learn from, as pure functions of stored routes."""

import pyarrow as pa
import pytest

from carevl.compare.labels import Labels, pair_uniforms
from carevl.store.schemas import ROUTES

ROWS = [
    ("a", "high", 0, 0.9),
    ("b", "low", 1, 0.4),
    ("c", "low", -1, 0.5),
    ("d", "dropped", None, None),
    ("e", "low", 0, 0.7),
    ("f", "dropped", 1, 0.1),
]


def _routes(rows):
    return pa.Table.from_pylist(
        [
            {"item_id": item, "first": 0, "second": 1, "route": route, "winner": winner, "probability": p}
            for item, route, winner, p in rows
        ],
        ROUTES,
    )


def _told(routes):
    return {row["item_id"]: (row["route"], row["winner"]) for row in routes.to_pylist()}


def test_every_pair_with_a_winner_is_high_and_keeps_it():
    told = Labels("every").apply(_routes(ROWS), seed=0, most=1.0)
    assert told.schema == ROUTES
    assert _told(told) == {
        "a": ("high", 0),
        "b": ("high", 1),
        "c": ("low", -1),
        "d": ("dropped", None),
        "e": ("high", 0),
        "f": ("dropped", 1),
    }


def test_a_threshold_is_on_the_winners_probability():
    told = _told(Labels("threshold", 0.65).apply(_routes(ROWS), seed=0, most=1.0))
    assert [item for item, (route, _) in told.items() if route == "high"] == ["a", "e"]
    assert told["b"] == ("low", 1)


def test_a_subset_takes_the_smallest_lots_whatever_the_router_said():
    routes = _routes(ROWS)
    drawn = dict(zip("abcdef", pair_uniforms(routes, 3, "subset"), strict=True))
    smallest = min("abe", key=lambda item: drawn[item])
    told = _told(Labels("subset").apply(routes, seed=3, most=drawn[smallest]))
    assert [item for item, (route, _) in told.items() if route == "high"] == [smallest]


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
def test_drawn_winners_follow_the_probability(probability):
    n = 2000
    winner = 0 if probability > 0.5 else 1
    routes = _routes([(f"item-{k}", "low", winner, probability) for k in range(n)])
    winners = [row["winner"] for row in Labels("drawn").apply(routes, seed=0, most=1.0).to_pylist()]
    assert winners.count(0) / n == pytest.approx(probability, abs=0.04)


def test_labels_are_the_same_in_any_order_and_others_with_another_seed():
    routes = _routes([(f"item-{k}", "low", 0, 0.5 + k / 100) for k in range(40)])
    shuffled = routes.take(list(reversed(range(40))))
    drawn = Labels("drawn")
    assert _told(drawn.apply(routes, 0, 1.0)) == _told(drawn.apply(shuffled, 0, 1.0))
    assert _told(drawn.apply(routes, 0, 1.0)) != _told(drawn.apply(routes, 1, 1.0))
