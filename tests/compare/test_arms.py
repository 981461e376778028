"""Arms as changes of settings: what they train on, how long, and what a seed changes."""

import pytest

from carevl.compare.arms import ARMS, OURS, RATES, Budget, at_threshold, chosen, with_seed
from carevl.compare.guarantee import to_train
from carevl.errors import UserError
from carevl.settings.loader import load_settings
from carevl.stages.select import weighted_rules

BUDGET = Budget(phase1=900, phase2=100)


@pytest.fixture(scope="module")
def settings():
    return load_settings("mini")


def _tokens(arm, settings):
    changed = arm.settings(settings, 1.0, BUDGET)
    return changed.sft.tokens, changed.dpo.tokens


def test_every_trained_arm_but_phase1_takes_the_tokens_of_carevl(settings):
    tokens = {arm.name: _tokens(arm, settings) for arm in ARMS.values() if arm.trained}
    own, single, second = (None, None), (1000, None), (None, 100)
    assert tokens == {
        "distillation": single,
        "soft_distillation": single,
        "random_subset": single,
        "high_only": single,
        "phase1": own,
        "carevl": own,
        "carevl_consistency": second,
        "carevl_experts": second,
        "carevl_words": second,
        "oracle": second,
    }


def test_labelled_pairs_that_guard_phase_2_guard_arms_of_one_phase_too():
    settings = load_settings("mini", ["dpo.dev_pairs=40"])
    guards = {name: ARMS[name].settings(settings, 1.0, BUDGET).sft.dev_pairs for name in ("distillation", "phase1")}
    assert guards == {"distillation": 40, "phase1": 0}


def test_the_rate_multiplies_both_phases_and_nothing_else_changes(settings):
    changed = OURS.settings(settings, 0.5, None)
    assert changed.sft.learning_rate == settings.sft.learning_rate / 2
    assert changed.dpo.learning_rate == settings.dpo.learning_rate / 2
    again = {name: getattr(changed, name).model_copy(update={"learning_rate": 1.0}) for name in ("sft", "dpo")}
    before = {name: getattr(settings, name).model_copy(update={"learning_rate": 1.0}) for name in ("sft", "dpo")}
    assert changed.model_copy(update=again) == settings.model_copy(update=before)
    assert RATES[0] == 1.0


TESTIMONY = (
    "sample.answers=false",
    "select={testimony_weight: 1, consistency_weight: 0, expert_weight: 0, rules: {'a.b:C': 1}}",
    "labels={router: 1, low_router: 1}",
)


@pytest.mark.parametrize("overrides", [(), TESTIMONY])
@pytest.mark.parametrize(("arm", "rule"), [("carevl_consistency", "consistency"), ("carevl_experts", "expert")])
def test_selection_by_one_rule_leaves_all_others_out(arm, rule, overrides):
    settings = load_settings("mini", overrides)
    changed = ARMS[arm].settings(settings, 1.0, BUDGET)
    assert [(each.name, weight) for each, weight in weighted_rules(changed.select)] == [(rule, 1.0)]
    assert not changed.testifies
    assert (changed.select.min_gap, changed.sample) == (settings.select.min_gap, settings.sample)


@pytest.mark.parametrize("overrides", [(), TESTIMONY])
def test_words_are_counted_whatever_the_settings_select_by(overrides):
    changed = ARMS["carevl_words"].settings(load_settings("mini", overrides), 1.0, BUDGET)
    weights = {rule.name: weight for rule, weight in weighted_rules(changed.select)}
    assert weights == {"consistency": 1.0, "expert": 0.5, "answer words": 3.0, "evidence words": 1.0}
    assert changed.sample.answers
    assert not changed.testifies


def test_the_first_seed_is_the_settings_own_and_others_leave_the_data_alone(settings):
    assert with_seed(settings, 0) == settings
    other = with_seed(settings, 2)
    assert (other.seed, other.sft.seed, other.dpo.seed, other.router.seed, other.low_router.seed) == (2,) * 5
    assert (other.data, other.miniworld, other.items) == (settings.data, settings.miniworld, settings.items)


def test_an_unknown_arm_is_named_with_its_nearest():
    with pytest.raises(UserError, match="no arm 'distilation'; did you mean distillation"):
        chosen(["base", "distilation"])
    with pytest.raises(UserError, match="the arms are base, "):
        chosen(["zzz"])
    assert [arm.name for arm in chosen(["carevl", "base"])] == ["base", "carevl"]
    assert len(chosen([])) == 12


def test_two_thresholds_are_trained_on_either_side_of_the_routers_coverage():
    coverages = {0.5: 1.0, 0.6: 0.8, 0.7: 0.6, 0.8: 0.4, 0.9: 0.2, 0.95: 0.0}
    points = [{"threshold": t, "coverage": c, "precision": None} for t, c in coverages.items()]
    assert to_train(points, 0.4) == [0.9, 0.7]
    assert _tokens(at_threshold(0.9), load_settings("mini")) == (900, 100)
    assert at_threshold(0.9).name == "carevl_at_0.90"
    assert to_train([{"threshold": 0.9, "coverage": 0.0, "precision": None}], 0.0) == []
