"""Groups of questions by their opening, and which of them labelled pairs speak for."""

import numpy as np
import pytest

from carevl.confidence.groups import find_openings, judge_groups


def test_an_opening_is_as_long_as_enough_labelled_questions_share():
    labelled = ["Where is the cat?"] * 3 + ["Where are the dogs?"] + ["How many dogs?"] * 2
    opening = find_openings(labelled, 3)
    assert [opening(text) for text in ("Where IS a dog?", "where else?", "How many?", "Why?")] == [
        "where is",
        "where",
        "",
        "",
    ]
    assert find_openings(labelled, 2)("How many cats are there?") == "how many"


def test_questions_without_spaces_open_with_characters():
    opening = find_openings(["图中有几只猫?"] * 2 + ["图里是什么?"] * 2, 2)
    assert opening("图中是什么?") == "图 中"
    assert opening("图里有几只猫?") == "图 里"


def test_a_group_holds_where_enough_labelled_pairs_are_right():
    names = ["left"] * 10 + ["count"] * 10 + ["few"] * 3
    right = np.array([False] * 9 + [True] + [True] * 9 + [False] + [True] * 3)
    groups = judge_groups(names, right, 0.9, 5)
    assert {name: (group.labelled, group.wrong, group.verdict) for name, group in groups.items()} == {
        "left": (10, 9, "group_below"),
        "count": (10, 1, "holds"),
        "few": (3, 0, "few_labels"),
    }


@pytest.mark.parametrize(("wrong", "verdict"), [(2, "holds"), (3, "group_below")])
def test_a_group_is_below_the_target_where_chance_would_seldom_give_so_many_wrong_ones(wrong, verdict):
    """Of 10 pairs at 0.9, two wrong ones or more have probability 0.26, three or more 0.07; of 8, three have 0.04."""
    n = 8 if wrong == 3 else 10
    groups = judge_groups(["a"] * n, np.arange(n) >= wrong, 0.9, 5)
    assert groups["a"].verdict == verdict


def test_a_judge_that_errs_at_random_seldom_loses_a_group_that_is_good_enough():
    rng = np.random.default_rng(0)
    lost = [judge_groups(["a"] * 30, rng.random(30) < 0.95, 0.95, 5)["a"].verdict == "group_below" for _ in range(1000)]
    assert np.mean(lost) < 0.06
