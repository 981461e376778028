import pytest

from carevl.judging.prompts import judge_prompt, judge_turn, write_judgment
from carevl.judging.turns import Turn
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


TWO = ["A cat.", "A dog."]


def _images(turn):
    """Return a turn's text with a mark for every image."""
    return "".join("#" if part is None else part for part in turn.parts())


def test_an_image_before_the_question_leads_the_prompt_and_its_words_are_as_ever():
    turn = judge_turn("pairwise", [Turn("user", "What is it?", (0,))], TWO)
    assert (turn.text, turn.places) == (judge_prompt("pairwise", "What is it?", TWO), (0,))
    template = "{{}} {answers}\nAsked: {question}"
    turn = judge_turn("pairwise", [Turn("user", "What is it?", (0,))], TWO, template=template)
    assert (turn.text, turn.places) == ("{} Answer 1: A cat.\nAnswer 2: A dog.\nAsked: What is it?", (0,))


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        (None, "Look at the images. Question: Is # or # older?\nAnswer 1: A cat."),
        ("{{}} {answers} {question}", "{} Answer 1: A cat.\nAnswer 2: A dog. Is # or # older?"),
        ("{{question}}{question} {answers}", "{question}Is # or # older? Answer 1: A cat."),
    ],
)
def test_images_stand_in_their_places_of_the_question(template, begins):
    asked = [Turn("user", "Is  or  older?", (3, 7))]
    assert _images(judge_turn("pairwise", asked, TWO, template=template)).startswith(begins)


def test_a_conversation_is_shown_with_a_name_before_each_turn():
    asked = [Turn("user", "What is it?", (0,)), Turn("assistant", "A cat."), Turn("user", "And in ?", (7,))]
    shown = "Question: User: #What is it?\nAssistant: A cat.\nUser: And in #?\nAnswer 1: A cat."
    assert _images(judge_turn("pairwise", asked, TWO)).startswith(f"Look at the images. {shown}")


@pytest.mark.parametrize(("task", "responses"), [("pairwise", TWO), ("pointwise", TWO[:1]), ("ranking", TWO)])
def test_a_prompt_without_images_speaks_of_none(task, responses):
    turn = judge_turn(task, [Turn("user", "Is it?")], responses)
    assert turn.places == ()
    assert "image" not in turn.text
    assert "Give one sentence of evidence, then write" in turn.text
