"""Rows with no image, one and several: what engines and endpoints are asked about them, and what stays as it was."""

from __future__ import annotations

import io
import json

import pytest

from carevl.benchmarks.answering import EngineJudge, judge_questions
from carevl.benchmarks.data import load
from carevl.benchmarks.forcing import read_forced
from carevl.benchmarks.pictures import can_be_shown, pictures_of
from carevl.benchmarks.predictions import prompt_hash
from carevl.benchmarks.question_tables import from_row, to_images, to_questions
from carevl.benchmarks.questions import ask_as_trained, judge_question
from carevl.benchmarks.rows import Image
from carevl.benchmarks.run import AnswerProcessor, judge_fingerprint_inputs
from carevl.benchmarks.suites import SUITES
from carevl.errors import UserError
from carevl.judging.verdict_tokens import VERDICT_TEXTS
from carevl.models.engines.base import GenerationRequest
from carevl.settings.asking import Asking
from carevl.settings.models import Judge
from tests.helpers.families import draw_picture

PICTURES = {name: draw_picture(n) for n, name in enumerate("abc")}


def _images(names):
    return tuple(map(Image, names))


ONE_IMAGE = {
    "vlrmbench": (
        "multi_solution.jsonl",
        {"id": "a", "image": ["d/1.jpg"], "question": "Which point?", "step_list": ["S1.\n\n", "S2."]}
        | {"reasoning_error": "S1 B."},
        "a#e43b2d057815",
        ["3138e9445cd34f01", "af30e408e7181051", "b969d2df9cc52f9d", "24a51b23cb785d41"],
    ),
    "multimodal-rewardbench-2": (
        "reasoning.json",
        {
            "pairs": [
                {"id": "q", "prompt_content": [["text", "How"], ["image", "i/q.png"], ["text", "many?"]], "chosen": "B"}
                | {
                    f"response_{a}": {"response_content": [["text", text]]}
                    for a, text in zip("ab", ("Two.", "Three."), strict=True)
                }
            ]
        },
        "q#62eacd11473c",
        ["fe1c7b58a75c02f8", "803b27ed9a127b76", "667d18b581d352bf", "4d50901aac7223a8"],
    ),
    "pairwise": (
        "pairs.jsonl",
        {"id": 2, "image": "1.png", "question": "<image>\nIs it?", "responses": ["a", "b"], "better": 1},
        "2#29ac856a8c89",
        ["951be494bd2c8a9f", "7630d98aaeb1d403"] * 2,
    ),
}


@pytest.mark.parametrize("name", list(ONE_IMAGE))
def test_rows_with_one_image_have_the_keys_and_prompts_that_they_had(name, tmp_path):
    file, row, key, hashes = ONE_IMAGE[name]
    (tmp_path / file).write_text(json.dumps(row))
    data = load(name, tmp_path / file)
    questions = [q for protocol in ("official", "strict") for q in data.suite.questions(data.rows, protocol)]
    assert [row.key for row in data.rows] == [key]
    assert [prompt_hash(question.prompt) for question in questions] == hashes
    assert {question.turn.places for question in questions} == {(0,)}


def test_the_fingerprint_of_rows_is_what_it_was_and_changes_with_images_and_places(tmp_path):
    own = {"id": 1, "question": "What?", "responses": ["a", "b"], "better": 1, "category": "photo"}
    several = {"images": ["1.png", "2.png"], "question": "Is <image> like <image>?"}
    rows = [
        own | {"image": "1.png"},
        own,
        own | several,
        own | several | {"images": ["2.png", "1.png"]},
        own | {"images": ["1.png", "2.png"], "question": "Is  like ?"},
    ]
    found = []
    for number, row in enumerate(rows):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(json.dumps(row))
        found.append(load("pairwise", file).fingerprint)
    assert len(set(found)) == len(rows)
    assert found[:2] == ["d031bbaa59cfc8fe", "d55b717d327e8746"]
    (tmp_path / "2.png").write_bytes(b"new")
    assert load("pairwise", tmp_path / "2.jsonl").fingerprint != found[2]


@pytest.mark.parametrize(
    ("names", "places", "parts"),
    [
        ("", (), ["Question: Which?\n"]),
        ("a", (), [None, "Look at the image. Question: Which?\n"]),
        ("ab", (), [None, None, "Look at the images. Question: Which?\n"]),
        ("ab", (0, 5), ["Look at the images. Question: ", None, "Which", None, "?\n"]),
    ],
)
def test_the_judges_own_prompt_has_images_in_their_places(pair, names, places, parts):
    row = pair("k", images=_images(names), places=places)
    question = judge_question("pairwise", row, "strict", (0, 1))
    *before, last = question.turn.parts()
    assert [*before, last[: len(parts[-1])]] == parts
    own = ask_as_trained(question, row, Asking(pairwise="Read: {question} | {answers}"))
    expected = ["Read: ", None, "Which", None, "? | Answer 1: one\nAnswer 2: two"]
    assert any(places) is (list(own.turn.parts()) == expected)


def test_tables_keep_the_images_and_places_of_questions(pair):
    rows = [pair("a"), pair("b", images=_images("a")), pair("c", images=_images("ba"), places=(0, 5))]
    questions = [judge_question("pairwise", row, "strict", (1, 0)) for row in rows]
    assert [from_row(row) for row in to_questions(questions).to_pylist()] == questions
    assert to_images(questions)["name"].to_pylist() == ["a", "b"]


def test_a_question_with_a_broken_image_or_too_many_is_not_shown(pair):
    fine, broken, many = (
        judge_question("pairwise", pair("k", images=_images(names)), "strict", (0, 1)) for names in ("ab", "ax", "abc")
    )
    pictures = {**PICTURES, "x": "it is no image"}
    assert pictures_of(fine, pictures, 2) == (PICTURES["a"], PICTURES["b"])
    assert pictures_of(broken, pictures, 2) == "it is no image"
    assert pictures_of(many, pictures, 2) == (
        "its prompt has 3 images, and max_images of the judge is 2; raise that (judge.max_images in settings, "
        "--set max_images=3 of carevl evaluate)"
    )
    assert [can_be_shown(question, 2) for question in (fine, broken, many)] == [True, True, False]
    drawn = judge_question("pairwise", pair("k", images=(Image("a", error="drawn"),)), "strict", (0, 1))
    assert not can_be_shown(drawn, 2)


def test_predictions_of_a_model_depend_on_how_many_images_it_is_shown_at_most():
    [fixed, more] = [judge_fingerprint_inputs(Judge(path="miniworld:judge", max_images=n)) for n in (8, 9)]
    assert "max_images" not in fixed
    assert more == fixed | {"max_images": 9}
    [fixed, more] = [judge_fingerprint_inputs(Judge(path="http://h/v1#m", max_images=n)) for n in (8, 9)]
    assert more == fixed


def test_rows_lack_an_image_that_is_missing_and_some_benchmarks_have_rows_without(tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    pair = {"question": "What?", "responses": ["a", "b"], "better": 0}
    rows = [{"id": 1, "images": ["1.png"]}, {"id": 2, "images": ["1.png", "2.png"]}, {"id": 3}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair | row) for row in rows))
    data = load("pairwise", tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match=rf"1 of 3 rows have no image: 2#\w+; looked for at {tmp_path}/2.png; give"):
        data.without_missing_images(["strict"], allowed=False)
    kept = data.without_missing_images(["strict"], allowed=True)
    assert [row.native_id for row in kept.rows] == ["1", "3"]
    row = {"id": "RLHF-V-1", "query": "q", "response": ["a", "b"], "human_ranking": [0, 1]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="1 of 1 rows have no image"):
        load("vl-rewardbench", tmp_path / "rows.jsonl").without_missing_images(["strict"], allowed=False)


def _file(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def test_an_actor_answers_a_part_with_no_image_one_and_several(pair):
    stored = {name: Image(name, data=_file(picture)) for name, picture in PICTURES.items()}
    rows = [pair(names, images=tuple(stored[name] for name in names)) for names in ("", "a", "cb", "abc")]
    questions = list(SUITES["pairwise"].questions(rows, "strict"))
    settings = Judge(path="miniworld:judge", engine="transformers", dtype="float32", max_tokens=4, max_images=2)
    processor = AnswerProcessor(settings, "j", {"pairwise": "pairwise"}, seed=0).load()
    tables = {"questions": to_questions(questions), "images": to_images(questions)}
    answers = processor.process(processor.preprocess(tables))
    assert answers.equals(processor.process(tables))
    found = {(row["key"], tuple(row["order"])): row for row in answers.to_pylist()}
    assert [found[q.key, q.order]["error"] is None for q in questions] == [True] * 6 + [False] * 2
    assert all(found[q.key, q.order]["text"] for q in questions[:6])


@pytest.fixture(scope="module")
def judge():
    return EngineJudge(Judge(path="miniworld:judge", engine="transformers", dtype="float32", max_tokens=4))


def test_a_model_is_asked_about_no_image_one_and_several_in_place(judge, pair):
    shown = [("", ()), ("a", ()), ("ab", (0, 5)), ("ba", (0, 5)), ("abc", ())]
    rows = [pair(str(n), images=_images(names), places=places) for n, (names, places) in enumerate(shown)]
    suite = SUITES["pairwise"]
    questions = [judge_question("pairwise", row, "verdict_prob", (0, 1)) for row in rows]
    predictions = judge_questions(judge, "j", suite, questions, PICTURES, 0, max_images=2)
    *asked, refused = predictions
    assert refused.error is not None
    assert "its prompt has 3 images" in refused.error["message"]
    requests = [
        GenerationRequest(
            tuple(PICTURES[name] for name in names), q.prompt, "Overall Judgment: Answer", places=q.turn.places
        )
        for (names, _), q in zip(shown[:-1], questions, strict=False)
    ]
    written = judge.engine.generate(requests, max_tokens=2, logprob_texts=VERDICT_TEXTS)
    for prediction, generation in zip(asked, written, strict=True):
        probabilities = read_forced("pairwise", generation).probabilities
        assert prediction.error is None
        assert probabilities is not None
        assert prediction.probability == pytest.approx(probabilities[0], abs=1e-5)
    assert len({prediction.probability for prediction in asked}) == len(asked)
