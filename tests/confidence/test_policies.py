import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit, logit

from carevl.confidence.guarantee import CannotCertifyError
from carevl.confidence.policies import fit_router
from carevl.settings.router import RouterSettings

NAN = np.nan


def decisions(router, pairs):
    routes = router.route(pairs)
    return list(zip(routes["route"].to_pylist(), routes["reason"].to_pylist(), strict=True))


def test_unanimous_needs_two_votes_and_all_of_one_mind(make_pairs, unit_pairs):
    router = fit_router(RouterSettings(policy="unanimous", abstain_band=0.3), None, unit_pairs(3))
    inside, outside = logit(0.79), logit(0.81)
    margins = [
        [outside, outside, outside],
        [-outside, -outside, inside],
        [outside, -outside, outside],
        [outside, inside, inside],
        [inside, inside, inside],
        [outside, outside, NAN],
        [outside, NAN, NAN],
    ]
    assert decisions(router, make_pairs(margins)) == [
        ("high", "unanimous"),
        ("high", "unanimous"),
        ("low", "experts_disagree"),
        ("low", "too_few_votes"),
        ("low", "too_few_votes"),
        ("high", "unanimous"),
        ("low", "too_few_votes"),
    ]


def test_one_expert_is_never_unanimous_but_can_pass_a_threshold(make_pairs, unit_pairs):
    pairs = make_pairs([5.0, 0.1])
    unanimous = fit_router(RouterSettings(policy="unanimous"), None, unit_pairs(1))
    assert decisions(unanimous, pairs) == [("low", "too_few_votes")] * 2
    threshold = fit_router(RouterSettings(policy="mean_margin"), None, unit_pairs(1))
    assert decisions(threshold, pairs) == [("high", "above_threshold"), ("low", "below_threshold")]


def test_mean_margin_compares_the_mean_probability_with_the_threshold(make_pairs, unit_pairs):
    router = fit_router(RouterSettings(policy="mean_margin", threshold=0.75), None, unit_pairs(2))
    margins = logit([[0.9, 0.62], [0.9, 0.58], [0.1, 0.38], [0.9, 0.1]])
    routes = router.route(make_pairs([*margins, [logit(0.76), NAN]]))
    np.testing.assert_allclose(routes["probability"], [0.76, 0.74, 0.24, 0.5, 0.76], rtol=1e-5)
    assert routes["route"].to_pylist() == ["high", "low", "high", "low", "high"]
    assert routes["winner"].to_pylist() == [0, 0, 1, -1, 0]


def test_combination_is_a_setting(make_pairs, unit_pairs):
    pairs = make_pairs([logit([0.9, 0.8, 0.1])])
    p = {
        name: fit_router(RouterSettings(combination=name), None, unit_pairs(3)).route(pairs)["probability"][0].as_py()
        for name in ("mean", "median")
    }
    assert p == pytest.approx({"mean": 0.6, "median": 0.8})


def test_label_model_trusts_two_good_experts_over_a_third(make_pairs):
    rng = np.random.default_rng(0)
    gold = rng.choice([-1, 1], 100_000)
    right = rng.random((100_000, 3)) < [0.9, 0.8, 0.7]
    unlabelled = make_pairs(np.where(right, gold[:, None], -gold[:, None]))
    router = fit_router(RouterSettings(policy="label_model", threshold=0.9), None, unlabelled)
    routes = router.route(make_pairs([[1, 1, -1], [1, -1, -1], [1, 0, 0], [0, 0, 0]]))
    one, two, three = (logit(a) for a in (0.9, 0.8, 0.7))
    expected = [expit(one + two - three), expit(one - two - three), 0.9, 0.5]
    np.testing.assert_allclose(routes["probability"], expected, atol=0.015)
    assert routes["route"].to_pylist()[:2] == ["high", "low"]
    assert routes["reason"].to_pylist()[3] == "undecided"


def test_constant_experts_decide_nothing(make_pairs):
    constant = make_pairs(np.zeros((200, 2)), gold=np.ones(200))
    for policy in ("unanimous", "mean_margin", "label_model"):
        router = fit_router(RouterSettings(policy=policy), constant, None)
        routes = router.route(constant)
        assert set(routes["reason"].to_pylist()) == {"undecided"}
        assert set(routes["winner"].to_pylist()) == {-1}
    with pytest.raises(CannotCertifyError, match="lower the precision or improve the experts") as error:
        fit_router(RouterSettings(policy="target_precision"), constant, None)
    assert error.value.images_needed is None


def draw_labelled(make_pairs, n, seed=0, source=None):
    """Two experts: one calibrated with temperature 0.5, one that is noise."""
    rng = np.random.default_rng(seed)
    margins = rng.normal(0, 2, n)
    gold = np.where(rng.random(n) < expit(margins / 0.5), 1, -1)
    return make_pairs(np.stack([margins, rng.normal(size=n)], axis=1), gold=gold, source=source)


def test_labels_set_each_experts_scale_and_only_labelled_pairs_count(make_pairs):
    labelled = draw_labelled(make_pairs, 4000)
    half = np.arange(4000) < 2000
    labelled.gold[~half] = NAN
    router = fit_router(RouterSettings(), labelled, None)
    first, second = router.ensemble.calibrations
    assert first.n_labels == 2000
    assert 1 / first.slope == pytest.approx(0.5, rel=0.15)
    assert second.slope < 0.15
    assert "temperature" in router.notes[0]


def test_gold_of_unlabelled_pairs_is_never_read(make_pairs):
    hidden = draw_labelled(make_pairs, 500)
    bare = make_pairs(hidden.margins)
    for policy in ("mean_margin", "label_model"):
        settings = RouterSettings(policy=policy)
        assert fit_router(settings, None, hidden) == fit_router(settings, None, bare)


def test_target_precision_guarantees_what_held_out_images_confirm(make_pairs):
    settings = RouterSettings(policy="target_precision", combination="learned")
    router = fit_router(settings, draw_labelled(make_pairs, 4000), None)
    fresh = draw_labelled(make_pairs, 50_000, seed=1)
    routes = router.route(fresh)
    high = np.array(routes["route"].to_pylist()) == "high"
    right = (fresh.gold > 0) == (np.array(routes["winner"]) == 0)
    assert right[high].mean() > 0.95
    assert high.mean() > 0.6
    certificate = router.certificate
    assert certificate is not None
    assert certificate.tested.n_images == 2000
    assert certificate.checked.n_images == 1000
    assert certificate.tested.coverage == pytest.approx(high.mean(), abs=0.05)
    assert "At least 95.0% of high labels are right, with confidence 95%" in router.notes[-1]


def test_a_lower_precision_gives_a_wider_coverage(make_pairs):
    labelled = draw_labelled(make_pairs, 8000)
    coverage = []
    for precision in (0.98, 0.95, 0.9):
        settings = RouterSettings(policy="target_precision", precision=precision, combination="learned")
        certificate = fit_router(settings, labelled, None).certificate
        assert certificate is not None
        coverage.append(certificate.tested.coverage)
    assert coverage == sorted(coverage)
    assert coverage[0] < coverage[-1]


@pytest.mark.parametrize("n", [0, 3, 100])
def test_too_few_labels_stop_the_run_and_say_how_many_would_do(make_pairs, n):
    labelled = draw_labelled(make_pairs, n) if n else None
    with pytest.raises(
        CannotCertifyError, match=rf"from {n} labelled images; about \d+ labelled images would"
    ) as error:
        fit_router(RouterSettings(policy="target_precision"), labelled, draw_labelled(make_pairs, 100, seed=3))
    assert error.value.images_needed is not None
    assert 300 < error.value.images_needed < 10_000


def test_as_many_labels_as_the_error_asks_for_mostly_do(make_pairs):
    settings = RouterSettings(policy="target_precision", precision=0.98)
    with pytest.raises(CannotCertifyError) as error:
        fit_router(settings, draw_labelled(make_pairs, 1000, seed=5), None)
    needed = error.value.images_needed
    assert needed is not None
    kept = 0
    for seed in range(10, 20):
        try:
            kept += fit_router(settings, draw_labelled(make_pairs, needed, seed), None).certificate is not None
        except CannotCertifyError:
            continue
    assert kept >= 5


def test_a_named_fallback_is_used_without_a_guarantee(make_pairs):
    settings = RouterSettings(policy="target_precision", fallback="mean_margin", threshold=0.9)
    router = fit_router(settings, draw_labelled(make_pairs, 100), None)
    assert (router.policy, router.threshold, router.certificate) == ("mean_margin", 0.9, None)
    assert router.notes[-1].startswith("No precision is guaranteed: a label precision of 0.95 cannot")


def test_a_label_that_is_a_tie_counts_as_a_wrong_winner(make_pairs):
    labelled = draw_labelled(make_pairs, 2000)
    labelled.gold[::10] = 0
    with pytest.raises(CannotCertifyError):
        fit_router(RouterSettings(policy="target_precision", combination="learned"), labelled, None)


def test_filtered_pairs_do_not_enter_the_test(make_pairs):
    labelled = draw_labelled(make_pairs, 4000)
    trusted = np.arange(4000) % 2 == 0
    labelled = make_pairs(
        labelled.margins, gold=np.where(trusted, labelled.gold, -labelled.gold), source=np.sign(labelled.gold)
    )
    # the source contradicts the label of every other pair; a winner that equals the source is right in half of them
    settings = RouterSettings(policy="target_precision", calibration="spread", require_source=True)
    with pytest.raises(CannotCertifyError):
        fit_router(settings, labelled, None)
    flagged = make_pairs(labelled.margins, gold=labelled.gold, source=labelled.gold)
    certificate = fit_router(settings, flagged, None).certificate
    assert certificate is not None
    assert certificate.tested.n_wrong == 0


def test_the_fit_does_not_depend_on_the_order_of_rows_and_the_seed_draws_the_split(make_pairs):
    labelled = draw_labelled(make_pairs, 3000)
    shuffled = labelled.select(np.random.default_rng(0).permutation(3000))
    settings = RouterSettings(policy="target_precision", combination="learned")
    router = fit_router(settings, labelled, None)
    assert fit_router(settings, shuffled, None) == router
    assert fit_router(settings.model_copy(update={"seed": 1}), labelled, None) != router


def test_learned_combination_without_labels_says_what_to_do(make_pairs, unit_pairs):
    with pytest.raises(ValueError, match="needs at least 50 labelled pairs, found 20: use mean"):
        fit_router(RouterSettings(combination="learned"), draw_labelled(make_pairs, 20), unit_pairs(2))


def test_no_pairs_at_all_is_an_error():
    with pytest.raises(ValueError, match="there are none"):
        fit_router(RouterSettings(), None, None)


@pytest.mark.parametrize("wrong", [{"abstain_band": 0.5}, {"threshold": 0.4}, {"policy": "best"}, {"treshold": 0.9}])
def test_settings_out_of_range_or_misspelt_are_refused(wrong):
    with pytest.raises(ValidationError):
        RouterSettings(**wrong)
