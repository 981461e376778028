"""Finding the verdict's token: both kinds of tokenizer, digits elsewhere in the text, and what cannot be located."""

from __future__ import annotations

import numpy as np
import pytest

from carevl.judging.verdict_tokens import VERDICT_TEXTS, forced_probabilities, verdict_texts
from carevl.judging.verdict_tokens import verdict_probabilities as probabilities_at
from carevl.judging.verdicts import read_verdict

SPACE = 0.9


def verdict_probabilities(logprobs, text):
    return probabilities_at(logprobs, text, read_verdict(text).span)


def seen(bare=(), spaced=(), space=None):
    """Log-probabilities at one token: of the bare digits, of digits with their space, or of the space alone."""
    values = dict.fromkeys(VERDICT_TEXTS, 1e-9)
    values |= {str(n): p for n, p in enumerate(bare, start=1)}
    values |= {f" {n}": p for n, p in enumerate(spaced, start=1)}
    if space is not None:
        values |= {f" {n}": space for n in range(1, 6)}
    return np.log([values[text] for text in VERDICT_TEXTS]).tolist()


TEXT = "There are 2 red shapes.\nOverall Judgment: Answer 1 is better."


@pytest.mark.parametrize("split", [True, False], ids=["the space is a token", "the space is in the digit's token"])
def test_the_verdict_is_the_last_digit_written(split):
    other = seen(space=1e-6) if split else seen()
    digit = (lambda p: [seen(space=SPACE), seen(bare=p, space=1e-7)]) if split else (lambda p: [seen(spaced=p)])
    logprobs = [other, *digit((0.02, 0.97)), other, *digit((0.7, 0.28)), other, other]
    assert verdict_probabilities(logprobs, TEXT) == pytest.approx([0.7 / 0.98, 0.28 / 0.98])


def test_digits_after_the_verdict_are_counted_off():
    logprobs = [seen(bare=(0.9, 0.1)), seen(), seen(bare=(0.2, 0.8)), seen(bare=(0.99, 0.001))]
    text = "Overall Judgment: Answer 1 is better.\nThe other says 2, not 1."
    assert verdict_probabilities(logprobs, text)[0] == pytest.approx(0.9)


def test_the_token_is_that_of_the_verdict_that_was_read():
    text = "**Overall Judgment:** **Answer 2** is better.\n\nIt says 1 book, and 2 cups."
    logprobs = [seen(bare=(0.3, 0.6)), seen(bare=(0.99, 0.001)), seen(bare=(0.001, 0.99))]
    assert verdict_probabilities(logprobs, text)[1] == pytest.approx(0.6 / 0.9)
    assert verdict_probabilities(logprobs[:1], "Overall Judgment: Answer 2 is not better.") is None
    assert verdict_probabilities(logprobs[:1], "Overall Judgment: the second answer is better.") is None


def test_after_numbers_of_several_digits_the_token_is_not_known():
    logprobs = [seen(bare=(0.9, 0.05)), seen(bare=(0.9, 0.05))]
    assert verdict_probabilities(logprobs, "Overall Judgment: Answer 1 is better. The other says 12.") is None


def test_a_verdict_that_cannot_be_located_has_no_probability():
    sure = [seen(bare=(0.9, 0.05))]
    assert verdict_probabilities(sure, "Overall Judgment: none") is None
    assert verdict_probabilities([], TEXT) is None
    assert verdict_probabilities([seen(bare=(0.1, 0.2))], TEXT) is None  # another token may well have been likelier
    assert verdict_probabilities([seen(bare=(0.1, 0.9))], TEXT) is None  # this digit is not the one that the text has
    assert (
        verdict_probabilities([seen(space=0.99)], TEXT) is None
    )  # a tokenizer whose digits begin with a token of their own


def _lettered(**letters):
    """Log-probabilities at one token by letters, and none of digits."""
    values = dict.fromkeys(verdict_texts("[[{verdict}]]"), 1e-9) | letters
    return np.log([values[text] for text in verdict_texts("[[{verdict}]]")]).tolist()


@pytest.mark.parametrize("space", ["", " "])
def test_a_verdict_that_is_a_letter_is_read_at_its_token(space):
    text = "A cup. Winner: B, as 2 say: A is worse."
    span = (text.index("B"), text.index("B") + 1)
    first, verdict, last = ({f"{space}A": a, f"{space}B": b} for a, b in ((0.9, 0.05), (0.3, 0.6), (0.99, 0.001)))
    tokens = [_lettered(**first), _lettered(), _lettered(**verdict), _lettered(), _lettered(**last)]
    assert probabilities_at(tokens, text, span) == pytest.approx([0.3 / 0.9, 0.6 / 0.9])
    assert probabilities_at(tokens, text.replace("worse", "Bad"), span) is None  # which may begin with a token B
    assert probabilities_at([row[: len(VERDICT_TEXTS)] for row in tokens], text, span) is None  # letters were not read
    digit = [row.copy() for row in tokens]
    digit[2][VERDICT_TEXTS.index("2")] = np.log(0.95)
    assert probabilities_at(digit, "Winner: 2", (8, 9)) == pytest.approx([0, 1], abs=1e-6)
    assert forced_probabilities(digit, 2)[1] > 0.99


def test_a_forced_verdict_is_read_where_digits_are_likeliest():
    split = [seen(space=SPACE), seen(bare=(0.2, 0.6), space=1e-7)]
    assert forced_probabilities(split, 2) == pytest.approx([0.25, 0.75])
    joined = [seen(spaced=(0.3, 0.1)), seen()]
    assert forced_probabilities(joined, 2) == pytest.approx([0.75, 0.25])
    assert forced_probabilities([seen(bare=(0.1, 0.1, 0.1, 0.5, 0.2))], 5) == pytest.approx([0.1, 0.1, 0.1, 0.5, 0.2])


def test_impossible_digits_give_no_verdict():
    assert forced_probabilities([[-np.inf] * len(VERDICT_TEXTS)], 2) is None
    assert forced_probabilities([], 2) is None
