"""Verdicts in a judge's own wording, which its settings give: read as they are meant, at their place, or not at all."""

from __future__ import annotations

import pytest

from carevl.judging import read_verdict
from carevl.judging.counts import VerdictCounts
from carevl.judging.markup import Plain
from carevl.judging.wordings import read_wording

TAGS, LABEL = "[[{verdict}]]", "Winner: {verdict}"


@pytest.mark.parametrize(
    ("wording", "text", "value", "quoted"),
    [
        (TAGS, "Two cups. [[B]]", 2, "B"),
        (TAGS, "Two cups. **[[ A ]]**.", 1, "A"),
        (TAGS, "[[2]]", 2, "2"),
        (TAGS, "[[Assistant B]]", 2, "B"),
        (TAGS, "[[B]], as said: [[B]]", 2, "B"),
        (LABEL, "Two cups.\n\n**Winner:** Response B.", 2, "B"),
        (LABEL, "WINNER: (A) because B names three cups.", 1, "A"),
        (LABEL, "winner：\nb", 2, "b"),
        (LABEL, "<think>Winner: A?</think>Winner: B", 2, "B"),
        ("<verdict>{verdict}</verdict>", "Two cups. <verdict>A</verdict>", 1, "A"),
        ('"winner": "{verdict}"', '{"winner": "B", "why": "Two cups."}', 2, "B"),
        ("{verdict} wins", "Two cups: B wins.", 2, "B"),
        (r"\boxed{{verdict}}", r"Two cups: $\boxed{A}$", 1, "A"),
        (TAGS, "Winner: A.\nOverall Judgment: Answer 2 is better. [[A]]", 1, "A"),
        (TAGS, "Two cups.\nOverall Judgment: Answer 2 is better.", 2, "2"),  # what it has learned from targets
    ],
)
def test_a_verdict_is_read_at_its_letter_or_number(wording, text, value, quoted):
    reading = read_verdict(text, wording=wording)
    assert (reading.status, reading.value) == ("ok", value)
    assert reading.span is not None
    begin, end = reading.span
    assert text[begin:end] == quoted


@pytest.mark.parametrize("text", ["Two cups. [[B]]", "**Evidence:** Two cups.\n\nWinner: A"])
def test_evidence_is_what_stands_before_it(text):
    reading = read_verdict(text, wording=TAGS if "[[" in text else LABEL)
    assert reading.evidence == "Two cups."
    assert text[reading.begin :] in ("[[B]]", "Winner: A")


@pytest.mark.parametrize(
    ("wording", "text", "status"),
    [
        (TAGS, "[[A]] or rather [[B]]", "both"),
        (TAGS, "[[A]] or [[C]]", "both"),
        (TAGS, "[[A, B]]", "none"),
        (TAGS, "[[cup]]", "none"),
        (TAGS, "[[D]] [[3]]", "none"),
        (TAGS, "A", "none"),
        (LABEL, "Winner: A or B", "none"),
        (LABEL, "Winner: B/A", "none"),
        (LABEL, "Winner: a cup", "none"),
        (LABEL, "Winner: 12", "none"),
        (LABEL, "Winner: 1.5", "none"),
        (LABEL, "Breadwinner: A", "none"),
        (TAGS, "<think>[[A]]", "truncated"),
        ("**{verdict}**", "A", "none"),  # nothing but markup: any letter would do
    ],
)
def test_nothing_is_guessed(wording, text, status):
    reading = read_verdict(text, wording=wording)
    assert (reading.status, reading.value, reading.span) == (status, None, None)


@pytest.mark.parametrize("text", ["[[C]]", "[[tie]]", "[[Both]]"])
def test_a_tie_is_counted_as_one(text):
    reading = read_verdict(text, wording=TAGS)
    assert (reading.status, reading.tie) == ("none", True)
    counts = VerdictCounts()
    counts.add("pairwise", text, "none", wording=TAGS)
    assert counts.ties == 1


def test_what_ends_a_text_that_was_cut_may_have_gone_on():
    for text, status in (("Winner: B", "truncated"), ("Winner: B\nAs", "ok"), ("Winner:", "truncated")):
        assert read_verdict(text, truncated=True, wording=LABEL).status == status
    assert read_verdict("Two cups. [[B]]", truncated=True, wording=TAGS).value == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Score: 4", 4.0),
        ("Score: 4.5.", 4.5),
        ("Score: 4/5", 4.0),
        ("Score: 4 out of 5", 4.0),
        *((f"Score: {other}", None) for other in ("8", "4/10", "4 out of 10", "3-4", "3 or 4", "40%", "0.4", "B")),
    ],
)
def test_ratings_are_numbers_from_1_to_5(text, value):
    assert read_verdict(text, "pointwise", 1, wording="Score: {verdict}").value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Order: B > A > C", (2, 1, 3)),
        ("Order: Answer 2, Answer 1, Answer 3", (2, 1, 3)),
        ("Order: CAB", (3, 1, 2)),
        *((f"Order: {other}", None) for other in ("B > A", "B > A = C", "B > B > A", "CABD", "B > A > D")),
    ],
)
def test_rankings_name_every_response_once(text, value):
    assert read_verdict(text, "ranking", 3, wording="Order: {verdict}").value == value


@pytest.mark.parametrize("part", ["Winner: ", " ", "A > ", "[[", "[[the answer ", "1.", "a tie "])
def test_a_long_text_that_begins_verdicts_and_ends_none_is_searched_to_its_end(part):
    for task, shown in (("pairwise", 2), ("pointwise", 1), ("ranking", 4)):
        for wording in (TAGS, LABEL, "{verdict} wins"):
            plain = Plain.of(part * 1000)
            assert not any(clause.kind == "value" for _, clause in read_wording(plain, wording, task, shown, False))
