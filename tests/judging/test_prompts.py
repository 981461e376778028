import pytest

from carevl.judging.prompts import judge_prompt, write_judgment
from carevl.judging.verdicts import read_verdict


@pytest.mark.parametrize(
    ("task", "shown", "verdict"),
    [
        ("pairwise", 2, {"winner": 1}),
        ("pairwise", 2, {"winner": 2}),
        ("pointwise", 1, {"rating": 4}),
        ("pointwise", 1, {"rating": 4.5}),
        ("ranking", 3, {"ranking": (3, 1, 2)}),
    ],
)
def test_a_judgment_is_read_as_it_was_written(task, shown, verdict):
    reading = read_verdict(write_judgment("There are two cats.", **verdict), task, shown)
    [value] = verdict.values()
    assert (reading.status, reading.value, reading.evidence) == ("ok", value, "There are two cats.")


def test_a_rating_is_written_as_the_prompt_asks():
    assert write_judgment("", rating=4.0) == "Overall Judgment: Rating 4."


def test_prompt_shows_responses_in_the_given_order():
    prompt = judge_prompt("pairwise", "How many?", ["two", "three"], [1, 0])
    assert prompt.index("Answer 1: three") < prompt.index("Answer 2: two")
    assert "How many?" in prompt


@pytest.mark.parametrize(
    ("task", "order"), [("pairwise", [0]), ("pairwise", [0, 1, 2]), ("pointwise", [0, 1]), ("ranking", [0])]
)
def test_prompt_refuses_a_number_of_responses_that_the_task_does_not_show(task, order):
    with pytest.raises(ValueError, match=f"{task} prompt cannot show {len(order)}"):
        judge_prompt(task, "q", ["a", "b", "c"], order)
