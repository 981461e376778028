"""The audit on simulated score tables whose experts have known flaws."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from carevl.audit.findings import find
from carevl.audit.ledger import Ledger, calibration_gaps, reliability
from carevl.audit.measures import length_groups, measure_coverage, measure_experts, measure_label_free, measure_routing
from carevl.audit.mitigations import measure_contributions, measure_mitigations
from carevl.audit.panel import cross_fit
from carevl.confidence.guarantee import Tally
from carevl.settings.router import RouterSettings

N = 1500
LONGER = 1.6
"""Margin that `a` pays per doubling of length; its margins are about 3.5."""
KINDS = ("count", "colour", "position")


def _simulate(make_pairs, *, n=N, flaws=True):
    """Pairs of three kinds, of which captions decide count and colour.

    `a` pays for length, `b` cannot count, `c` is sure of everything.
    """
    rng = np.random.default_rng(0)
    kinds = np.array(KINDS)[np.arange(n) % 3]
    gold = rng.choice([-1.0, 1.0], n)
    lengths = rng.integers(8, 80, (n, 2))
    doubled = np.log2(lengths[:, 0] / lengths[:, 1])
    decided = np.where(kinds == "position", 0.0, 3.0) * gold
    a = decided + LONGER * flaws * doubled
    b = np.where((kinds == "count") & flaws, 0.0, decided)
    c = np.where((kinds == "position") & flaws, 3.0 * rng.choice([-1, 1], n), decided) * (3.0 if flaws else 1.0)
    margins = np.stack([a, b, c], axis=1)
    margins += rng.normal(0, 1, (n, 3)) * np.where(margins == 0, 0.1, 1.2)
    pairs = make_pairs(
        margins, no_caption=rng.normal(0, 1, (n, 3)), gold=gold, source=np.where(rng.random(n) < 0.7, gold, -gold)
    )
    return replace(pairs, lengths=lengths.astype(np.int32)), kinds


def _groups(panel, kinds):
    sources = np.full(len(panel.item), "pairs")
    return {"kind": kinds[panel.item], "source": sources, "length": length_groups(panel.longest)}


@pytest.fixture(scope="module")
def flawed(make_pairs):
    pairs, kinds = _simulate(make_pairs)
    panel = cross_fit(RouterSettings(), pairs, None)
    return panel, measure_experts(panel, _groups(panel, kinds))


def test_built_in_flaws_are_found_by_name(flawed):
    _, figures = flawed
    found = {(finding.expert, finding.flaw): finding.sentence for finding in find(figures)}
    assert ("a", "prefers_longer") in found
    assert {flaw for expert, flaw in found if expert == "b"} == {"weak_on_count"}
    assert {flaw for expert, flaw in found if expert == "c"} == {"overconfident"}
    assert ("all", "undecided_position") in found
    assert not [flaw for _, flaw in found if flaw in ("redundant", "text_only", "prefers_shorter")]
    assert "once calibrated it is too sure on position" in found["c", "overconfident"]
    assert "where the others reach 0.9" in found["b", "weak_on_count"]


def test_experts_without_flaws_give_no_finding_but_what_captions_leave_out(make_pairs):
    pairs, kinds = _simulate(make_pairs, flaws=False)
    panel = cross_fit(RouterSettings(), pairs, None)
    findings = find(measure_experts(panel, _groups(panel, kinds)))
    assert [(finding.expert, finding.flaw) for finding in findings] == [("all", "undecided_position")]


def test_the_length_slope_is_that_of_the_simulation_with_and_without_labels(flawed, make_pairs):
    panel, figures = flawed
    spread = np.sqrt(np.mean(panel.margin[:, 0] ** 2))
    expected = LONGER / spread
    slope = figures["experts"]["a"]["length"]["slope"]
    assert slope["low"] < expected < slope["high"]
    assert slope["high"] - slope["low"] < 0.08
    free = measure_label_free(panel, _groups(panel, np.array(KINDS)[np.arange(N) % 3]))["a"]["length_slope"]
    assert free["low"] < expected < free["high"]
    assert abs(figures["experts"]["b"]["length"]["slope"]["value"]) < 0.05
    assert figures["experts"]["a"]["length"]["right_is_longer"]["value"] > 0.85
    assert figures["experts"]["a"]["length"]["right_is_shorter"]["value"] < 0.75


def test_a_length_that_follows_correctness_is_not_a_bias(make_pairs):
    rng = np.random.default_rng(1)
    gold = rng.choice([-1.0, 1.0], N)
    lengths = np.stack([np.where(gold > 0, 40, 20), np.where(gold > 0, 20, 40)], axis=1) + rng.integers(0, 15, (N, 2))
    pairs = replace(make_pairs(3 * gold + rng.normal(0, 2, N), gold=gold), lengths=lengths.astype(np.int32))
    panel = cross_fit(RouterSettings(), pairs, None)
    groups = _groups(panel, np.full(N, ""))
    slope = measure_experts(panel, groups)["experts"]["a"]["length"]["slope"]
    assert slope["low"] < 0 < slope["high"]
    assert measure_label_free(panel, groups)["a"]["length_slope"]["low"] > 0.3


def test_figures_of_a_group_are_those_of_its_pairs(flawed):
    panel, figures = flawed
    kinds = np.array(KINDS)[np.arange(N) % 3][panel.item]
    right = panel.right()
    count = figures["experts"]["b"]["by_kind"]["count"]
    assert count["accuracy"]["value"] == pytest.approx(right[kinds == "count", 1].mean())
    behind = right[kinds != "count"][:, [0, 2]].mean(axis=1) - right[kinds != "count", 1]
    assert count["behind_elsewhere"]["value"] == pytest.approx(behind.mean())
    assert count["others"]["value"] == pytest.approx(right[kinds == "count"][:, [0, 2]].mean())
    assert count["accuracy"]["n"] == N / 3
    assert count["overconfidence"]["value"] == pytest.approx(count["confidence"]["value"] - count["accuracy"]["value"])


def test_twins_err_together_and_count_as_one(make_pairs):
    pairs, kinds = _simulate(make_pairs)
    twins = replace(pairs, margins=pairs.margins[:, [0, 0, 2]])
    panel = cross_fit(RouterSettings(), twins, None)
    figures = measure_experts(panel, _groups(panel, kinds))
    redundancy = figures["redundancy"]
    assert redundancy["error_correlation"]["b"]["a"]["value"] == pytest.approx(1)
    rho = redundancy["error_correlation"]["c"]["a"]["value"]
    assert redundancy["effective_experts"]["value"] == pytest.approx(9 / (5 + 4 * max(rho, 0)), rel=1e-6)
    assert ("a+b", "redundant") in {(finding.expert, finding.flaw) for finding in find(figures)}


def test_a_text_only_shortcut_is_found(make_pairs):
    pairs, kinds = _simulate(make_pairs)
    given_away = np.where(np.arange(N) % 2 == 0, pairs.gold, -pairs.gold[::-1])
    panel = cross_fit(RouterSettings(), replace(pairs, no_caption=np.stack([given_away] * 3, axis=1)), None)
    figures = measure_experts(panel, _groups(panel, kinds))
    assert figures["experts"]["c"]["text_only"]["accuracy"]["value"] == pytest.approx(0.75, abs=0.03)
    assert {"a", "b", "c", "ensemble"} == {f.expert for f in find(figures) if f.flaw == "text_only"}


def test_ties_and_missing_scores_count_for_nobody(make_pairs):
    pairs, kinds = _simulate(make_pairs)
    gold, margins = pairs.gold.copy(), pairs.margins.copy()
    gold[:300] = 0
    margins[300:500, 1] = np.nan
    panel = cross_fit(RouterSettings(), replace(pairs, gold=gold, margins=margins), None)
    figures = measure_experts(panel, _groups(panel, kinds))
    assert figures["experts"]["a"]["accuracy"]["n"] == N - 300
    assert figures["experts"]["b"]["accuracy"]["n"] == N - 500
    # a tie that is routed high is a wrong label
    routing = measure_routing(panel, {})
    assert routing["coverage"]["n"] == N
    tied_high = int((panel.high & (panel.gold == 0)).sum())
    assert routing["ties"] == tied_high > 0
    assert np.nansum(panel.label_right()[panel.gold == 0]) == 0


def test_no_pair_is_judged_by_a_fit_that_has_seen_its_label(make_pairs):
    pairs, _ = _simulate(make_pairs, n=300)
    images = [f"image{k // 2:04d}" for k in range(300)]
    before = cross_fit(RouterSettings(), replace(pairs, image_id=pa.array(images)), None)
    gold = pairs.gold.copy()
    gold[:2] *= -1
    after = cross_fit(RouterSettings(), replace(pairs, image_id=pa.array(images), gold=gold), None)
    np.testing.assert_array_equal(before.item, after.item)
    same = (before.p == after.p).all(axis=1)
    assert same[before.image == 0].all()
    assert 0.4 < same.mean() < 0.6  # those of the same half


def test_calibration_error_by_hand():
    p = np.array([0.9, 0.9, 0.9, 0.1, 0.6, np.nan])
    right = np.array([1.0, 1.0, 0.0, 0.0, 1.0, np.nan])
    # four pairs at 0.9, half of them right: 0.4; one at 0.6, right: 0.4
    assert np.nanmean(calibration_gaps(p, right)) == pytest.approx(0.4)
    [low, high] = reliability(p, right)
    assert (low["n"], low["confidence"], low["accuracy"]) == (1, pytest.approx(0.6), 1.0)
    assert (high["n"], high["confidence"], high["accuracy"]) == (4, pytest.approx(0.9), 0.5)
    assert (high["low"], high["high"]) == pytest.approx(Tally(4, 4, 2).precision_interval())


def test_pairs_of_one_image_are_resampled_together():
    values = np.repeat(np.random.default_rng(0).integers(0, 2, 100), 9).astype(float)
    ledger, alone = Ledger(np.repeat(np.arange(100), 9)), Ledger(np.arange(900))
    for each in (ledger, alone):
        each.put_mean("share", values=values)
    wide, narrow = ledger.estimate()["share"], alone.estimate()["share"]
    assert wide["value"] == narrow["value"] == values.mean()
    assert (wide["high"] - wide["low"]) == pytest.approx(3 * (narrow["high"] - narrow["low"]), rel=0.2)


def test_length_groups_are_thirds_and_one_length_is_one_group():
    assert length_groups(np.arange(1, 10)).tolist() == ["up to 3"] * 3 + ["4 to 6"] * 3 + ["7 and more"] * 3
    assert set(length_groups(np.full(5, 7)).tolist()) == {"up to 7"}
    assert length_groups(np.zeros(0, int)).tolist() == []


def test_the_coverage_curve_counts_one_pair_of_each_image_and_bounds_its_precision(flawed):
    panel, _ = flawed
    points = measure_coverage(panel, 0.95)
    assert [point["threshold"] for point in points] == sorted((p["threshold"] for p in points), reverse=True)
    assert points[-1]["coverage"] == pytest.approx(1.0)
    assert points[-1]["precision"] == pytest.approx(panel.label_right().mean())
    assert all(point["bound"] < point["precision"] for point in points if point["precision"] < 1)
    best = points[len(points) // 4]
    right, n = round(best["precision"] * best["n"]), best["n"]
    assert best["bound"] == pytest.approx(Tally(n, n, n - right).precision_interval(0.9)[0])


def test_what_an_expert_adds_is_measured_against_the_others_without_it(make_pairs):
    rng = np.random.default_rng(1)
    gold = rng.choice([-1.0, 1.0], N)
    a, c = (3.0 * gold + rng.normal(0, 3.0, N) for _ in range(2))
    margins = np.stack([a, a + rng.normal(0, 0.3, N), c], axis=1)  # b errs where a does
    pairs = make_pairs(margins, no_caption=rng.normal(0, 1, (N, 3)), gold=gold)
    figures = measure_contributions(RouterSettings(), pairs, None)
    assert list(figures) == ["a", "b", "c"]
    changes = {expert: figures[expert]["precision"]["change_at_same_coverage"] for expert in "abc"}
    assert changes["c"]["low"] > 0.01
    assert abs(changes["b"]["value"]) < changes["c"]["value"] / 2
    whole = measure_routing(cross_fit(RouterSettings(), pairs, None), {})
    assert {expert: figures[expert]["coverage"]["with"] for expert in "abc"} == dict.fromkeys("abc", whole["coverage"])
    without = measure_routing(cross_fit(RouterSettings(), pairs.without("c"), None), {})
    assert figures["c"]["precision"]["without"] == without["precision"]
    assert measure_contributions(RouterSettings(), pairs.without("b").without("c"), None) == {}


def test_mitigations_are_measured_against_the_same_pairs_without_them(make_pairs):
    pairs, _ = _simulate(make_pairs)
    figures = measure_mitigations(RouterSettings(), pairs, None)
    assert set(figures) == {"length_residual=true", "combination=weighted", "text_only_limit=0.2"}
    length = figures["length_residual=true"]
    without = measure_routing(cross_fit(RouterSettings(), pairs, None), {})
    assert length["precision"]["without"] == without["precision"]
    gained = length["precision"]["with"]["value"] - length["precision"]["without"]["value"]
    assert length["precision"]["change"]["value"] == pytest.approx(gained)
    assert length["precision"]["change_at_same_coverage"]["low"] > -0.01
    on = measure_mitigations(RouterSettings(length_residual=True), pairs, None)["length_residual=true"]
    assert on == length
