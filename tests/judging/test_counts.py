from __future__ import annotations

import pytest

from carevl.judging.counts import VerdictCounts, describe, join, quote, store, stored_warnings

TIE = "Overall Judgment: Both answers are equally good."


def _counts(**numbers):
    """Judgments by what comes of them."""
    counts = VerdictCounts()
    for kind, number in numbers.items():
        for n in range(number):
            text = TIE if kind == "tie" else f"Text {n} that is {kind}."
            counts.add("pairwise", text, "none" if kind == "tie" else kind, failed=kind == "failed")
    return counts


def test_judgments_are_counted_by_what_came_of_them():
    counts = _counts(ok=1200, failed=10, none=5, tie=2, both=1, truncated=3)
    assert counts.line() == (
        "1,221 asked, 1,211 answered, 1,200 parsed (98.3 %): 1,200 ok, 7 none (2 state a tie), 1 both, 3 truncated"
    )
    assert sum(counts.statuses.values()) == counts.answered
    assert VerdictCounts().line() == "0 asked, 0 answered, 0 parsed"


def test_a_warning_quotes_three_texts_where_fewer_than_nine_of_ten_are_read():
    assert _counts(ok=90, none=10).warning("pairwise") == []
    assert _counts(ok=89, none=11).warning("pairwise") == [
        "pairwise: 11 of 100 judgments have no verdict that can be read, such as",
        '  none: "Text 0 that is none."',
        '  none: "Text 1 that is none."',
        '  none: "Text 2 that is none."',
    ]


def test_a_stated_tie_and_a_question_that_failed_are_no_reason_for_a_warning():
    assert _counts(ok=50, tie=50).warning("pairwise") == []
    assert _counts(ok=50, failed=50).warning("pairwise") == []


def test_a_tie_is_read_in_pairwise_texts_alone():
    counts = VerdictCounts()
    counts.add("pointwise", TIE, "none")
    counts.add("pairwise", TIE, "none", tie=False)
    assert counts.ties == 0


def test_a_warning_is_about_the_kind_of_judgment_that_is_not_read():
    counts = {"pairwise": _counts(ok=99, none=1), "ranking": _counts(ok=1, truncated=4)}
    line, *warning = describe(counts)
    assert line == "105 asked, 105 answered, 100 parsed (95.2 %): 100 ok, 1 none, 4 truncated"
    assert warning[0] == "ranking: 4 of 5 judgments have no verdict that can be read, such as"
    assert len(warning) == 4
    assert stored_warnings({"verdicts": store(counts)}) == warning
    assert stored_warnings({}) == describe({}) == []
    assert join(counts.values()).unread[0] == 'none: "Text 0 that is none."'


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ("Two\n\ncups.\x1b[31m\ud800", '"Two cups. [31m"'),
        ("a" * 120, f'"{"a" * 120}"'),
        ("b" * 50 + "m" * 21 + "e" * 80, f'"{"b" * 40} … {"e" * 80}"'),
    ],
)
def test_a_text_is_quoted_on_one_line_by_its_beginning_and_its_end(text, quoted):
    assert quote(text) == quoted
