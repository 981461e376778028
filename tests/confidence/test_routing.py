import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.confidence.routing import REASONS
from carevl.settings.router import RouterSettings
from carevl.store.schemas import ROUTES

NAN = np.nan


@pytest.fixture
def route(unit_pairs):
    """Routes pairs with margins in log-odds, under settings."""
    return lambda pairs, **settings: fit_router(
        RouterSettings(**settings), None, dataclasses.replace(unit_pairs(len(pairs.experts)), views=pairs.views)
    ).route(pairs)


def test_a_pair_that_cannot_be_used_is_dropped_with_the_first_reason_that_applies(make_pairs, route):
    pairs = make_pairs(
        [[NAN, NAN], [3, 3], [NAN, NAN], [NAN, NAN], [NAN, 3]],
        no_caption=[[NAN, NAN], [3, 3], [3, NAN], [NAN, NAN], [NAN, NAN]],
        equal=[False, True, False, False, False],
    )
    pairs.first[0] = pairs.second[0] = -1
    routes = route(pairs)
    expected = ["no_pair", "equal_responses", "missing_caption", "missing_scores", "above_threshold"]
    assert routes["reason"].to_pylist() == expected
    assert routes["route"].to_pylist() == ["dropped"] * 4 + ["high"]
    assert routes["winner"].to_pylist() == [None, 0, None, None, 0]
    assert routes["probability"].to_pylist()[2] is None


def test_a_pair_that_the_text_alone_decides_is_dropped_beyond_the_limit(make_pairs, route):
    no_caption = [[2.0], [-2.0], [0.5], [NAN]]
    pairs = make_pairs([[3.0]] * 4, no_caption=no_caption)
    routes = route(pairs, text_only_limit=0.3)
    assert routes["reason"].to_pylist() == ["text_only", *["above_threshold"] * 3]
    margins = 1 / (1 + np.exp([-2.0, 2.0, -0.5])) - 0.5
    np.testing.assert_allclose(routes["no_caption_margin"].to_numpy(zero_copy_only=False)[:3], margins, rtol=1e-5)
    assert set(route(pairs)["route"].to_pylist()) == {"high"}


def test_the_source_is_kept_as_a_signal_and_used_only_when_asked(make_pairs, route):
    pairs = make_pairs([[3.0], [3.0], [-3.0], [3.0]], source=[1, -1, 0, NAN])
    assert route(pairs)["source_agreement"].to_pylist() == [1.0, 0.0, 0.0, None]
    assert route(pairs)["route"].to_pylist() == ["high"] * 4
    routes = route(pairs, require_source=True)
    assert routes["route"].to_pylist() == ["high", "low", "low", "high"]
    assert routes["reason"].to_pylist()[1] == "against_source"


def test_agreement_is_among_the_experts_that_do_not_abstain(make_pairs, route):
    routes = route(make_pairs([[3, 3, -3], [3, 0.1, NAN], [0.1, 0.1, 0.1], [3, -3, 0]]))
    assert routes["agreement"].to_pylist() == [pytest.approx(2 / 3), 1.0, None, None]


def test_stability_is_the_share_of_views_that_name_the_winner(make_pairs, route):
    margins = [[[3, 3, -1]], [[3, NAN, 3]], [[NAN, NAN, NAN]], [[1, -1, 0]]]
    routes = route(make_pairs(margins))
    assert routes["stability"].to_pylist() == [pytest.approx(2 / 3), 1.0, None, None]
    assert routes["reason"].to_pylist()[3] == "undecided"


def test_swapping_the_responses_mirrors_the_row(make_pairs, route):
    rng = np.random.default_rng(0)
    margins, no_caption, source = rng.normal(size=(200, 3, 2)), rng.normal(size=(200, 3)), rng.choice([-1, 1], 200)
    settings = {"text_only_limit": 0.2, "require_source": True, "threshold": 0.6}
    one = route(make_pairs(margins, no_caption=no_caption, source=source), **settings)
    two = route(make_pairs(-margins, no_caption=-no_caption, source=-source), **settings)
    assert one["reason"].equals(two["reason"])
    assert one["stability"].equals(two["stability"])
    np.testing.assert_allclose(one["probability"], 1 - np.asarray(two["probability"]), atol=1e-6)
    np.testing.assert_array_equal(one["winner"], 1 - np.asarray(two["winner"]))
    assert len(set(one["reason"].to_pylist())) == 4


def draw_tables(n):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 5, n)
    items = pa.table(
        {
            "item_id": [f"item{k}" for k in range(n)],
            "images": [[f"image{k // 2}"] for k in range(n)],
            "responses": [[f"{r} of {k}" for r in range(size)] for k, size in enumerate(sizes)],
        }
    )
    rows = [
        (k, expert, view, None if rng.random() < 0.1 else rng.normal(size=sizes[k]).tolist())
        for k in range(n)
        for expert in ("a", "b")
        for view in ("dense", "none")
    ]
    item, expert, view, scores = zip(*rows, strict=True)
    return items, pa.table({"item_id": [f"item{k}" for k in item], "expert": expert, "view": view, "scores": scores})


def test_any_cut_into_blocks_gives_the_same_rows_and_loses_no_item():
    items, scores = draw_tables(60)
    whole = Pairs.from_arrow(items, scores, ["a", "b"], ["dense"])
    router = fit_router(RouterSettings(threshold=0.6), None, whole)
    cuts = [(0, 7), (7, 32), (32, 32), (32, 33), (33, 60)]
    whole_batches = [table.combine_chunks().to_batches()[0] for table in (items, scores)]
    blocks = [(whole_batches[0].slice(a, b - a), whole_batches[1].slice(4 * a, 4 * (b - a))) for a, b in cuts]
    streamed = pa.Table.from_batches(router.route_stream(blocks))
    assert streamed.equals(pa.Table.from_batches([router.route(whole)]))
    assert streamed.schema == ROUTES
    assert set(streamed["item_id"].to_pylist()) == set(items["item_id"].to_pylist())
    assert len(streamed) == sum(max(1, n * (n - 1) // 2) for n in map(len, items["responses"].to_pylist()))
    assert {"high", "low", "dropped"} == set(streamed["route"].to_pylist())


def test_every_row_is_explained_in_a_sentence(make_pairs, unit_pairs):
    pairs = make_pairs(
        [[3, 3], [0.1, 0.1], [3, -2], [3, 3], [0, 0], [3, 3], [NAN, NAN]],
        no_caption=[[NAN, NAN]] * 5 + [[3, 3], [NAN, NAN]],
        source=[1, 1, 1, -1, 1, 1, 1],
    )
    said = set()
    for policy in ("unanimous", "mean_margin"):
        router = fit_router(
            RouterSettings(policy=policy, text_only_limit=0.4, require_source=True), None, unit_pairs(2)
        )
        for row in router.route(pairs).to_pylist():
            sentence = router.explain(row)
            assert "{" not in sentence
            said.add((row["reason"], sentence))
    assert ("above_threshold", "Response 0 wins with probability 0.953, at least 0.800.") in said
    assert ("experts_disagree", "Only 50% of the experts that take a side are for response 0.") in said
    others = {"no_pair", "equal_responses", "missing_caption", "text_only_share"}
    others |= {"no_testimony", "no_labels", "few_labels", "group_below"}  # of low pairs, by their stage
    assert {reason for reason, _ in said} == set(REASONS) - others


def test_pairs_of_other_experts_are_refused(make_pairs, unit_pairs):
    router = fit_router(RouterSettings(), None, unit_pairs(2))
    with pytest.raises(ValueError, match="router was fitted on"):
        router.route(make_pairs([[1, 2, 3]]))
