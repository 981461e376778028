"""Figures and intervals of arms, on cases worked out by hand."""

import numpy as np
import pytest

from carevl.benchmarks.predictions import Prediction
from carevl.benchmarks.rows import Image, Row
from carevl.compare.guarantee import sweep
from carevl.compare.outcomes import Resamples, estimate, of_predictions, of_probabilities, over_seeds


def _row(key, gold=(1.0, 0.0), image="i"):
    return Row(key, "pairwise", "general", "q", ("a", "b"), gold, (Image(image),))


def _prediction(key, order, winner, probability=None):
    status = "none" if winner is None else "ok"
    return Prediction("vl-rewardbench", "strict", "j", key, order, 0, "", "", winner, None, None, status, probability)


def _asked(key, winners, probabilities=(None, None)):
    orders = ((0, 1), (1, 0))
    return [_prediction(key, *told) for told in zip(orders, winners, probabilities, strict=True)]


def test_strict_single_order_and_consistency():
    rows = [_row("both"), _row("one"), _row("wrong", (0.0, 1.0)), _row("mute")]
    predictions = [
        *_asked("both", (0, 0)),
        *_asked("one", (0, 1)),
        *_asked("wrong", (0, 0)),
        *_asked("mute", (0, None)),
    ]
    found = of_predictions(rows, predictions)
    assert found["strict"].tolist() == [1, 0, 0, 0]
    assert found["single_order"].tolist() == [1, 0.5, 0, 0.5]
    assert found["order_consistency"].tolist() == [1, 0, 1, 0]
    assert np.isnan(found["ece"]).all()


def test_calibration_error_is_confidence_less_accuracy_in_its_bin():
    rows = [_row("a"), _row("b", (0.0, 1.0))]
    predictions = [*_asked("a", (0, 0), (0.8, 0.8)), *_asked("b", (0, 1), (0.8, 0.2))]
    # Four verdicts claim 0.8 and three are right.
    assert of_predictions(rows, predictions)["ece"].mean() == pytest.approx(0.05)


def test_a_judge_without_orders_is_strict_as_it_is_in_one():
    rows = [_row("a"), _row("b", (0.0, 1.0)), _row("even"), _row("unknown")]
    found = of_probabilities(rows, {"a": 0.9, "b": 0.6, "even": 0.5, "unknown": None})
    assert found["strict"].tolist() == found["single_order"].tolist() == [1, 0, 0, 0]
    assert found["order_consistency"].tolist() == [1, 1, 0, 0]


def test_images_and_seeds_are_drawn_together():
    drawn = Resamples.draw(2, ["x", "x", "y"], resamples=4000)
    assert (drawn.seeds[1:].sum(axis=1) == 2).all()
    assert (drawn.rows[:, 0] == drawn.rows[:, 1]).all()
    values = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    means = drawn.means(values)
    assert means[0] == pytest.approx(2 / 6)
    # Rows of x are drawn 0, 1 or 2 times (chances 1/4, 1/2, 1/4) and so is the first seed: right a / 2 times b.
    share_of_x = {0: 0.0, 1: 2 / 3, 2: 1.0}
    expected = {a / 2 * share_of_x[b] for a in range(3) for b in range(3)}
    assert {round(mean, 6) for mean in means} == {round(value, 6) for value in expected}
    assert (means[1:] == 1.0).mean() == pytest.approx(1 / 16, abs=0.02)


def test_an_interval_grows_when_seeds_differ():
    units = [str(n) for n in range(200)]
    same = np.tile(np.arange(200) % 2, (5, 1)).astype(float)
    apart = np.repeat([[0.0], [0.25], [0.5], [0.75], [1.0]], 200, axis=1)
    drawn = Resamples.draw(5, units)
    narrow, wide = estimate(drawn.means(same)), estimate(drawn.means(apart))
    assert narrow["value"] == wide["value"] == 0.5
    assert wide["high"] - wide["low"] > 3 * (narrow["high"] - narrow["low"])


def test_a_paired_difference_is_certain_when_one_arm_is_always_better():
    drawn = Resamples.draw(3, [str(n) for n in range(50)])
    worse = np.random.default_rng(0).random((3, 50))
    found = estimate(drawn.means(worse + 0.1) - drawn.means(worse))
    assert [found[name] for name in ("value", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])


def test_a_subset_without_rows_has_no_figure():
    drawn = Resamples.draw(1, ["a", "b"])
    assert estimate(drawn.means(np.full((1, 2), np.nan))) == {"value": None, "low": None, "high": None}


def test_seeds_become_rows_of_a_matrix():
    one = of_probabilities([_row("a")], {"a": 0.9})
    assert over_seeds([one, one])["strict"].shape == (2, 1)


def test_a_sweep_counts_coverage_over_all_pairs_and_precision_over_known_ones():
    confidence, right = np.array([0.95, 0.85, 0.75, np.nan]), np.array([1.0, 0.0, np.nan, np.nan])
    points = [tuple(point.values()) for point in sweep(confidence, right, (0.7, 0.8, 0.9, 0.99))]
    assert points == [(0.7, 0.75, 0.5), (0.8, 0.5, 0.5), (0.9, 0.25, 1.0), (0.99, 0.0, None)]
