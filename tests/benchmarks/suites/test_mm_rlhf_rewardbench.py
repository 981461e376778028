from __future__ import annotations

import json

import pytest

from carevl.benchmarks.rows import missing_images
from carevl.benchmarks.suites.mm_rlhf_rewardbench import SUITE

ROW = {"id": "1", "image": "long/1.png", "prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def rows(tmp_path):
    records = [
        ROW,
        ROW | {"rejected": "worse"},
        ROW | {"id": "2", "image": None, "video": "video/2"},
        ROW | {"id": "3"},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, records)))
    return SUITE.load(tmp_path / "r.jsonl")


def test_the_real_rows_load(shared_data):
    rows = SUITE.load(shared_data / "mm_rlhf_rewardbench.jsonl")
    assert len({row.key for row in rows}) == 170
    assert len({row.unit for row in rows}) == 46
    assert sum(row.group == "video" for row in rows) == 25


def test_categories_come_from_the_path_and_videos_are_no_images(rows):
    assert [row.group for row in rows] == ["long", "long", "video", "long"]
    assert len(missing_images(rows)) == 4


def test_rewards_are_asked_of_each_response(rows):
    questions = list(SUITE.questions(rows[:1], "official"))
    assert [(question.prompt, question.response) for question in questions] == [("q", "good"), ("q", "bad")]
    assert [question.task for question in SUITE.questions(rows[:1], "strict")] == ["pairwise", "pairwise"]
    assert [question.response for question in SUITE.questions(rows[:1], "official_scorer")] == [None, None]


def test_equal_rewards_are_wrong_and_plus_needs_every_pair(rows, answer, values):
    rewards = [(2.0, 1.0), (2.0, 2.0), (0.5, -1.0), (3.0, 1.0)]
    predictions = [
        answer(row.key, order=(i,), rating=reward[i]) for row, reward in zip(rows, rewards, strict=True) for i in (0, 1)
    ]
    assert values(SUITE.score(rows, predictions, "official")) == {
        "accuracy": 0.75,
        "accuracy_plus": pytest.approx(2 / 3),
        "accuracy/long": pytest.approx(2 / 3),
        "accuracy_plus/long": 0.5,
        "accuracy/video": 1.0,
        "accuracy_plus/video": 1.0,
    }


def test_an_unrated_response_is_wrong(rows, answer, values):
    predictions = [answer(rows[0].key, order=(i,), rating=rating) for i, rating in ((0, 5.0), (1, None))]
    assert values(SUITE.score(rows[:1], predictions, "official_scorer"))["accuracy"] == 0


def test_strict_compares_pairs_in_both_orders(rows, both_orders, values):
    winners = [(0, 0), (0, 1), (0, 0), (None, 0)]
    predictions = [each for row, pair in zip(rows, winners, strict=True) for each in both_orders(row.key, *pair)]
    result = values(SUITE.score(rows, predictions, "strict"))
    assert (result["accuracy"], result["accuracy_plus"]) == (0.5, pytest.approx(1 / 3))
