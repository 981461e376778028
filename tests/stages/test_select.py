"""Chosen and rejected judgments on hand-made samples."""

import pytest

from carevl.errors import SettingsError
from carevl.settings.loader import load_settings
from carevl.stages import select
from tests.helpers.sampled_judgments import FIRST, SECOND, choose, sampled


def test_the_verdict_that_most_judgments_share_is_chosen_in_each_order():
    judged = sampled("a", FIRST, (1, "Three."), (1, "Three!"), (0, "Two."), (1, "Three."))
    judged += sampled("a", SECOND, (1, "Three."), (1, "Three."), (1, "Three."), (1, "Three."))
    [pair] = choose(judged)
    assert pair["order"] == FIRST  # in the other order all agree
    assert pair["winner"] == 1
    assert pair["chosen"] == "Three.\nOverall Judgment: Answer 2 is better."
    assert pair["rejected"] == "Two.\nOverall Judgment: Answer 1 is better."
    # consistency 7/8 against 1/8, experts even: (7/8 + 0.5 * 0.5) / 1.5
    assert pair["score_chosen"] == pytest.approx((7 / 8 + 0.25) / 1.5)
    assert pair["score_rejected"] == pytest.approx((1 / 8 + 0.25) / 1.5)


def _thinking(rows, thoughts):
    return [row | {"text": f"<think>{thoughts}</think>\n\n{row['text']}"} for row in rows]


def test_thinking_that_is_kept_stands_before_both_judgments():
    judged = sampled("a", FIRST, (1, "Three."), (0, "Two.")) + sampled("a", SECOND, (1, "Three."))
    keep = "judge.asking.thinking=keep"
    [plain] = choose(judged)
    [dropped], [kept] = (choose(_thinking(judged, "Hm."), *more) for more in ([], [keep]))
    assert dropped == plain
    for name in ("chosen", "rejected"):
        assert kept[name] == f"<think>Hm.</think>\n\n{plain[name]}"


def test_kept_thinking_that_names_an_answer_stays_in_its_order():
    judged = sampled("a", FIRST, (1, "Three."), (1, "Three.")) + sampled(
        "a", SECOND, (0, "Two."), (0, "Two."), (0, "x")
    )
    same = ["select.same_evidence=true", "select.min_gap=0.1"]
    for thoughts, orders in (("Hm.", [FIRST, SECOND]), ("Answer 2 says so.", [SECOND])):
        pairs = choose(_thinking(judged, thoughts), *same, "judge.asking.thinking=keep")
        assert [pair["order"] for pair in pairs] == orders
        assert all(pair[name].startswith(f"<think>{thoughts}") for pair in pairs for name in ("chosen", "rejected"))
        assert [pair["order"] for pair in choose(_thinking(judged, thoughts), *same)] == [FIRST, SECOND]


def test_unanimous_judgments_give_nothing():
    assert choose(sampled("a", FIRST, (1, "x"), (1, "y")) + sampled("a", SECOND, (1, "x"), (1, "y"))) == []


def test_judgments_that_follow_the_place_leave_it_to_the_experts():
    judged = sampled("a", FIRST, (0, "x"), (0, "x"), (1, "x")) + sampled("a", SECOND, (1, "x"), (1, "x"), (0, "x"))
    assert choose(judged) == []
    pairs = choose(judged, probability=0.95)
    assert [pair["winner"] for pair in pairs] == [0, 0]


def test_a_judgment_without_verdict_is_the_worst():
    judged = sampled("a", FIRST, (1, "x"), (None, ""), (1, "x")) + sampled("a", SECOND, (1, "x"), (1, "x"), (1, "x"))
    [pair] = choose(judged)
    assert pair["rejected"] == "I cannot tell from this image."
    assert pair["score_rejected"] == 0.0


def test_a_gap_below_the_least_gives_nothing():
    judged = sampled("a", FIRST, (1, "x"), (0, "x"), (1, "x")) + sampled("a", SECOND, (1, "x"), (0, "x"), (1, "x"))
    assert len(choose(judged)) == 2
    assert choose(judged, "select.min_gap=0.5") == []


def test_lengths_far_apart_are_passed_by():
    long = "Three circles, one of them red, and the rest of them in colours that do not matter at all. " * 3
    judged = sampled("a", FIRST, (1, long), (0, "Two.")) + sampled("a", SECOND, (1, long), (1, long))
    assert choose(judged) == []
    assert len(choose(judged, "select.max_length_ratio=20")) == 1


def test_verdicts_for_either_place_are_balanced_by_dropping_the_narrowest_gaps():
    wide = [(1, "x")] * 7 + [(0, "x")]
    narrow = [(1, "x")] * 6 + [(0, "x")] * 2
    judged = []
    for name, rows in (("a", wide), ("b", narrow)):
        judged += sampled(name, FIRST, *rows) + sampled(name, SECOND, *[(1, "x")] * 8)
    judged += sampled("c", FIRST, *[(1, "x")] * 8) + sampled("c", SECOND, *wide)
    pairs = choose(judged, "select.balance=true")
    assert [(pair["item_id"], pair["order"]) for pair in pairs] == [("a", FIRST), ("c", SECOND)]


def test_several_rejected_judgments_of_a_prompt_have_ranks():
    judged = sampled("a", FIRST, (1, "x"), (0, "y"), (0, "z"), (1, "x"), (1, "x"))
    judged += sampled("a", SECOND, *[(1, "x")] * 5)
    pairs = choose(judged, "select.pairs_per_order=2")
    assert [pair["rank"] for pair in pairs] == [0, 1]
    assert len({pair["rejected"] for pair in pairs}) == 2


TESTIMONY = (
    "select.testimony_weight=1",
    "select.consistency_weight=0",
    "select.expert_weight=0",
    "labels={router: 1, low_router: 1}",
)


def _routed_again(item_id, route, probability):
    return [{"item_id": item_id, "first": 0, "second": 1, "route": route, "probability": probability}]


def test_pairs_are_chosen_whose_label_testimony_makes_trusted():
    judged = sampled("a", FIRST, (1, "Three."), (0, "Two."), (1, "Three."), (1, "Three."))
    judged += sampled("a", SECOND, (1, "Three."), (0, "Two."), (1, "Three."), (1, "Three."))
    pairs = choose(judged, *TESTIMONY, trusted=_routed_again("a", "high", 0.9))
    assert [pair["winner"] for pair in pairs] == [0, 0]  # whatever most judgments say
    assert [pair["score_chosen"] for pair in pairs] == pytest.approx([0.9, 0.9])
    assert choose(judged, *TESTIMONY, trusted=_routed_again("a", "low", 0.9)) == []
    assert choose(judged, *TESTIMONY, trusted=_routed_again("b", "high", 0.9)) == []


def test_the_chosen_judgment_has_the_evidence_that_experts_rate_best():
    judged = sampled("a", FIRST, (1, "Dots."), (1, "Dots."), (1, "Three dots."), (0, "Two."))
    judged += sampled("a", SECOND, *[(1, "Dots.")] * 4)
    view = {"item_id": "a", "view": "evidence"}
    rated = [  # Dots., Three dots., Two.; on scales of their own
        [{**view, "expert": "llama", "scores": [1.0, 2.0, 9.0]}],
        [{**view, "expert": "qwen2", "scores": [-30.0, 10.0, 0.0]}],
        [{**view, "expert": "mistral", "scores": None}],
    ]
    trusted = _routed_again("a", "high", 0.1)
    [pair] = choose(judged, *TESTIMONY, trusted=trusted, rated=rated)
    assert pair["chosen"] == "Three dots.\nOverall Judgment: Answer 2 is better."
    [pair] = choose(judged, *TESTIMONY, trusted=trusted)
    assert pair["chosen"] == "Dots.\nOverall Judgment: Answer 2 is better."
    pairs = choose(judged, *TESTIMONY, "select.same_evidence=true", trusted=trusted, rated=rated)
    assert {text.partition("\n")[0] for pair in pairs for text in (pair["chosen"], pair["rejected"])} == {"Three dots."}


def test_of_equally_bad_judgments_the_one_with_the_same_evidence_is_rejected():
    """Chosen and rejected then differ in the verdict alone."""
    judged = sampled("a", FIRST, (1, "Three."), (0, "Two."), (0, "Three."), (1, "Three."), (1, "Three."))
    judged += sampled("a", SECOND, *[(1, "Three.")] * 5)
    [pair] = choose(judged)
    assert pair["chosen"] == "Three.\nOverall Judgment: Answer 2 is better."
    assert pair["rejected"] == "Three.\nOverall Judgment: Answer 1 is better."


def test_with_same_evidence_the_rejected_judgment_contradicts_the_chosen_one():
    judged = sampled("a", FIRST, (1, "Three."), (0, "Two."), (1, "Three."), (None, ""))
    judged += sampled("a", SECOND, *[(1, "Three.")] * 5)
    first, second = choose(judged, "select.same_evidence=true")
    assert (first["order"], second["order"]) == (FIRST, SECOND)
    assert first["chosen"] == second["rejected"] == "Three.\nOverall Judgment: Answer 2 is better."
    assert first["rejected"] == second["chosen"] == "Three.\nOverall Judgment: Answer 1 is better."
    # of nine judgments one has no verdict and seven name the second response, experts even: (7/9 + 0.25) / 1.5
    assert [pair["score_chosen"] for pair in (first, second)] == pytest.approx([(7 / 9 + 0.25) / 1.5] * 2)
    assert first["score_rejected"] == pytest.approx((1 / 9 + 0.25) / 1.5)
    assert choose(judged, "select.same_evidence=true", "select.min_gap=0.5") == []


def test_with_same_evidence_a_judge_that_prefers_what_stands_first_gives_pairs_in_both_orders():
    judged = sampled("a", FIRST, *[(0, "There are three.")] * 4) + sampled("a", SECOND, *[(1, "There are three.")] * 4)
    assert choose(judged, probability=0.05) == []  # in each order all agree
    pairs = choose(judged, "select.same_evidence=true", probability=0.05)
    assert [(pair["order"], pair["winner"]) for pair in pairs] == [(FIRST, 1), (SECOND, 1)]
    assert pairs[0]["chosen"] == pairs[1]["rejected"] == "There are three.\nOverall Judgment: Answer 2 is better."

    named = sampled("a", FIRST, *[(0, "Answer 2 says three.")] * 4)
    named += sampled("a", SECOND, *[(1, "There are three, as answer 1 says.")] * 4)
    [pair] = choose(named, "select.same_evidence=true", probability=0.05)
    assert pair["order"] == SECOND  # what names an answer by number does not hold in the other order

    alike = sampled("a", FIRST, (1, "Three.")) + sampled("a", SECOND, (1, "Three."))
    assert choose(alike, "select.same_evidence=true", probability=0.05) == []


def test_a_rule_of_ones_own_by_import_path_decides(tmp_path, monkeypatch):
    (tmp_path / "own_rules.py").write_text(
        "from carevl.stages.selection import SelectionRule\n"
        "class Longer(SelectionRule):\n"
        "    name = 'longer'\n"
        "    def support(self, pair):\n"
        "        _, first, second = pair.texts\n"
        "        return (1.0, 0.0) if len(first) > len(second) else (0.0, 1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    judged = sampled("a", FIRST, (0, "x"), (1, "x")) + sampled("a", SECOND, (0, "x"), (1, "x"))
    own = ("select.consistency_weight=0", "select.expert_weight=0", "select.rules={'own_rules:Longer': 1.0}")
    assert [pair["winner"] for pair in choose(judged, *own)] == [1, 1]  # Three. is longer than Two.
    assert [rule.name for rule, _ in select.weighted_rules(load_settings("mini", own).select)][-1] == "longer"
    with pytest.raises(SettingsError, match="own_rules has no Shorter"):
        choose(judged, "select.rules={'own_rules:Shorter': 1.0}")


def test_a_registered_rule_may_have_its_weight_by_name():
    settings = load_settings("mini", ["select.expert_weight=0", "select.rules={expert: 0.25}"])
    assert {rule.name: weight for rule, weight in select.weighted_rules(settings.select)}["expert"] == 0.25


def test_no_rules_of_ones_own_leave_the_fingerprint_as_it_was():
    settings = load_settings("mini", ["select.rules={}"])
    assert "rules" not in select.STAGE.fingerprint_inputs(settings, None, "select")
    own = load_settings("mini", ["select.rules={'a.b:C': 1.0}"])
    assert select.STAGE.fingerprint_inputs(own, None, "select")["rules"] == {"a.b:C": 1.0}


def test_the_rules_by_words_have_the_names_of_the_weights_that_they_were_in_fingerprints():
    before = {"evidence_weight": 1.0, "answer_weight": 3.0}
    rules = "{'carevl.compare.words:EvidenceWords': 1.0, 'carevl.compare.words:AnswerWords': 3.0, 'a.b:C': 2.0}"
    facts = select.STAGE.fingerprint_inputs(load_settings("mini", [f"select.rules={rules}"]), None, "select")
    assert {**facts, **before, "rules": {"a.b:C": 2.0}} == facts
    without = select.STAGE.fingerprint_inputs(load_settings("mini", ["select.rules={}"]), None, "select")
    assert {**without, "evidence_weight": 0.0, "answer_weight": 0.0} == without
