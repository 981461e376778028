from __future__ import annotations

import json

import pytest

from carevl.benchmarks.result_files import read_results
from carevl.benchmarks.suites.vlrmbench import SUITE, official_scores

ROW = {
    "id": "a",
    "image": ["dynamath/1.jpg"],
    "question": "Which point?",
    "step_list": ["STEP1: Look.\n\n", "STEP2: It is A.\n\n"],
    "reasoning_error": "STEP1: It is B.",
    "task_gt": [0, 1],
    "category": "multi_solution",
}


@pytest.fixture
def write(tmp_path):
    def make(*rows):
        path = tmp_path / "multi_solution.jsonl"
        path.write_text("\n".join(json.dumps(ROW | row) for row in rows))
        return path

    return make


def test_a_row_becomes_a_pair_whose_first_response_is_better(write, tmp_path):
    write({}, {"id": "b", "error_info": "x"})
    [row] = SUITE.load(tmp_path)
    assert row.responses == ("STEP1: Look.\n\nSTEP2: It is A.", "STEP1: It is B.")
    assert (row.native_id, row.winner, row.images[0].path) == ("a", 0, tmp_path / "dynamath/1.jpg")


@pytest.mark.parametrize(
    ("images", "question", "words", "places"),
    [
        (["1.jpg", "2.jpg"], "Is the cup in <image> that of <image>?", "Is the cup in  that of ?", (14, 23)),
        (["1.jpg", "2.jpg"], "<image> <image> Which is older?", "Which is older?", (0, 0)),
        (["1.jpg", "2.jpg", "3.jpg"], "Which is most like the first?", "Which is most like the first?", (0, 0, 0)),
        (["1.jpg", "2.jpg"], "What is <image>?", "What is <image>?", (0, 0)),
        (["1.jpg"], "<image> Which is it?", "<image> Which is it?", (0,)),
        ([], "Is 7 prime?", "Is 7 prime?", ()),
    ],
)
def test_images_stand_at_their_tags_if_there_is_one_for_each(write, tmp_path, images, question, words, places):
    [row] = SUITE.load(write({"image": images, "question": question}))
    assert [image.path for image in row.images] == [tmp_path / name for name in images]
    assert (row.turn.text, row.turn.places) == (words, places)


def test_official_questions_show_images_where_the_question_has_them(write):
    rows = SUITE.load(write({"image": ["1.jpg", "2.jpg"], "question": "Is <image> like <image>?"}))
    question = next(SUITE.questions(rows, "official"))
    before, between, after = [part for part in question.turn.parts() if part is not None]
    assert before.startswith("Two assistants answered the same question about the images. Rate")
    assert before.endswith("Question:\nIs ")
    assert (between, after[:14]) == (" like ", "?\n\nResponse 1:")
    [text_only] = SUITE.load(write({"image": []}))
    [first, _] = SUITE.questions([text_only], "official")
    assert first.prompt.startswith("Two assistants answered the same question. Rate")
    assert (first.images, first.turn.places) == ((), ())


def test_bad_rows_are_named(write):
    with pytest.raises(ValueError, match=r"row 2: image must be a list of texts, found '1.jpg'"):
        SUITE.load(write({}, {"id": "b", "image": "1.jpg"}))
    with pytest.raises(ValueError, match=r"row 1: step_list must be a list of texts"):
        SUITE.load(write({"step_list": [1]}))


@pytest.mark.parametrize(
    ("text", "scores", "winner"),
    [
        ("[7, 4]", (7, 4), 1),
        ("Of 2 responses: [3, 9]", (3, 9), 0),
        ("8.5", (8, 5), 1),
        ("[6]", (6, 0), 1),
        ("[5, 5]", (5, 5), None),
        ("", (0, 0), None),
    ],
)
def test_the_last_two_whole_numbers_are_the_scores(write, text, scores, winner):
    question = list(SUITE.questions(SUITE.load(write({})), "official"))[1]
    assert question.order == (1, 0)
    assert official_scores(text) == scores
    verdict = SUITE.parse(question, text)
    assert (verdict.winner, verdict.tie) == (winner, text == "[5, 5]")


def test_points_are_added_over_both_orders(write, tmp_path, values):
    rows = SUITE.load(write(*({"id": name} for name in "abcd")))
    answers = {
        "a": ("[7, 4]", "[4, 7]"),
        "b": ("[9, 1]", "[6, 5]"),  # prefers what stands first, but by 8 points and by 1
        "c": ("[7, 4]", "[7, 4]"),  # as many points for either
        "d": ("[7, 4]", None),
        "other": ("[7, 4]", "[7, 4]"),
    }
    written = [
        {"id": name, "task_gt": [0, 1], "model_answer_front": front, "model_answer_back": back}
        for name, (front, back) in answers.items()
    ]
    results = tmp_path / "model.jsonl"
    results.write_text("\n".join(map(json.dumps, written)))
    predictions = read_results(SUITE, results, rows, "j")
    scored = SUITE.score(rows, predictions, "official")
    assert scored.right.tolist() == [1, 1, 0, 1]
    assert values(scored) == {"overall": 0.75}


def test_a_verdict_of_our_reader_is_one_point(pair, both_orders):
    rows = [pair(name) for name in "abcd"]
    predictions = [
        *both_orders("a", 0, 0),
        *both_orders("b", 0, None),
        *both_orders("c", 0, 1),
        *both_orders("d", None, -1),
    ]
    assert SUITE.score(rows, predictions, "official_scorer").right.tolist() == [1, 1, 0, 0]
    assert SUITE.score(rows, predictions, "strict").right.tolist() == [1, 0, 0, 0]


def test_official_questions_ask_for_two_ratings_in_both_orders(write):
    first, second = SUITE.questions(SUITE.load(write({})), "official", draws=3)
    assert "Response 2:\nSTEP1: It is B.\n\nReply with a list" in first.prompt
    assert "Response 1:\nSTEP1: It is B.\n" in second.prompt
