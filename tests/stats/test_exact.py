from __future__ import annotations

import pytest
from scipy.stats import binomtest

from carevl.stats.exact import clopper_pearson, share


@pytest.mark.parametrize(("n_right", "n"), [(0, 7), (7, 7), (1, 2), (90, 100), (444, 690)])
@pytest.mark.parametrize("confidence_level", [0.9, 0.95])
def test_the_interval_is_that_of_scipy(n_right, n, confidence_level):
    interval = binomtest(n_right, n).proportion_ci(confidence_level)
    assert clopper_pearson(n_right, n, confidence_level) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_no_draws_allow_every_share():
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_a_share_comes_with_its_interval():
    low, high = clopper_pearson(3, 4)
    assert share([True, True, False, True]) == {"value": 0.75, "low": low, "high": high}
