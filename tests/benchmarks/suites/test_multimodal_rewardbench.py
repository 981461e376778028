from __future__ import annotations

import random

import pytest

from carevl.benchmarks.suites.multimodal_rewardbench import SUITE

HEADER = "ID,Text,Image,Output1,Output2,Better,Category"


@pytest.fixture
def write(tmp_path):
    def make(*lines):
        path = tmp_path / "all_data.csv"
        path.write_text("\n".join([HEADER, *lines]))
        return path

    return make


@pytest.mark.parametrize(
    ("row_id", "category", "group"),
    [
        ("Pairs_1", "safety", "safety/bias"),
        ("hateful_1", "safety", "safety/toxicity"),
        ("MathVista_1", "reasoning", "reasoning/math"),
        ("emma_1", "reasoning", "reasoning/coding"),
        ("mathvista_1", "vqa", "vqa"),
    ],
)
def test_subgroups_follow_the_id(write, row_id, category, group):
    assert SUITE.load(write(f"{row_id},q,i.png,a,b,Output1,{category}"))[0].group == group


def test_a_csv_row_becomes_a_pair(write, tmp_path):
    row = SUITE.load(write('x,"two\nlines",images/i.png,"a, b",c,Output2,vqa'))[0]
    assert (row.question, row.responses, row.winner) == ("two\nlines", ("a, b", "c"), 1)
    assert row.images[0].path == tmp_path / "images/i.png"


def test_numbers_stay_text(write):
    assert SUITE.load(write("1,2,i.png,1.0,1,Output1,vqa"))[0].responses == ("1.0", "1")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x,q,i.png,a,b,A,vqa", "Better must be Output1 or Output2, found 'A'"),
        ("x,,i,a,b,Output1,vqa", "Text is empty"),
    ],
)
def test_bad_rows_are_named(write, line, message):
    with pytest.raises(ValueError, match=f"row 1: {message}"):
        SUITE.load(write(line))


def test_official_shows_the_order_of_the_file(write):
    questions = list(SUITE.questions(SUITE.load(write("x,q {0},i.png,a,b,Output2,vqa")), "official"))
    assert [question.order for question in questions] == [(0, 1)]
    assert "[User Question]\nq {0}\n\n[The Start of Assistant A's Answer]\na\n[The End" in questions[0].prompt


@pytest.mark.parametrize(
    ("text", "winner", "status"),
    [
        ("so [[A]]", 0, "ok"),
        ("[[B]]", 1, "ok"),
        ("[[B]], not [[A]]", 0, "ok"),
        ("[[a]]", None, "none"),
        ("[A]", None, "none"),
        ("", None, "none"),
    ],
)
def test_a_wins_when_both_tags_are_there(write, text, winner, status):
    question = next(SUITE.questions(SUITE.load(write("x,q,i,a,b,Output1,vqa")), "official"))
    verdict = SUITE.parse(question, text)
    assert (verdict.winner, verdict.status) == (winner, status)


def test_the_coin_of_seed_123_is_thrown_only_for_rows_without_a_tag(pair, answer, values):
    rows = [pair(str(number)) for number in range(40)]
    said = [0 if number % 4 == 0 else None for number in range(40)]
    predictions = [answer(row.key, winner=winner) for row, winner in zip(rows, said, strict=True)]
    coin = random.Random(123)
    expected = [1 if winner == 0 else int(coin.random() < 0.5) for winner in said]
    scored = SUITE.score(rows, predictions, "official")
    assert scored.right.tolist() == expected
    assert values(scored)["overall"] == sum(expected) / 40


def test_a_row_with_fewer_draws_is_the_mean_of_those(pair, answer):
    draws = [answer("a", winner=0), answer("a", sample=1, winner=1), answer("b", winner=0)]
    assert SUITE.score([pair("a"), pair("b")], draws, "official", draws=2).right.tolist() == [0.5, 1.0]


def test_strict_does_not_guess(pair, both_orders, values):
    rows = [pair("a"), pair("b", group="safety/bias")]
    predictions = [*both_orders("a", 0, 0), *both_orders("b", None, 0)]
    assert values(SUITE.score(rows, predictions, "strict")) == {
        "overall": 0.5,
        "macro": 0.5,
        "general": 1.0,
        "safety/bias": 0.0,
    }
