from __future__ import annotations

import json

import pytest

from carevl.benchmarks.result_files import read_results
from carevl.benchmarks.rows import missing_images
from carevl.benchmarks.suites.multimodal_rewardbench2 import SUITE, official_judgment


def _response(*segments):
    return {"model_name": "m", "response_content": list(segments)}


def _pair(pair_id="p", **fields):
    return {
        "id": pair_id,
        "prompt_content": [["image", f"input_images/{pair_id}.png"], ["text", "How many?"]],
        "prompt_source": "vstar",
        "response_a": _response(["text", "Two."]),
        "response_b": _response(["text", "Three."]),
        "chosen": "B",
    } | fields


SEVERAL = {"prompt_content": [["image", "1.png"], ["text", "Which of"], ["image", "2.png"], ["text", "these?"]]}
DRAWN = {"prompt_content": [["text", "Draw."]], "response_a": _response(["image", "a.png"], ["text", "Here."])}


@pytest.fixture
def write(tmp_path):
    def make(*pairs, task="reasoning"):
        path = tmp_path / f"{task}.json"
        path.write_text(json.dumps({"pairs": pairs}))
        return path

    return make


def test_a_pair_becomes_a_row_of_its_task(write, tmp_path):
    [row] = SUITE.load(write(_pair()))
    assert (row.native_id, row.group, row.question, row.responses) == (
        "p",
        "reasoning",
        "How many?",
        ("Two.", "Three."),
    )
    assert (row.winner, row.images[0].path) == (1, tmp_path / "input_images/p.png")


def test_a_folder_holds_a_file_per_task(write, tmp_path):
    write(_pair("a"), task="t2i")
    write(_pair("b"), _pair("c"))
    assert [(row.native_id, row.group) for row in SUITE.load(tmp_path)] == [
        ("a", "t2i"),
        ("b", "reasoning"),
        ("c", "reasoning"),
    ]
    with pytest.raises(FileNotFoundError, match=r"none of t2i.json, edit.json, interleaved.json, reasoning.json"):
        SUITE.load(tmp_path / "..")


def test_the_id_may_be_called_as_in_the_readme(write):
    pair = _pair() | {"pair_id": "r"}
    del pair["id"]
    assert SUITE.load(write(pair))[0].native_id == "r"


@pytest.mark.parametrize("task", ["interleaved", "reasoning"])
@pytest.mark.parametrize(
    ("prompt", "images", "parts"),
    [
        (SEVERAL["prompt_content"], ["1.png", "2.png"], [None, "Which of\n", None, "these?"]),
        ([["text", "Compare."], ["image", "1.png"], ["image", "2.png"]], ["1.png", "2.png"], ["Compare.", None, None]),
        ([["image", "1.png"], ["image", "2.png"], ["text", "Same?"]], ["1.png", "2.png"], [None, None, "Same?"]),
        ([["text", "A"], ["image", "1.png"], ["text", "b?"]], ["1.png"], [None, "A\nb?"]),
        ([["text", "Is 7 prime?"]], [], ["Is 7 prime?"]),
    ],
)
def test_images_of_a_prompt_stand_in_their_places(write, tmp_path, task, prompt, images, parts):
    [row] = SUITE.load(write(_pair(prompt_content=prompt), task=task))
    assert [image.path for image in row.images] == [tmp_path / name for name in images]
    assert list(row.turn.parts()) == parts


def test_official_questions_show_images_in_their_places(write):
    question = next(SUITE.questions(SUITE.load(write(_pair(**SEVERAL))), "official"))
    before, first, second = [part for part in question.turn.parts() if part is not None]
    assert before.startswith("Two assistants, A and B, were given the same request about the images. Say")
    assert before.endswith("The request:\n")
    assert (first, second[:20]) == ("Which of\n", "these?\n\nResponse A:\n")


def test_images_in_responses_are_an_error_of_the_questions(write):
    rows = SUITE.load(write(_pair(**DRAWN), _pair("q", **(DRAWN | SEVERAL))))
    assert [(row.question, row.responses) for row in rows] == [
        ("Draw.", ("[image]\nHere.", "Three.")),
        ("Which of\nthese?", ("[image]\nHere.", "Three.")),
    ]
    assert missing_images(rows) == []
    for row in rows:
        [image] = row.images
        assert image.error == "images in responses: this pair has 1, and a judge reads responses as text"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chosen": "C"}, "chosen must be A or B, found 'C'"),
        ({"prompt_content": "How many?"}, "prompt_content must be a list of .text or image, value., found 'How many"),
        ({"prompt_content": [["audio", "1.wav"]]}, "prompt_content must be a list of"),
        ({"prompt_content": None}, "no value for prompt_content"),
        ({"response_a": {"model_name": "m"}}, "response_a: no value for response_content"),
    ],
)
def test_bad_pairs_are_named(write, fields, message):
    with pytest.raises(ValueError, match=rf"reasoning.json, row 1, pair 2.*{message}"):
        SUITE.load(write(_pair("a"), _pair("b", **fields)))


@pytest.mark.parametrize(
    ("text", "judgment", "winner"),
    [
        ('{"reasoning": "so", "better_response": "A"}', "A", 1),
        ('```json\n{"better_response" : "B"}\n```', "B", 0),
        ('{"better_response": "A"} no: {"better_response": "B"}', "B", 0),
        ('{"better_response": "tie"}', "tie", None),
        ("[[A]]", None, None),
    ],
)
def test_the_official_judgment_is_the_last_better_response(write, text, judgment, winner):
    question = list(SUITE.questions(SUITE.load(write(_pair())), "official"))[1]
    assert question.order == (1, 0)
    assert official_judgment(text) == judgment
    assert SUITE.parse(question, text).winner == winner


def test_official_questions_ask_for_json_in_both_orders(write):
    first, second = SUITE.questions(SUITE.load(write(_pair())), "official", draws=5)
    assert "Response A:\nTwo.\n\nResponse B:\nThree.\n" in first.prompt
    assert "Response A:\nThree.\n\nResponse B:\nTwo.\n" in second.prompt
    assert '{"reasoning": "your comparison", "better_response": "A"}' in first.prompt


def _judged(forward, reverse):
    return {
        name: [{"judgement": letter, "evaluator": "e", "metadata": {}}] if letter != "absent" else []
        for name, letter in (("forward", forward), ("reverse", reverse))
    }


JUDGED = {
    "a": _judged("B", "A"),  # right in both orders
    "b": _judged("B", "B"),  # right, wrong
    "c": _judged("B", None),  # right, no judgment
    "d": _judged("tie", "absent"),  # wrong, no judgment
    "e": _judged(None, "absent"),  # no judgment at all
    "other": _judged("A", "A"),
}


@pytest.fixture
def judged(write, tmp_path):
    """Five pairs of two tasks, with the judgments of the official script on them."""
    write(_pair("a"), _pair("b", **DRAWN), task="edit")
    write(*(_pair(name) for name in "cde"))
    rows = SUITE.load(tmp_path)
    path = tmp_path / "task4_model.txt.json"
    path.write_text(json.dumps(JUDGED))
    return rows, read_results(SUITE, path, rows, "j")


def test_judgments_are_read_in_their_orders(judged):
    _, predictions = judged
    assert [(each.order, each.sample, each.winner, each.status) for each in predictions[:6]] == [
        ((0, 1), 0, 1, "ok"),
        ((1, 0), 0, 1, "ok"),
        ((0, 1), 0, 1, "ok"),
        ((1, 0), 0, 0, "ok"),
        ((0, 1), 0, 1, "ok"),
        ((1, 0), 0, None, "none"),
    ]
    assert len(predictions) == 10


def test_missing_judgments_leave_the_denominator_and_others_do_not(judged, values):
    rows, predictions = judged
    scored = SUITE.score(rows, predictions, "official")
    assert scored.right.tolist()[:4] == [1, 0.5, 1, 0]
    assert scored.right[4] != scored.right[4]
    assert values(scored) == {
        "overall": pytest.approx(4 / 6),
        "macro": pytest.approx((3 / 4 + 1 / 2) / 2),
        "edit": 3 / 4,
        "reasoning": 1 / 2,
    }


def test_verdicts_of_our_reader_are_scored_alike(pair, both_orders, values):
    rows = [pair("a"), pair("b"), pair("c")]
    predictions = [*both_orders("a", 0, 0), *both_orders("b", 0, None), *both_orders("c", 0, 1)]
    assert values(SUITE.score(rows, predictions, "official_scorer"))["overall"] == pytest.approx(4 / 5)
    assert values(SUITE.score(rows, predictions, "strict"))["overall"] == pytest.approx(1 / 3)


def test_published_averages_are_those_of_their_tasks():
    header, *judges = SUITE.published()
    assert header == ("published", "t2i", "edit", "interleaved", "reasoning", "macro")
    for _, *tasks, macro in judges:
        assert sum(map(float, tasks)) / 4 == pytest.approx(float(macro), abs=0.051)
