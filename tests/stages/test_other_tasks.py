"""Pairs of ratings and rankings from the trusted order of responses, on hand-made rows."""

from collections import Counter

import pyarrow as pa
import pytest

from carevl.judging.verdicts import read_verdict
from carevl.settings.loader import load_settings
from carevl.stages import select
from carevl.stages.other_tasks import NO_TARGETS, TargetFacts, TrustedPair, order_responses
from carevl.store.earlier_versions import with_tasks
from carevl.store.schemas import ITEMS, JUDGMENTS, PAIRS, ROUTES, TARGETS
from carevl.store.table import Table
from tests.helpers.items import about
from tests.helpers.sampled_judgments import sampled

PLAIN = [f"select.{name}" for name in ("rules={}", "balance=false", "expert_weight=0", "min_gap=0.2")]
ALL = ["select.pointwise_share=9", "select.ranking_share=9"]
PHASE1 = TargetFacts({"pairwise": 1.0, "pointwise": 0.5, "ranking": 0.25}, good=(4, 5), bad=(2,))


def _judged(name, better, worse, evidence="Seen.", doubts=1):
    """Judgments in both orders that prefer one response to another, but for some."""
    rows = []
    for order in ([better, worse], [worse, better]):
        rows += sampled(name, order, *[(better, evidence)] * 5, *[(worse, "Unsure.")] * doubts)
    return rows


def _routes(name, *pairs):
    columns = ("first", "second", "route", "winner")
    rows = [dict(zip(columns, pair, strict=True)) for pair in pairs]
    return [{"item_id": name, "probability": 0.5, "reason": "undecided", **row} for row in rows]


def _choose(routes, judgments, *overrides, targets=PHASE1, responses=("a", "b", "c")):
    settings = load_settings("mini", [*PLAIN, *ALL, *overrides])
    names = sorted({row["item_id"] for row in routes})
    items = [{"item_id": name, **about("i"), "question": "How many?", "responses": list(responses)} for name in names]
    tables = (
        pa.Table.from_pylist(items, ITEMS),
        pa.Table.from_pylist(routes, ROUTES),
        pa.Table.from_pylist(judgments, JUDGMENTS),
    )
    chosen = select.choose(settings, *tables, targets=targets).to_pylist()
    return {task: [row for row in chosen if row["task"] == task] for task in ("pairwise", "pointwise", "ranking")}


def _verdicts(row):
    n = len(row["order"])
    return [read_verdict(row[side], row["task"], n).in_items(row["order"]) for side in ("chosen", "rejected")]


def test_either_response_of_a_trusted_pair_is_rated_as_phase_1_rates_its_side():
    found = _choose(_routes("x", (0, 1, "low", 0)), _judged("x", 1, 0, "Two cats."), responses=("a", "b"))
    assert [row["order"] for row in found["pointwise"]] == [[1], [0]]
    (good, bad), (low, high) = ([verdict.rating for verdict in _verdicts(row)] for row in found["pointwise"])
    assert (good, bad) == (high, low)
    assert good in PHASE1.good
    assert bad == 2
    for row in found["pointwise"]:
        assert (row["winner"], row["loser"]) == (1, 0)
        assert f"Answer: {'ab'[row['order'][0]]}" in row["prompt"]
        assert {verdict.evidence for verdict in _verdicts(row)} == {"Two cats."}
        assert row["score_chosen"] > row["score_rejected"]


def test_ratings_have_the_distribution_of_phase_1():
    names = [f"item {n}" for n in range(80)]
    routes = [row for name in names for row in _routes(name, (0, 1, "low", 0))]
    judged = [row for name in names for row in _judged(name, 0, 1)]
    targets = TargetFacts({}, good=(4, 5, 5, 5), bad=(1, 1, 2, 2))
    rows = _choose(routes, judged, targets=targets, responses=("a", "b"))["pointwise"]
    ratings = Counter(row["chosen"].rpartition("Rating ")[2] for row in rows)
    assert ratings["4."] + ratings["5."] == ratings["1."] + ratings["2."] == 80
    assert 8 < ratings["4."] < 32
    assert 25 < ratings["1."] < 55


def test_an_order_that_is_not_trusted_gives_nothing_and_one_on_which_all_agree_ratings_alone():
    undecided = _judged("x", 0, 1, doubts=5)
    assert not any(_choose(_routes("x", (0, 1, "low", 0)), undecided, responses=("a", "b")).values())
    agreed = _choose(_routes("x", (0, 1, "low", 0)), _judged("x", 0, 1, doubts=0), "select.pointwise_share=9")
    assert agreed["pairwise"] == []
    assert agreed["pointwise"] == []  # so many for each pair of verdicts, and there is none
    mixed = [*_judged("x", 0, 1, doubts=0), *_judged("y", 0, 1)]
    found = _choose(_routes("x", (0, 1, "low", 0)) + _routes("y", (0, 1, "low", 0)), mixed)
    assert {row["item_id"] for row in found["pairwise"]} == {"y"}
    assert {row["item_id"] for row in found["pointwise"]} == {"x", "y"}


def test_evidence_that_names_an_answer_by_number_fits_no_other_prompt():
    named = _judged("x", 1, 0, "Answer 2 is right.")
    assert _choose(_routes("x", (0, 1, "low", 0)), named, responses=("a", "b"))["pointwise"] == []


def test_the_best_and_the_worst_are_rated_and_what_stands_between_is_not():
    routes = _routes("x", (0, 1, "low", 0), (1, 2, "low", 0), (0, 2, "low", 0))
    judged = [*_judged("x", 0, 1), *_judged("x", 1, 2), *_judged("x", 0, 2)]
    assert [row["order"] for row in _choose(routes, judged)["pointwise"]] == [[0], [2]]
    assert _choose(routes[:2], judged)["pointwise"] == []  # the best loses to none, but was not compared with the worst


def test_a_ranking_that_contradicts_a_trusted_pair_is_rejected():
    routes = _routes("x", (0, 1, "high", 1), (0, 2, "low", 0), (1, 2, "high", 1))
    [row] = _choose(routes, _judged("x", 2, 0, "Three."))["ranking"]
    assert sorted(row["order"]) == [0, 1, 2]
    chosen, rejected = _verdicts(row)
    assert (chosen.ranking, rejected.ranking) == ((1, 2, 0), (1, 0, 2))
    assert {chosen.evidence, rejected.evidence} == {"Three."}
    assert (row["winner"], row["loser"]) == (2, 0)


def test_what_no_trusted_pair_tells_apart_stands_alike_in_both_rankings():
    routes = _routes("x", (0, 1, "low", 0), (0, 2, "low", 0), (1, 2, "low", 0))
    judged = [*_judged("x", 1, 0), *_judged("x", 2, 0)]
    [row] = _choose(routes, judged)["ranking"]
    chosen, rejected = (verdict.ranking for verdict in _verdicts(row))
    assert chosen[2] == rejected[1] == row["loser"] == 0
    assert chosen[1] == rejected[2] == row["winner"]
    assert chosen[0] == rejected[0]


def test_no_ranking_with_a_response_in_no_trusted_pair_or_with_none_that_the_judge_has_judged():
    routes = _routes("x", (0, 1, "low", 1), (0, 2, "low", 0), (1, 2, "low", 1))
    assert _choose(routes, _judged("x", 2, 0))["ranking"] == []
    high = _routes("x", (0, 1, "high", 1), (0, 2, "high", 2), (1, 2, "high", 1))
    assert _choose(high, [])["ranking"] == []


@pytest.mark.parametrize(
    ("beats", "order"),
    [
        ([(2, 0), (0, 1)], (2, 0, 1)),
        ([(2, 0), (0, 1), (2, 1)], (2, 0, 1)),
        ([(2, 0), (2, 1)], (2, 1, 0)),
        ([(2, 0), (1, 0)], (1, 2, 0)),
        ([(2, 0), (0, 1), (1, 2)], None),
    ],
)
def test_an_order_agrees_with_all_trusted_pairs_or_there_is_none(beats, order):
    assert order_responses([TrustedPair(*pair) for pair in beats], [0.9, 0.1, 0.5]) == order


def test_as_many_as_phase_1_has_by_default_and_all_rows_of_an_item_or_none():
    names = [f"item {n}" for n in range(40)]
    routes = [row for name in names for row in _routes(name, (0, 1, "low", 0))]
    judged = [row for name in names for row in _judged(name, 0, 1)]
    as_phase1 = ["select.pointwise_share=null", "select.ranking_share=null"]
    found = _choose(routes, judged, *as_phase1, responses=("a", "b"))
    assert len(found["pairwise"]) == 80
    assert len(found["pointwise"]) == 40  # a rating of a target for two verdicts
    assert set(Counter(row["item_id"] for row in found["pointwise"]).values()) == {2}
    assert found == _choose(routes, judged, *as_phase1, responses=("a", "b"))
    assert _choose(routes, judged, *as_phase1, targets=NO_TARGETS, responses=("a", "b"))["pointwise"] == []


def test_shares_and_ratings_are_read_from_the_targets(tmp_path):
    texts = [("pairwise", "Seen.\nOverall Judgment: Answer 1 is better.")] * 6
    texts += [("pointwise", f"Seen.\nOverall Judgment: Rating {n}.") for n in (5, 2, 4, 1, 5)]
    texts += [("ranking", "Seen.\nOverall Judgment: Ranking 2 > 1 > 3.")]
    rows = pa.Table.from_pylist([{"task": task, "text": text} for task, text in texts], TARGETS)
    targets = Table(tmp_path)
    targets.write(0, rows.slice(0, 7))
    targets.write(1, rows.slice(7))
    facts = TargetFacts.read(targets)
    assert facts.shares == pytest.approx({"pairwise": 1, "pointwise": 5 / 6, "ranking": 1 / 6})
    assert (facts.good, facts.bad) == ([4, 5, 5], [1, 2])


def test_without_other_tasks_pairs_depend_on_what_they_did_and_with_them_on_targets():
    off = load_settings("mini", ["select.pointwise_share=0", "select.ranking_share=0"])
    facts = select.STAGE.fingerprint_inputs(off, None, "select")
    assert not {"pointwise_share", "ranking_share"} & facts.keys()
    assert "demonstrate" not in select.STAGE.inputs(off, "select")
    rated = load_settings("mini", ["select.pointwise_share=null", "select.ranking_share=0"])
    assert select.STAGE.fingerprint_inputs(rated, None, "select")["pointwise_share"] is None
    assert "demonstrate" in select.STAGE.inputs(rated, "select")


def test_pairs_of_an_earlier_version_are_pairwise():
    old = pa.Table.from_pylist([{"order": [2, 0], "winner": 0}, {"order": [0, 1], "winner": 0}], PAIRS)
    read = with_tasks(old.select(["order", "winner"])).to_pylist()
    assert [(row["task"], row["loser"]) for row in read] == [("pairwise", 2), ("pairwise", 1)]
