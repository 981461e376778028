"""Selection by words: what evidence and answers say for either response, on hand-made samples."""

import pytest

from carevl.compare.words import Witness
from carevl.settings.loader import load_settings
from carevl.stages import select
from carevl.store.ingested import Ingested
from carevl.store.table import Table
from tests.helpers.finished_run import FINISHED
from tests.helpers.sampled_judgments import FIRST, SECOND, answered, choose, sampled


def _weight(rule, weight):
    return f"select.rules={{'carevl.compare.words:{rule}': {weight}}}"


def test_evidence_that_says_what_a_response_says_speaks_for_it():
    judged = sampled("a", FIRST, (1, "There are 2 cats."), (0, "There are two cats."), (1, "There are 2 cats."))
    judged += sampled("a", SECOND, (0, "There are 2 cats."), (1, "There are three cats."))
    # "2" stands for "two": four of five judgments say what "Two." says in three wordings, the most frequent in three
    witness = Witness(["Two.", "Three."], [row["evidence"] for row in judged])
    assert witness.lean("How many?", "Two.", "Three.", judged) == pytest.approx(3 / 5)
    assert witness.lean("How many?", "Three.", "It is three of them.", judged) == 0.0
    assert witness.lean("How many?", "Two.", "Three.", []) == 0.0
    assert {pair["winner"] for pair in choose(judged)} <= {1}
    pairs = choose(judged, _weight("EvidenceWords", 3))
    assert [pair["winner"] for pair in pairs] == [0, 0]
    # consistency 2/5, experts even, evidence 3/5 of the way: (2/5 + 0.25 + 3 * 0.8) / 4.5
    assert pairs[0]["score_chosen"] == pytest.approx((2 / 5 + 0.25 + 3 * 0.8) / 4.5)


def test_words_of_the_question_and_of_style_say_nothing():
    seen = sampled("a", FIRST, (0, "There is a red cross in the top left and a dot."))
    asked, evidence = "Where is the red cross?", ["There is a red cross in the top left and a dot.", "bottom right"]

    def told(first, second):
        return Witness([first, second], evidence).lean(asked, first, second, seen)

    assert told("The red cross is in the top left.", "In the top left.") == 0.0
    assert told("In the bottom right, I am sure.", "In the top left.") == -1.0
    assert told("bottom left", "top") == 0.5 - 1.0
    assert told("In the top left, I am sure.", "In the top left.") == 0.0  # no evidence ever says "sure"
    assert told("top left, a dot", "top left") == 0.5  # more than the other, and so it is
    assert told("top left, bottom", "top left") == -0.5  # more than the other, and it is not so
    # "dot" stands in 150 of 151 responses and in one of 151 evidences
    often = Witness(["a dot"] * 150 + ["top"], [*evidence, *["top"] * 149])
    assert often.lean(asked, "top left, a dot", "top left", seen) == 0.0


def test_the_answer_to_the_bare_question_speaks_for_a_response_and_for_evidence_like_it():
    judged = sampled("a", FIRST, (1, "There are three."), (0, "There are four."), (0, "There are two dots."))
    judged += sampled("a", SECOND, (1, "There are three."), (1, "There are three."), (1, "There are three."))
    answers = answered("a", "There are two.", "There are two.", "There are three.")
    [pair] = choose(judged + answers, _weight("AnswerWords", 4))
    assert pair["order"] == FIRST
    assert pair["winner"] == 0
    assert pair["chosen"] == "There are two dots.\nOverall Judgment: Answer 1 is better."
    # consistency 2/6, experts even, two of three answers say the first response: (2/6 + 0.25 + 4 * (1/2 + 1/3)) / 5.5
    assert pair["score_chosen"] == pytest.approx((2 / 6 + 0.25 + 4 * (1 / 2 + 1 / 3)) / 5.5)
    [pair] = choose(judged + answered("a", "There are two."))
    assert pair["winner"] == 1  # answers count for nothing unless they have a weight


def test_stored_judgments_of_an_earlier_version_give_the_pairs_that_it_chose():
    settings = load_settings(str(FINISHED / "settings.yaml"))
    ingest, *tables = (next((FINISHED / stage).iterdir()) for stage in ("ingest", "route", "sample", "select"))
    routes, sampled_there, pairs = map(Table, tables)
    items = Ingested(ingest).items
    for number in pairs.parts():
        chosen = select.choose(settings, *(table.read(number) for table in (items, routes, sampled_there)))
        stored = pairs.read(number)
        assert stored.num_rows
        assert chosen.select(stored.column_names).to_pylist() == stored.to_pylist()
