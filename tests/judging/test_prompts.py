import pytest

from carevl.judging.prompts import flip_verdict, judge_prompt, parse_judgment, write_judgment


def test_pairwise_verdict_is_an_item_index_whatever_the_order():
    text = write_judgment("There are two cats.", winner=1)
    assert parse_judgment(text, "pairwise", [0, 1]).winner == 0
    assert parse_judgment(text, "pairwise", [1, 0]).winner == 1
    assert parse_judgment(text, "pairwise", [1, 0]).evidence == "There are two cats."


def test_ranking_is_in_item_indices_best_first():
    text = write_judgment("Seen.", ranking=(3, 1, 2))
    assert parse_judgment(text, "ranking", [2, 0, 1]).ranking == (1, 2, 0)


def test_rating_is_read_and_bounded():
    assert parse_judgment("Overall Judgment: Rating 4.", "pointwise", [0]).rating == 4
    assert parse_judgment("Overall Judgment: Rating 6.", "pointwise", [0]).status == "none"
    assert parse_judgment("Overall Judgment: Rating 0.", "pointwise", [0]).status == "none"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", "none"),
        ("Answer 1 is better.", "none"),
        ("overall judgment: Answer 1 is better.", "none"),
        ("Overall Judgment: Answer 3 is better.", "none"),
        ("Overall Judgment: Answer 1 is better than Answer 2.", "none"),
        ("Overall Judgment: Answer 1 is better. Overall Judgment: Answer 2 is better.", "none"),
        ("Overall Judgment: Answer 1 is better.\nOverall Judgment: Answer 2 is better.", "both"),
        ("Overall Judgment: Answer 2 is better.\nOverall Judgment: Answer 2 is better.", "ok"),
        ("Overall Judgment: Answer 2 is better", "ok"),
        ("Overall Judgment: Rating 3.", "none"),
    ],
)
def test_pairwise_grammar_is_strict(text, status):
    verdict = parse_judgment(text, "pairwise", [0, 1])
    assert verdict.status == status
    assert (verdict.winner is not None) == (status == "ok")


def test_a_cut_text_without_verdict_is_truncated_but_a_finished_verdict_counts():
    assert parse_judgment("There are many", "pairwise", [0, 1], truncated=True).status == "truncated"
    assert parse_judgment("Overall Judgment: Answer 1 is better.", "pairwise", [0, 1], truncated=True).status == "ok"


@pytest.mark.parametrize("ranking", ["1 > 2", "1 > 1 > 2", "1 > 2 > 4", "1 > 2 > 3 > 4", "1, 2, 3"])
def test_a_ranking_must_name_every_answer_once(ranking):
    assert parse_judgment(f"Overall Judgment: Ranking {ranking}.", "ranking", [0, 1, 2]).status == "none"


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


def test_a_contradicted_judgment_has_the_other_verdict_and_nothing_else_changed():
    text = "Answer 1 is better lit.\n\nOverall Judgment:  Answer 2 is better.\nOverall Judgment: Answer 2 is better"
    assert flip_verdict(text) == text.replace("Answer 2", "Answer 1")
    assert flip_verdict(flip_verdict(text)) == text
    assert flip_verdict("I cannot tell.") == "I cannot tell."
