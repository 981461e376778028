from __future__ import annotations

import pytest

from carevl.stats.estimate import Estimate, format_estimate

HALF: Estimate = {"value": 0.54, "low": 0.496, "high": 0.5834}


def test_an_estimate_is_written_with_its_interval():
    assert format_estimate(HALF) == "0.540 (0.496 to 0.583)"


@pytest.mark.parametrize(
    ("digits", "sign", "text"), [(2, False, "0.54 (0.50 to 0.58)"), (3, True, "+0.540 (+0.496 to +0.583)")]
)
def test_digits_and_sign_are_options(digits, sign, text):
    assert format_estimate(HALF, digits=digits, sign=sign) == text


def test_a_sign_keeps_what_is_below_zero():
    difference: Estimate = {"value": -0.01, "low": -0.05, "high": 0.03}
    assert format_estimate(difference, digits=2, sign=True) == "-0.01 (-0.05 to +0.03)"


def test_without_an_interval_the_value_stands_alone():
    assert format_estimate({"value": 1.0, "low": None, "high": None, "n": 3}) == "1.000"


@pytest.mark.parametrize("estimate", [None, {"value": None, "low": None, "high": None}])
def test_what_is_undefined_has_a_text_of_its_own(estimate):
    assert format_estimate(estimate) == "-"
    assert format_estimate(estimate, undefined="unknown") == "unknown"
