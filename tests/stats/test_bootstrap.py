from __future__ import annotations

import numpy as np
import pytest

from carevl.benchmarks.comparison import compare, mcnemar
from carevl.stats.bootstrap import Scored, accuracy_statistics, bootstrap, estimate, mean, pearson, ratio


def _scored(right, groups=None, units=None) -> Scored:
    keys = tuple(str(i) for i in range(len(right)))
    right = np.array(right, np.float64)
    return Scored(keys, units or keys, right, accuracy_statistics(right, groups or ["g"] * len(keys)))


def test_overall_is_over_rows_and_macro_over_groups():
    found = estimate(_scored([1, 0, 0, 0, 1, np.nan], ["a", "a", "a", "a", "b", "b"]))
    assert {name: figure["value"] for name, figure in found.items()} == {
        "overall": 2 / 5,
        "macro": (1 / 4 + 1) / 2,
        "a": 1 / 4,
        "b": 1.0,
    }
    assert found["b"] == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_the_interval_has_the_width_of_a_binomial():
    found = estimate(_scored([1] * 250 + [0] * 250))["overall"]
    half = 1.96 * np.sqrt(0.25 / 500)
    assert found["low"] == pytest.approx(0.5 - half, abs=0.01)
    assert found["high"] == pytest.approx(0.5 + half, abs=0.01)


def test_rows_of_one_image_are_resampled_together():
    right = [1, 1, 1, 1, 1, 0, 0, 0, 0, 0] * 20
    alone = estimate(_scored(right))["overall"]
    together = estimate(_scored(right, units=tuple(str(i // 5) for i in range(200))))["overall"]
    ratio_of_widths = (together["high"] - together["low"]) / (alone["high"] - alone["low"])
    assert ratio_of_widths == pytest.approx(np.sqrt(5), rel=0.15)


def test_the_same_seed_gives_the_same_interval_and_another_another():
    scored = _scored([1, 0] * 60)
    assert estimate(scored, seed=3) == estimate(scored, seed=3)
    assert estimate(scored, seed=3) != estimate(scored, seed=4)


def test_undefined_figures_are_none_not_nan():
    found = estimate(_scored([np.nan, np.nan]))
    assert found["overall"] == {"value": None, "low": None, "high": None}
    assert bootstrap({"nothing": mean([])}, [], resamples=10, seed=0)["nothing"]["value"] is None


def test_ratio_weighs_top_and_bottom():
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    assert ratio([1, 0], [1, 3])(weights).tolist()[:2] == [0.25, 1.0]
    assert np.isnan(ratio([1, 0], [1, 3])(weights)[2])


def test_pearson_agrees_with_numpy_under_weights():
    rng = np.random.default_rng(0)
    x, y = rng.integers(1, 6, 50).astype(float), rng.integers(1, 6, 50).astype(float)
    weights = rng.integers(0, 4, (3, 50)).astype(float)
    expected = [np.corrcoef(np.repeat(x, w.astype(int)), np.repeat(y, w.astype(int)))[0, 1] for w in weights]
    assert pearson(x, y)(weights) == pytest.approx(expected)


def test_pearson_leaves_missing_rows_out_and_names_a_constant():
    once = np.ones((1, 4))
    assert pearson([1, 2, 3, np.nan], [2, 4, 6, 0])(once)[0] == pytest.approx(1.0)
    assert np.isnan(pearson([3, 3, 3, 3], [1, 2, 3, 4])(once)[0])
    assert pearson([3, 3, 3, 3], [1, 2, 3, 4], constant=0.0)(once)[0] == 0
    assert np.isnan(pearson([3, 3, 3, 3], [1, 2, 3, 4], constant=0.0)(np.zeros((1, 4)))[0])


def test_mcnemar_matches_the_binomial_by_hand():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    assert mcnemar(7, 1) == mcnemar(1, 7)
    assert mcnemar(3, 3) == 1
    assert 0 < mcnemar(2000, 2400) < 1e-8


def test_a_judge_against_itself_differs_by_exactly_zero():
    scored = _scored([1, 0, 1, 1, 0] * 20)
    found = compare(scored, scored)
    assert found.differences["overall"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (found.only_a, found.only_b, found.p_value) == (0, 0, 1.0)


def test_pairing_narrows_the_interval_of_a_difference():
    hard = [1, 0] * 100
    better = hard[:-20] + [1] * 20
    a, b = _scored(better), _scored(hard)
    found = compare(a, b)
    difference, alone = found.differences["overall"], estimate(a)["overall"]
    assert difference["value"] == pytest.approx(0.05)
    assert difference["low"] > 0
    assert difference["high"] - difference["low"] < alone["high"] - alone["low"]
    assert (found.only_a, found.only_b) == (10, 0)
    assert found.p_value == pytest.approx(2 / 2**10)


def test_rows_that_one_judge_does_not_count_leave_mcnemar():
    found = compare(_scored([1, np.nan, 1]), _scored([0, 0, np.nan]))
    assert (found.only_a, found.only_b) == (1, 0)


def test_different_rows_are_not_compared():
    with pytest.raises(ValueError, match="1 rows belong to one only"):
        compare(_scored([1, 0]), _scored([1, 0, 1]))
