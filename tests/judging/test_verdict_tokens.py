"""Finding the verdict's token: both kinds of tokenizer, digits elsewhere in the text, and what cannot be told."""

from __future__ import annotations

import numpy as np
import pytest

from carevl.judging.verdict_tokens import WATCH, forced, stated

SPACE = 0.9


def seen(bare=(), spaced=(), space=None):
    """Log-probabilities at one token: of the bare digits, of digits with their space, or of the space alone."""
    values = dict.fromkeys(WATCH, 1e-9)
    values |= {str(n): p for n, p in enumerate(bare, start=1)}
    values |= {f" {n}": p for n, p in enumerate(spaced, start=1)}
    if space is not None:
        values |= {f" {n}": space for n in range(1, 6)}
    return np.log([values[text] for text in WATCH]).tolist()


TEXT = "There are 2 red shapes.\nOverall Judgment: Answer 1 is better."


@pytest.mark.parametrize("split", [True, False], ids=["the space is a token", "the space is in the digit's token"])
def test_the_verdict_is_the_last_digit_written(split):
    other = seen(space=1e-6) if split else seen()
    digit = (lambda p: [seen(space=SPACE), seen(bare=p, space=1e-7)]) if split else (lambda p: [seen(spaced=p)])
    watched = [other, *digit((0.02, 0.97)), other, *digit((0.7, 0.28)), other, other]
    assert stated(watched, TEXT) == pytest.approx([0.7 / 0.98, 0.28 / 0.98])


def test_digits_after_the_verdict_are_counted_off():
    watched = [seen(bare=(0.9, 0.1)), seen(), seen(bare=(0.2, 0.8)), seen(bare=(0.99, 0.001))]
    text = "Overall Judgment: Answer 1 is better.\nThe other says 2, not 1."
    assert stated(watched, text)[0] == pytest.approx(0.9)


def test_what_cannot_be_told_is_none():
    sure = [seen(bare=(0.9, 0.05))]
    assert stated(sure, "Overall Judgment: none") is None
    assert stated([], TEXT) is None
    assert stated([seen(bare=(0.1, 0.2))], TEXT) is None  # another token may well have been likelier
    assert stated([seen(bare=(0.1, 0.9))], TEXT) is None  # this digit is not the one that the text has
    assert stated([seen(space=0.99)], TEXT) is None  # a tokenizer whose digits begin with a token of their own


def test_a_forced_verdict_is_read_where_digits_are_likeliest():
    split = [seen(space=SPACE), seen(bare=(0.2, 0.6), space=1e-7)]
    assert forced(split, 2) == pytest.approx([0.25, 0.75])
    joined = [seen(spaced=(0.3, 0.1)), seen()]
    assert forced(joined, 2) == pytest.approx([0.75, 0.25])
    assert forced([seen(bare=(0.1, 0.1, 0.1, 0.5, 0.2))], 5) == pytest.approx([0.1, 0.1, 0.1, 0.5, 0.2])


def test_impossible_digits_give_no_verdict():
    assert forced([[-np.inf] * len(WATCH)], 2) is None
    assert forced([], 2) is None
