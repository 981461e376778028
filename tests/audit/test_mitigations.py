"""Length-residual margins and weights by independence, on hand-computed cases."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit

from carevl.confidence.combination import Weighted, fit_weighted
from carevl.confidence.length import doublings, length_slopes, without_length
from carevl.confidence.policies import fit_router
from carevl.confidence.redundancy import effective_experts, error_correlation, errors, shared_weights
from carevl.settings.router import RouterSettings

NAN = np.nan


def test_doublings_are_log2_of_the_ratio_and_an_empty_response_counts_as_one_character(make_pairs):
    pairs = replace(make_pairs(np.zeros(3)), lengths=np.array([[40, 10], [5, 5], [0, 8]], np.int32))
    np.testing.assert_allclose(doublings(pairs), [2, 0, -3])


def test_length_slope_is_what_is_paid_with_the_label_held_fixed():
    doubled = np.array([1, -1, 2, -2, 1, -1], np.float32)
    gold = np.array([1, 1, 1, -1, -1, -1], np.float32)
    margins = np.stack([3 * gold + 0.5 * doubled, 0 * gold, np.where(doubled == 2, NAN, gold - doubled)], axis=1)
    assert length_slopes(margins, doubled, gold) == pytest.approx((0.5, 0.0, -1.0), abs=1e-6)
    # without labels, correctness that goes with length is taken for a preference
    assert length_slopes(margins[:, :1], doubled, None)[0] == pytest.approx(0.5 + 3 * 4 / 12, abs=1e-6)
    assert length_slopes(np.full((2, 1), NAN, np.float32), doubled[:2], None) == (0.0,)


def test_length_is_taken_off_every_view_and_off_the_margins_without_caption(make_pairs):
    pairs = replace(make_pairs([[[3.0, 2.0]]], no_caption=[[1.0]]), lengths=np.array([[40, 10]], np.int32))
    corrected = without_length(pairs, (0.5,))
    np.testing.assert_allclose(corrected.margins, [[[2.0, 1.0]]])
    np.testing.assert_allclose(corrected.no_caption, [[0.0]])


@pytest.mark.parametrize("labelled", [True, False])
def test_a_router_with_length_residual_undoes_a_preference_for_length(make_pairs, labelled):
    rng = np.random.default_rng(0)
    gold, lengths = rng.choice([-1.0, 1.0], 4000), rng.integers(5, 100, (4000, 2))
    doubled = np.log2(lengths[:, 0] / lengths[:, 1])
    margins = np.where(rng.random(4000) < expit(2.0), gold, -gold)
    pairs = replace(make_pairs(margins + 0.8 * doubled, gold=gold), lengths=lengths.astype(np.int32))
    fair = replace(make_pairs(margins, gold=gold), lengths=lengths.astype(np.int32))

    def routes(settings, pairs):
        router = fit_router(settings, pairs if labelled else None, None if labelled else pairs)
        return router, np.asarray(router.route(pairs)["probability"])

    router, corrected = routes(RouterSettings(length_residual=True), pairs)
    _, wanted = routes(RouterSettings(), fair)
    _, biased = routes(RouterSettings(), pairs)
    assert np.abs(corrected - wanted).max() < 0.05
    assert np.abs(biased - wanted).max() > 0.3
    assert router.ensemble.length_slopes[0] == pytest.approx(0.8, abs=0.05)
    basis = "4000 labelled pairs" if labelled else "pairs without labels"
    assert router.notes[0].startswith(f"Taken off the margins per doubling of length, from {basis}")


def test_errors_by_hand():
    p = np.array([[0.9, 0.1], [0.5, NAN], [0.2, 0.2]])
    np.testing.assert_array_equal(errors(p, np.array([1, 1, -1], np.float32)), [[0, 1], [0.5, NAN], [0, 0]])


def test_error_correlation_is_over_the_pairs_that_both_scored():
    wrong = np.array([[1, 1, 0, 0], [0, 0, 0, NAN], [1, 0, 0, 1], [0, 0, 0, NAN], [0, 1, 0, 0]], float)
    found = error_correlation(wrong)
    assert found[0, 1] == pytest.approx(np.corrcoef(wrong[:, 0], wrong[:, 1])[0, 1])
    assert found[0, 3] == pytest.approx(np.corrcoef([1, 1, 0], [0, 1, 0])[0, 1])
    assert found[0, 2] == 0  # the third never errs
    np.testing.assert_array_equal(np.diag(found), 1)


def test_twins_share_a_weight_and_count_as_one():
    twins = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], float)
    np.testing.assert_allclose(shared_weights(twins), [0.5, 0.5, 1.0])
    assert effective_experts(twins) == pytest.approx(9 / 5)
    assert effective_experts(np.ones((3, 3))) == 1
    assert effective_experts(np.array([[1, -0.4], [-0.4, 1]])) == 2
    p = np.array([[0.9, 0.9, 0.3], [0.9, NAN, 0.3], [NAN, NAN, NAN]], np.float32)
    np.testing.assert_allclose(Weighted((0.5, 0.5, 1.0)).combine(p), [0.6, 0.5, NAN], rtol=1e-6)


def test_the_weighted_mean_is_fitted_from_errors_and_needs_labels(make_pairs, unit_pairs):
    rng = np.random.default_rng(0)
    gold = rng.choice([-1.0, 1.0], 3000)
    one, other = (np.where(rng.random(3000) < 0.8, gold, -gold) for _ in range(2))
    margins = np.stack([one, one, other], axis=1)
    p = expit(margins).astype(np.float32)
    np.testing.assert_allclose(fit_weighted(p, gold.astype(np.float32)).weights, [0.5, 0.5, 1.0], atol=0.05)
    router = fit_router(RouterSettings(combination="weighted"), make_pairs(margins, gold=gold), None)
    assert router.ensemble.combiner == fit_weighted(p, gold.astype(np.float32))
    with pytest.raises(ValueError, match="combination weighted needs at least 50 labelled pairs, found 0"):
        fit_router(RouterSettings(combination="weighted"), None, unit_pairs(2))
