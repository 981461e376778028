"""Answers of models: which are faulty, which say the same, and which give a reference answer."""

from __future__ import annotations

import pytest

from carevl.data.answers import find_fault, same_answer, states, words_of

QUESTION = "How many red circles are there?"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("There are two red circles.", None),
        ("No, I cannot see a red circle.", None),
        ("Sorry is what the sign says.", "refusal"),  # a word at the beginning is enough
        ("", "empty"),
        (" …\n", "empty"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("I am unable to assist with this request.", "refusal"),
        ("Unfortunately, I cannot provide that.", "refusal"),
        ("As an AI language model, I do not see images.", "refusal"),
        ("抱歉,我无法回答这个问题。", "refusal"),
        ("Es tut mir leid, das kann ich nicht.", "refusal"),
        ("How many red circles are there?", "echo"),
        ("how many red circles are there", "echo"),
        ("How many red circles are there? Two.", "echo"),
        ("How many red circles are there? I count two of them.", None),
        ("图中有两个红色的圆。", "script"),
        ("Есть два красных круга.", "script"),
        ("2", None),
        ("Café", None),
    ],
)
def test_a_fault_is_told_from_an_answer(text, fault):
    assert find_fault(text, QUESTION) == fault


def test_a_cut_answer_is_a_fault_and_an_answer_in_the_questions_script_is_none():
    assert find_fault("There are", QUESTION, truncated=True) == "cut"
    assert find_fault("图中有两个红色的圆。", "有几个红色的圆?") is None
    assert find_fault("カタカナとひらがな", "图中有什么?") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("Two red circles.", "2 red circles", True),
        ("There is a cat", "there is the cat!", True),
        ("ＡＢＣ", "abc", True),
        ("There are two circles.", "There are three circles.", False),
        ("Yes.", "No.", False),
        ("", "", True),
    ],
)
def test_answers_are_one_by_their_words(first, second, same):
    assert same_answer(words_of(first), words_of(second), 0.05) is same


def test_long_answers_that_differ_in_a_word_are_one_unless_every_word_counts():
    first = " ".join(f"word{n}" for n in range(40))
    second = first.replace("word7 ", "other ")
    assert same_answer(words_of(first), words_of(second), 0.05)
    assert not same_answer(words_of(first), words_of(second), 0.0)


@pytest.mark.parametrize(
    ("response", "answer", "given"),
    [
        ("Yes, there is a cat.", "yes", True),
        ("There is no cat, yes?", "yes", False),
        ("The cat is black.", "black", True),
        ("The cat is black.", "white", False),
        ("There are two cats.", "2", True),
        ("It is in the top left.", "top left", True),
        ("A circle", "circle", True),
        ("", "circle", False),
        ("A circle", "", False),
    ],
)
def test_a_response_gives_a_reference_answer(response, answer, given):
    assert states(words_of(response), answer) is given
