"""Certificates of precision: their bounds, how images are tested, and how often the guarantee is kept.

The simulation of the whole router is nightly: it fits 400 routers, and its parts are simulated here as well.
"""

import numpy as np
import pytest
from scipy import stats

from carevl.confidence.guarantee import (
    CannotCertifyError,
    Sample,
    Tally,
    choose_threshold,
    images_needed,
    labels_needed,
    one_per_image,
    split_images,
)
from carevl.confidence.policies import fit_router
from carevl.settings.router import RouterSettings

DRAWS = 1000


def allowance(draws):
    """Broken guarantees that a method which breaks 5 % of them exceeds in one of a thousand such tests."""
    return stats.binom.ppf(0.999, draws, 0.05)


def sample(confidence, right):
    return Sample(len(confidence), np.asarray(confidence, np.float32), np.asarray(right, np.bool_))


def test_59_right_pairs_certify_95_percent_and_58_do_not():
    confidence = np.full(59, 0.9)
    good = sample(confidence, np.ones(59))
    assert choose_threshold(good, good, 0.95, 0.95) == pytest.approx(0.9)
    short = sample(confidence[1:], np.ones(58))
    assert choose_threshold(good, short, 0.95, 0.95) is None


def test_testing_stops_at_the_first_threshold_that_fails():
    # all right at 0.9, all wrong at 0.8, and so many right at 0.7 that the loosest threshold would pass by itself
    test = sample(np.repeat([0.9, 0.8, 0.7], [200, 30, 5000]), np.repeat([True, False, True], [200, 30, 5000]))
    assert stats.binom.cdf(30, 5230, 0.05) < 0.05
    pilot = sample(np.repeat([0.9, 0.8, 0.7], [200, 30, 50]), np.repeat([True, False], [200, 80]))
    assert choose_threshold(pilot, test, 0.95, 0.95) == pytest.approx(0.9)


def test_testing_begins_where_the_pilot_sees_the_best_odds():
    # at 0.9 the test has five pairs, too few for any guarantee; starting there would end the sequence at once
    confidence, right = np.repeat([0.9, 0.7], [5, 995]), np.ones(1000)
    pilot = test = sample(confidence, right)
    assert choose_threshold(pilot, test, 0.95, 0.95) == pytest.approx(0.7)


def test_no_eligible_pair_certifies_nothing():
    assert choose_threshold(sample([], []), sample([0.9] * 100, [True] * 100), 0.95, 0.95) is None


def test_about_630_labels_certify_95_percent_when_the_truth_is_97():
    needed = int(labels_needed(np.array([0.97]), 0.95, 0.95)[0])
    assert 610 <= needed <= 660
    most_wrong = max(k for k in range(needed) if stats.binom.cdf(k, needed, 0.05) <= 0.05)
    assert stats.binom.cdf(most_wrong, needed, 0.03) >= 0.8


def test_no_number_of_labels_certifies_what_is_not_so():
    assert np.isinf(labels_needed(np.array([0.95, 0.9]), 0.95, 0.95)).all()


def test_images_needed_count_those_that_are_not_routed_high_nor_tested():
    rng = np.random.default_rng(0)
    confidence = rng.choice([0.6, 0.9], 4000)
    right = rng.random(4000) < np.where(confidence > 0.8, 0.97, 0.6)
    needed = images_needed(sample(confidence, right), 0.95, 0.95, share=0.5)
    assert needed is not None
    tested = needed / 2 * 0.5 * 0.5  # twice over, half of them tested, half of these high
    assert 200 < tested < 1300


def test_clopper_pearson_interval():
    interval = stats.binomtest(90, 100).proportion_ci(0.95, method="exact")
    assert Tally(200, 100, 10).precision_interval() == pytest.approx((interval.low, interval.high))
    assert Tally(10, 0, 0).precision_interval() == (0.0, 1.0)
    assert Tally(10, 5, 0).precision_interval()[1] == 1.0
    assert Tally(10, 5, 5).precision_interval()[0] == 0.0


def test_images_are_split_whole_and_the_same_for_any_order_of_rows(make_pairs):
    images = [f"image{k // 3:03d}" for k in range(300)]
    pairs = make_pairs(np.arange(300), images=images)
    parts = split_images(pairs, (0.25, 0.5, 0.25), seed=1)
    assert [len(part) for part in parts] == [75, 150, 75]
    assert not set(parts[0].images()) & set(parts[1].images())
    shuffled = pairs.select(np.random.default_rng(0).permutation(300))
    for part, again in zip(parts, split_images(shuffled, (0.25, 0.5, 0.25), seed=1), strict=True):
        np.testing.assert_array_equal(part.margins, again.margins)
    other = split_images(pairs, (0.25, 0.5, 0.25), seed=2)
    assert not np.array_equal(other[0].margins, parts[0].margins)


def test_one_random_pair_of_each_image_is_tested(make_pairs):
    pairs = make_pairs(np.zeros(3000), images=[f"image{k // 3:04d}" for k in range(3000)])
    rows = one_per_image(pairs, seed=0)
    assert sorted(pairs.images()[rows]) == list(range(1000))
    assert (np.bincount(rows % 3) > 270).all()


def test_the_guarantee_is_kept_where_every_threshold_is_at_the_boundary():
    rng, broken = np.random.default_rng(0), 0
    for _ in range(DRAWS):
        pilot, test = (sample(rng.uniform(0.5, 1, n), rng.random(n) < 0.95) for n in (300, 900))
        broken += choose_threshold(pilot, test, 0.95, 0.95) is not None
    assert 0 < broken <= allowance(DRAWS)


def test_the_guarantee_is_kept_where_precision_crosses_the_target_and_picking_by_eye_breaks_it():
    rng, broken, broken_by_eye, found = np.random.default_rng(1), 0, 0, 0
    for _ in range(DRAWS):
        samples = []
        for n in (500, 1000):
            confidence = rng.uniform(0.5, 1, n)
            samples.append(sample(confidence, rng.random(n) < 0.86 + 0.12 * (2 * confidence - 1)))
        pilot, test = samples
        boundary = 0.75  # the precision above a threshold is 0.86 + 0.12 * threshold
        threshold = choose_threshold(pilot, test, 0.95, 0.95)
        found += threshold is not None
        broken += threshold is not None and threshold < boundary
        order = np.argsort(-test.confidence)
        share_right = np.cumsum(test.right[order]) / np.arange(1, 1001)
        by_eye = test.confidence[order][np.flatnonzero(share_right >= 0.95).max(initial=0)]
        broken_by_eye += by_eye < boundary
    assert broken <= allowance(DRAWS) < broken_by_eye
    assert found > DRAWS / 10


def _certified(make_pairs, rng, images):
    """Whether a router guarantees 95 % where 95 % of the images, at any confidence, have all three pairs right."""
    size, gold, right = rng.uniform(0.5, 3, 600), rng.choice([-1, 1], 600), rng.random(600) < 0.95
    margins = np.repeat(size * np.where(right, gold, -gold), 3)
    labelled = make_pairs(margins, gold=np.repeat(gold, 3), images=images)
    settings = RouterSettings(policy="target_precision", seed=int(rng.integers(1 << 30)))
    try:
        return fit_router(settings, labelled, None).certificate is not None
    except CannotCertifyError:
        return False


@pytest.mark.nightly
def test_the_whole_router_keeps_its_guarantee_though_pairs_of_an_image_depend_on_each_other(make_pairs):
    rng = np.random.default_rng(2)
    images = [f"image{k // 3:04d}" for k in range(1800)]
    assert sum(_certified(make_pairs, rng, images) for _ in range(300)) <= allowance(300)
    assert sum(_certified(make_pairs, rng, None) for _ in range(100)) > allowance(100)  # as if they were independent
