"""Targets of phase 1 on hand-made judgments: both orders must agree with the label, and the usual evidence wins."""

import pyarrow as pa
import pytest

from carevl.judging.prompts import write_judgment
from carevl.judging.verdicts import read_verdict
from carevl.settings.loader import load_settings
from carevl.stages import demonstrate, train_rows
from carevl.store.ingested import Ingested
from carevl.store.run import RunError
from carevl.store.schemas import ITEMS, JUDGMENTS
from carevl.store.table import Table
from tests.helpers.items import about, write_images

RESPONSES = ["Two circles.", "Three circles."]


def item(item_id="a", responses=RESPONSES, **more):
    return {"item_id": item_id, **about("i"), "question": "How many?", "responses": responses} | more


def route(item_id="a", first=0, second=1, winner=1, name="high"):
    return {"item_id": item_id, "first": first, "second": second, "winner": winner, "route": name}


def judgment(item_id, task, order, sample, evidence, **verdict):
    text = write_judgment(evidence, **verdict)
    read = read_verdict(text, task, len(order)).in_items(order)
    return {
        "item_id": item_id,
        "task": task,
        "order": order,
        "sample": sample,
        "text": text,
        "evidence": read.evidence,
        "winner": read.winner,
        "rating": read.rating,
        "ranking": read.ranking,
        "status": read.status,
    }


def choose(items, routes, judgments, *overrides):
    quiet = ["demonstrate.pointwise_share=0", "demonstrate.ranking_share=0"]
    settings = load_settings("mini", [*quiet, *overrides])
    tables = (
        pa.Table.from_pylist(items, ITEMS),
        pa.Table.from_pylist(routes),
        pa.Table.from_pylist(judgments, JUDGMENTS),
    )
    return demonstrate.make_targets(settings, *tables).to_pylist()


def test_labelled_pairs_become_a_row_for_each_order(tmp_path):
    ingested = Ingested(tmp_path / "ingest")
    labelled = item("b", responses=["One.", "Two.", "Three."], gold=[0.0, 2.0, 2.0])
    broken = item("c", gold=[0.0, 1.0], error={"stage": "ingest", "kind": "k", "message": "m"})
    ingested.items.write(3, pa.Table.from_pylist([item(), labelled, broken], ITEMS))
    write_images(ingested, 3, pa.table({"image_id": ["i"], "bytes": [b"image"]}))
    target = Table(tmp_path / "dev")
    settings = load_settings("mini")
    assert train_rows.write_dev(settings, ingested, 5, target) == [3]
    rows = target.read().to_pylist()
    assert sorted({row["item_id"] for row in rows}) == ["b, responses 0 and 1", "b, responses 0 and 2"]
    assert all((row["images"], row["places"]) == ([b"image"], [0]) for row in rows)
    first, second = (row for row in rows if row["item_id"] == "b, responses 0 and 1")
    assert "Answer 1: One.\nAnswer 2: Two." in first["prompt"]
    assert (first["chosen"], first["rejected"]) == tuple(f"Overall Judgment: Answer {n} is better." for n in (2, 1))
    assert (second["chosen"], second["rejected"]) == tuple(f"Overall Judgment: Answer {n} is better." for n in (1, 2))
    assert train_rows.write_dev(settings, ingested, 1, Table(tmp_path / "one")) == [3]
    assert len(Table(tmp_path / "one").read()) == 2
    divided = ["labels.router=0", "labels.low_router=0"]
    assert train_rows.write_dev(load_settings("mini", divided), ingested, 1, Table(tmp_path / "two")) == [3]
    elsewhere = load_settings("mini", ["labels.choice=0"])
    with pytest.raises(RunError, match=r"raise labels\.choice, or set dev_pairs to 0"):
        train_rows.write_dev(elsewhere, ingested, 1, Table(tmp_path / "none"))


def test_labelled_pairs_without_labels_are_refused(tmp_path):
    ingested = Ingested(tmp_path / "ingest")
    ingested.items.write(0, pa.Table.from_pylist([item()], ITEMS))
    with pytest.raises(RunError, match="dev_pairs: no source has labels"):
        train_rows.write_dev(load_settings("mini"), ingested, 5, Table(tmp_path / "dev"))
    with pytest.raises(RunError, match=r"rounds: no source has labels that serve .*, or set rounds to 1"):
        train_rows.write_dev(
            load_settings("mini"), ingested, None, Table(tmp_path / "dev"), setting="rounds", without=1
        )


def test_a_rating_is_a_target_if_it_is_a_whole_number():
    ratings = {"demonstrate.pointwise_share=1"}
    for best, expected in ((4.5, []), (5, [0, 1])):
        judged = [judgment("a", "pointwise", [i], 0, "Seen.", rating=r) for i, r in ((1, best), (0, 1))]
        rows = [row for row in choose([item()], [route()], judged, *ratings) if row["task"] == "pointwise"]
        assert sorted(row["order"][0] for row in rows) == expected
    assert {row["text"] for row in rows} == {"Seen.\nOverall Judgment: Rating 5.", "Seen.\nOverall Judgment: Rating 1."}


def test_a_target_is_written_in_the_grammar_and_has_evidence_where_any_judgment_has():
    texts = [
        "**Overall Judgment:** Answer {} is better.",
        "Three.\n\n**Overall Judgment:** **Answer {}** is better.<|im_end|>",
    ]
    judged = []
    for order in ([0, 1], [1, 0]):
        for sample, text in enumerate([texts[0], texts[0], texts[1]]):
            row = judgment("a", "pairwise", order, sample, "", winner=order.index(1) + 1)
            spoken = text.format(order.index(1) + 1)
            read = read_verdict(spoken).in_items(order)
            judged.append(row | {"text": spoken, "evidence": read.evidence, "winner": read.winner})
    rows = choose([item()], [route()], judged)
    assert [row["text"] for row in rows] == [f"Three.\nOverall Judgment: Answer {n} is better." for n in (2, 1)]


@pytest.mark.parametrize("opened", ["<think>\n", ""])  # or by the chat template, before the reply
def test_thinking_is_dropped_from_targets_or_kept_before_the_judgment(opened):
    thoughts = f"{opened}Answer 1 is better? <|im_end|> No.\n</think>"
    judged = []
    for order in ([0, 1], [1, 0]):
        row = judgment("a", "pairwise", order, 0, "Three.", winner=order.index(1) + 1)
        judged.append(row | {"text": f"{thoughts}\n\n**Evidence:** {row['text']}"})
    written = [f"Three.\nOverall Judgment: Answer {n} is better." for n in (2, 1)]
    assert [row["text"] for row in choose([item()], [route()], judged)] == written
    kept = choose([item()], [route()], judged, "judge.asking.thinking=keep")
    assert [row["text"] for row in kept] == [f"{thoughts}\n\n{text}" for text in written]
    [again] = {read_verdict(row["text"]).evidence for row in kept}
    assert again == "Three."


def test_a_judgment_without_thinking_is_a_target_as_it_is_where_thinking_is_kept():
    judged = [judgment("a", "pairwise", order, 0, "Three.", winner=order.index(1) + 1) for order in ([0, 1], [1, 0])]
    plain, kept = (choose([item()], [route()], judged, *more) for more in ([], ["judge.asking.thinking=keep"]))
    assert kept == plain


def test_a_pair_is_a_target_in_both_orders_with_its_usual_evidence():
    judged = [
        judgment("a", "pairwise", [0, 1], 0, "There are four.", winner=2),
        judgment("a", "pairwise", [0, 1], 1, "There are three.", winner=2),
        judgment("a", "pairwise", [0, 1], 2, "There are two.", winner=1),
        judgment("a", "pairwise", [1, 0], 0, "There are three.", winner=1),
    ]
    targets = choose([item()], [route()], judged)
    assert [(row["order"], row["text"], row["evidence"]) for row in targets] == [
        ([0, 1], "There are three.\nOverall Judgment: Answer 2 is better.", True),
        ([1, 0], "There are three.\nOverall Judgment: Answer 1 is better.", True),
    ]
    assert "Answer 1: Two circles.\nAnswer 2: Three circles." in targets[0]["prompt"]


def test_agreement_in_one_order_only_is_no_target():
    judged = [
        judgment("a", "pairwise", [0, 1], 0, "There are three.", winner=2),
        judgment("a", "pairwise", [1, 0], 0, "There are three.", winner=2),
    ]
    assert choose([item()], [route()], judged) == []


def test_labelled_items_and_low_pairs_are_never_targets():
    judged = [judgment("a", "pairwise", order, 0, "So.", winner=order.index(1) + 1) for order in ([0, 1], [1, 0])]
    assert len(choose([item()], [route()], judged)) == 2
    assert choose([item(gold=[0.0, 1.0])], [route()], judged) == []
    assert choose([item()], [route(name="low")], judged) == []
    assert choose([item(error={"stage": "ingest", "kind": "k", "message": "m"})], [route()], judged) == []


def test_bare_verdicts_fill_a_share_from_items_without_agreement():
    items = [item(name) for name in "abcdefgh"]
    judged = [
        judgment(name, "pairwise", order, 0, "So.", winner=order.index(1) + 1)
        for name in "abcdef"
        for order in ([0, 1], [1, 0])
    ]
    targets = choose(items, [route(name) for name in "abcdefgh"], judged, "demonstrate.verdict_only_share=0.2")
    bare = [row for row in targets if not row["evidence"]]
    assert len(targets) == 15
    assert len(bare) == 3
    assert {row["item_id"] for row in bare} <= {"g", "h"}
    assert {row["text"] for row in bare} <= {f"Overall Judgment: Answer {n} is better." for n in (1, 2)}


def test_ratings_count_when_the_winner_is_good_and_the_loser_bad():
    def rated(winner, loser):
        return [
            judgment("a", "pointwise", [0], 0, "So.", rating=loser),
            judgment("a", "pointwise", [1], 0, "So.", rating=winner),
        ]

    asked = "demonstrate.pointwise_share=1"
    assert len(choose([item()], [route()], rated(5, 1), asked)) == 2
    assert choose([item()], [route()], rated(5, 3), asked) == []
    assert choose([item()], [route()], rated(3, 1), asked) == []


def test_a_ranking_needs_every_response_in_a_high_pair():
    high = [route(first=0, second=1, winner=0), route(first=0, second=2, winner=0)]
    assert demonstrate.rankable(3, high)
    assert not demonstrate.rankable(3, high[:1])
    assert not demonstrate.rankable(4, high)
    assert not demonstrate.rankable(3, [])


def test_a_ranking_that_contradicts_no_high_pair_is_a_target():
    """Response 1 is the best; which of the two others is better nobody knows."""
    routes = [
        route(first=0, second=1, winner=1),
        route(first=1, second=2, winner=1),
        route(first=0, second=2, winner=2, name="low"),
    ]
    three = item(responses=["Two.", "Three.", "Four."])
    settings = load_settings("mini", ["demonstrate.ranking_share=1", "demonstrate.pointwise_share=0"])
    [prompted] = [p for p in demonstrate.sampling_spec(settings).prompts(three, routes) if p.task == "ranking"]
    order = list(prompted.order)
    for ranking, n in (((1, 0, 2), 1), ((1, 2, 0), 1), ((0, 1, 2), 0), ((2, 1, 0), 0)):
        judged = [judgment("a", "ranking", order, 0, "So.", ranking=[order.index(i) + 1 for i in ranking])]
        targets = choose([three], routes, judged, "demonstrate.ranking_share=1")
        assert [row["task"] for row in targets] == ["ranking"] * n


def test_two_responses_are_not_ranked():
    settings = load_settings("mini", ["demonstrate.pointwise_share=0", "demonstrate.ranking_share=1"])
    prompts = demonstrate.sampling_spec(settings).prompts(item(), [route()])
    assert [(prompted.task, prompted.order) for prompted in prompts] == [("pairwise", (0, 1)), ("pairwise", (1, 0))]
