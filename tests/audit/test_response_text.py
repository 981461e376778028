"""Whether responses tell by their words alone which of them is right."""

from __future__ import annotations

import numpy as np

from carevl.audit.findings import find
from carevl.audit.response_text import measure_response_text

COLOURS = ("red", "green", "blue", "yellow")


def _measure(wrong, n=200):
    """Measure pairs of a right answer, each colour in turn, and a wrong one; the right one stands first in half."""
    texts, label = [], []
    for k in range(n):
        right = f"It is {COLOURS[k % 4]}."
        pair = (right, wrong(k))
        texts.append(pair if k % 3 else pair[::-1])
        label.append(1.0 if k % 3 else -1.0)
    everything = {"all": np.ones(n, bool), "few": np.arange(n) < 10}
    return measure_response_text(texts, np.array(label), np.arange(n), everything)


def test_words_that_only_wrong_responses_have_are_found():
    report = _measure(lambda k: f"I think it is {COLOURS[(k + 1 + k // 4 % 3) % 4]}.")
    assert set(report) == {"all"}
    assert report["all"]["low"] > 0.95
    [finding] = find({"response_text": report})
    assert "tell by their words alone which is right" in finding.sentence


def test_answers_that_are_right_elsewhere_tell_nothing():
    report = _measure(lambda k: f"It is {COLOURS[(k + 1 + k // 4 % 3) % 4]}.", n=600)
    assert report["all"]["low"] < 0.5 < report["all"]["high"] or report["all"]["value"] < 0.55
    assert not find({"response_text": report})


def test_without_labels_nothing_is_measured():
    pairs = [("a", "b")] * 30
    assert measure_response_text(pairs, np.full(30, np.nan), np.arange(30), {"all": np.ones(30, bool)}) == {}
