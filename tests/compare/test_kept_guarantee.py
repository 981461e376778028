"""How often the router keeps its guarantee, on margins whose truth is known.

The guarantee that only just holds is nightly: it resamples longest, and what is sampled, counted and judged is tested
by itself here.
"""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from carevl.compare.guarantee import by_labels, draw_images, measure_guarantee, true_precision
from carevl.confidence.pairs import Pairs
from carevl.confidence.policies import fit_router
from carevl.settings.router import RouterSettings
from carevl.stages.route import Fitting


def _fitting(margins, gold):
    n = len(margins)
    ids = pa.array([f"{k:06d}" for k in range(n)])
    unknown = np.full(n, np.nan, np.float32)
    pairs = Pairs(
        experts=("expert",),
        views=("default",),
        item_id=ids,
        image_id=ids,
        item=np.arange(n, dtype=np.int32),
        first=np.zeros(n, np.int32),
        second=np.ones(n, np.int32),
        margins=margins.astype(np.float32).reshape(n, 1, 1),
        no_caption=unknown.reshape(n, 1),
        lengths=np.full((n, 2), 10, np.int32),
        equal=np.zeros(n, np.bool_),
        source=unknown,
        gold=gold.astype(np.float32),
    )
    return Fitting(pairs, np.ones(n, np.bool_), n, n_text=0, n_shown=n)


def _noisy(n, sharpness):
    """Margins that are right with probability sigmoid(sharpness * |margin|), and their labels."""
    rng = np.random.default_rng(0)
    margins = rng.normal(size=n)
    right = rng.random(n) < 1 / (1 + np.exp(-sharpness * np.abs(margins)))
    return margins, np.where(right, np.sign(margins), -np.sign(margins))


def test_a_router_with_much_to_go_on_keeps_its_guarantee():
    found = measure_guarantee(RouterSettings(precision=0.9), _fitting(*_noisy(2000, 4.0)), 40, lambda _: None)
    assert found["resamples"] == 40
    assert found["promised"] == 1.0
    assert found["kept"] >= 0.9


def test_a_router_that_guarantees_nothing_has_kept_nothing():
    found = measure_guarantee(RouterSettings(precision=0.95), _fitting(*_noisy(300, 0.1)), 5, lambda _: None)
    assert found == {"resamples": 5, "promised": 0.0, "kept": None}


@pytest.mark.nightly
def test_a_guarantee_that_only_just_holds_is_kept_as_often_as_its_confidence_level():
    """At the boundary, where the loosest threshold that passes has about the guaranteed precision."""
    fitting = _fitting(*_noisy(1500, 2.0))
    found = measure_guarantee(RouterSettings(precision=0.85), fitting, 300, lambda _: None)
    assert found["promised"] > 0.9
    assert found["kept"] >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 300)


def test_images_are_drawn_with_all_their_pairs():
    pairs = _fitting(*_noisy(6, 1.0)).labelled
    pairs = replace(pairs, image_id=pa.array(["a", "a", "b", "c", "c", "c"]))
    drawn = draw_images(pairs, 1)
    taken = dict(zip(drawn.item_id.to_pylist(), drawn.margins[:, 0, 0], strict=True))
    known = dict(zip(pairs.item_id.to_pylist(), pairs.margins[:, 0, 0], strict=True))
    assert taken == {key: known[key] for key in taken}
    assert len(set(drawn.images())) == 3
    sizes = sorted(np.bincount(drawn.images()))
    assert set(sizes) <= {1, 2, 3}
    again = draw_images(pairs, 1)
    assert again.item_id.equals(drawn.item_id)
    assert not all(draw_images(pairs, seed).item_id.equals(drawn.item_id) for seed in range(2, 6))


def test_true_precision_counts_images_not_pairs():
    """One image with three right pairs, one with a wrong one: half of the images are right."""
    pairs = _fitting(np.array([2.0, 2.0, 2.0, 2.0]), np.array([1, 1, 1, -1])).labelled
    pairs = replace(pairs, image_id=pa.array(["a", "a", "a", "b"]))
    router = fit_router(RouterSettings(threshold=0.5), None, pairs)
    assert true_precision(router, pairs) == pytest.approx(0.5)


def test_labelled_pairs_are_judged_by_a_router_that_has_not_seen_them():
    fitting = _fitting(*_noisy(1000, 3.0))
    fitting.pairs.gold[::50] = 0
    confidence, right, high, tied = by_labels(RouterSettings(threshold=0.8), fitting.pairs, None)
    assert len(confidence) == len(right) == len(high) == 1000
    assert (high == (confidence >= 0.8)).all()
    assert right[high].mean() > right[~high].mean() + 0.2
    assert right[high].mean() == pytest.approx(confidence[high].mean(), abs=0.05)
    assert tied.sum() == 20
    assert not right[tied].any()
